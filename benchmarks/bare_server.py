"""The least that a gRPC server in Python costs: it reads a ClassifyRequest and answers a constant.

python -m benchmarks.bare_server
"""

import asyncio
import logging

import grpc
import uvloop
from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierServicer, add_ClassifierServicer_to_server
from serving.api.calls import Context
from serving.http import HttpPort


class Constant(ClassifierServicer):
    """Answers one prediction, whatever is asked."""

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        prediction = pb.Prediction(label="mug", index=1, probability=0.5)
        result = pb.ImageResult(predictions=[prediction])
        return pb.ClassifyResponse(model="bare", version=1, engine="none", results=[result])


async def main() -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    http = HttpPort("127.0.0.1", 0, registry, lambda: None, lambda: None)
    server = grpc.aio.server()
    add_ClassifierServicer_to_server(Constant(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    logging.info(
        "engine none, on 127.0.0.1:%d, metrics on http://127.0.0.1:%d/metrics", port, http.port
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    uvloop.run(main())
