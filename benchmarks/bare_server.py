"""The least that a gRPC server in Python costs: it reads a ClassifyRequest and answers a constant.

python -m benchmarks.bare_server
"""

import asyncio
import sys

import grpc
import uvloop

from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierServicer, add_ClassifierServicer_to_server
from serving.api.receiving import Context


class Constant(ClassifierServicer):
    """Answers one prediction, whatever is asked."""

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        prediction = pb.Prediction(label="mug", index=1, probability=0.5)
        result = pb.ImageResult(predictions=[prediction])
        return pb.ClassifyResponse(model="bare", version=1, engine="none", results=[result])


async def main() -> None:
    server = grpc.aio.server()
    add_ClassifierServicer_to_server(Constant(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"engine none, on 127.0.0.1:{port}", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
