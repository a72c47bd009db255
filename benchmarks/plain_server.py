"""The baseline: the classification server that one writes in an afternoon, written with care.

grpcio's synchronous server with a pool of threads, Pillow, one onnxruntime session with its default
options, one image a run. Any thread may be in any step, so decoding overlaps the model here too. It
reads ClassifyRequests, so that the same load generator drives it. The network takes uint8, which
saves this server the float normalisation that others do.

    python -m benchmarks.plain_server models/products/1 --engine int8
"""

import argparse
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnxruntime as ort
from PIL import Image

from packshot.bundle import INPUT, LOGITS, read_manifest
from packshot.image import ImageSpec, Pixels
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierServicer, add_ClassifierServicer_to_server

THREADS = 16  # one for each request in flight; the ten of grpcio's own examples answer as many


def plain_pixels(encoded: bytes, spec: ImageSpec) -> Pixels:
    """Decode, short side to its size, centre crop: uint8 [crop, crop, 3]."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    scale = spec.resize_short_side / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - spec.crop) // 2, (height - spec.crop) // 2
    return np.asarray(resized.crop((left, top, left + spec.crop, top + spec.crop)))


class PlainClassifier(ClassifierServicer):
    """Of a bundle it takes the network, the labels and the sizes of the picture."""

    def __init__(self, bundle: Path, engine: str) -> None:
        self._manifest = read_manifest(bundle)
        self._session = ort.InferenceSession(bundle / self._manifest.engines[engine].file)

    def Classify(
        self, request: pb.ClassifyRequest, context: grpc.ServicerContext
    ) -> pb.ClassifyResponse:
        results = [self._result(image.encoded, request.top_k or 1) for image in request.images]
        return pb.ClassifyResponse(model=self._manifest.model, results=results)

    def _result(self, encoded: bytes, top_k: int) -> pb.ImageResult:
        pixels = plain_pixels(encoded, self._manifest.image)
        (logits,) = self._session.run([LOGITS], {INPUT: pixels[None]})
        powers = np.exp(logits[0] - logits[0].max())
        probabilities = powers / powers.sum()
        return pb.ImageResult(
            predictions=[
                pb.Prediction(
                    label=self._manifest.labels[index],
                    index=index,
                    probability=probabilities[index],
                )
                for index in np.argsort(-probabilities)[:top_k]
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder of a version")
    parser.add_argument("--engine", default="int8", help="int8 or fp32")
    options = parser.parse_args()
    server = grpc.server(ThreadPoolExecutor(max_workers=THREADS))
    add_ClassifierServicer_to_server(PlainClassifier(options.bundle, options.engine), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"engine {options.engine}, on 127.0.0.1:{port}", file=sys.stderr, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
