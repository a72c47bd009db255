"""Requests as bytes, made before the clock runs, and what their answers say of the images."""

import itertools
import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from packshot.client import MAX_MESSAGE_BYTES
from packshot.errors import InvalidInput
from packshot.load_plan import Api, LoadPlan
from packshot.services import CLASSIFIER, OPEN_INFERENCE
from packshot.v1 import classifier_pb2 as pb


class Wire(NamedTuple):
    """How an API is spoken."""

    method: str
    request: Callable[[LoadPlan, Sequence[bytes]], bytes]
    image_errors: Callable[[bytes], Mapping[str, int]]
    """By reason, in an answer."""


def requests_of(plan: LoadPlan, images: Sequence[bytes]) -> list[bytes]:
    """Each image is in one of them or, to fill the last, in two; few are sent again and again.

    Raises InvalidInput for requests that are too large.
    """
    size = plan.images_per_request
    endless = itertools.cycle(images)
    largest = _largest(images, size)
    if largest > MAX_MESSAGE_BYTES:  # told before it takes memory
        raise InvalidInput(
            f"{size} images have {largest} bytes; a request has at most {MAX_MESSAGE_BYTES}: send "
            "fewer or smaller images in one"
        )
    groups = (list(itertools.islice(endless, size)) for _ in range(-(-len(images) // size)))
    return [WIRES[plan.api].request(plan, group) for group in groups]


def _largest(images: Sequence[bytes], size: int) -> int:
    """Bytes of the images of the largest request."""
    whole, rest = divmod(size, len(images))
    sizes = [len(image) for image in images]
    twice = [*sizes, *sizes]
    starts = (first % len(images) for first in range(0, len(images), size))
    return whole * sum(sizes) + max(sum(twice[start : start + rest]) for start in starts)


def _classify_request(plan: LoadPlan, images: Sequence[bytes]) -> bytes:
    made = [pb.Image(pixels=one) if plan.pixels else pb.Image(encoded=one) for one in images]
    return pb.ClassifyRequest(model=plan.model, images=made, top_k=1).SerializeToString()


def _classify_errors(reply: bytes) -> Mapping[str, int]:
    results = pb.ClassifyResponse.FromString(reply).results
    return Counter(one.error.reason for one in results if one.HasField("error"))


def _infer_request(plan: LoadPlan, images: Sequence[bytes]) -> bytes:
    # Imported where it is spoken: other libraries register the same names, and then it fails.
    from packshot.oip.open_inference_pb2 import ModelInferRequest

    count = len(images)
    if plan.pixels:
        side = math.isqrt(len(images[0]) // 3)
        datatype, shape, raw = "UINT8", [count, side, side, 3], b"".join(images)
    else:
        datatype, shape = "BYTES", [count]
        raw = b"".join(struct.pack("<I", len(one)) + one for one in images)
    tensor = ModelInferRequest.InferInputTensor(name="images", datatype=datatype, shape=shape)
    request: bytes = ModelInferRequest(
        model_name=plan.model, inputs=[tensor], raw_input_contents=[raw]
    ).SerializeToString()
    return request


def _no_errors(_reply: bytes) -> Mapping[str, int]:
    """The protocol has none: a request with an image that cannot be used fails as a whole."""
    return {}


WIRES: dict[Api, Wire] = {
    "packshot": Wire(f"/{CLASSIFIER}/Classify", _classify_request, _classify_errors),
    "open-inference": Wire(f"/{OPEN_INFERENCE}/ModelInfer", _infer_request, _no_errors),
}
