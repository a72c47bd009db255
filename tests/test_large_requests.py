"""Requests of tens of megabytes at once, in a server that may not use much memory."""

from collections import Counter

import grpc
from http2 import HEADERS, connect, frames, half_a_message, hello, message, request_headers
from processes import TIMEOUT, Server, until
from troubled import EVERY_REQUEST, MEGABYTE, ONE, RED, answered, requests_logged, troubled

from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub

MOST = 512 * MEGABYTE
LIMITED = ("--max-memory-bytes", MOST, "--lanes", 1, "--default-timeout-ms", 600_000)
SMALLER = pb.ClassifyRequest(images=[pb.Image(encoded=RED + bytes(MEGABYTE))] * 2)
LARGE = pb.ClassifyRequest(images=[pb.Image(encoded=RED + bytes(15 * MEGABYTE))] * 2)
CLASSIFY = "/packshot.v1.Classifier/Classify"
STARTED = (
    'grpc_server_started_total{grpc_method="Classify",grpc_service="packshot.v1.Classifier",'
    'grpc_type="unary"}'
)
CANCELLED = (
    'grpc_server_handled_total{grpc_code="CANCELLED",grpc_method="Classify",'
    'grpc_service="packshot.v1.Classifier",grpc_type="unary"}'
)
DEADLINE_EXCEEDED = CANCELLED.replace("CANCELLED", "DEADLINE_EXCEEDED")
SENT = [("grpc.max_send_message_length", -1)]


def test_more_than_there_is_memory_for_is_refused_and_leaves_nothing(tmp_path):
    with (
        troubled(tmp_path, *LIMITED, *EVERY_REQUEST) as (server, stub),
        grpc.insecure_channel(server.target, SENT) as channel,
        connect(server.target) as slow,
    ):
        before = server.memory_bytes
        slow.sendall(hello() + request_headers(CLASSIFY) + half_a_message())
        until(lambda: server.metric(STARTED) == 1)
        (tmp_path / "hang").touch()  # so that images that are let in stay in memory
        calls = [ClassifierStub(channel).Classify.future(LARGE) for _ in range(16)]
        waiting, refused = sorted_out(calls, server)
        assert len(refused) > len(waiting) > 0
        while not refused_now(calls, stub, server):
            pass
        assert server.memory_bytes < MOST
        assert stub.GetModel(pb.GetModelRequest(), timeout=TIMEOUT).model == "colours"  # as ever
        assert (HEADERS, 1) in frames(slow)  # its end, though not all of it was sent
        waiting, refused = sorted_out(calls, server)
        (tmp_path / "hang").unlink()
        for call in waiting:
            assert [one.predictions[0].label for one in call.result(TIMEOUT).results] == ["red"] * 2
        for call in refused:
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "bytes of memory or more" in call.details()
        until(lambda: server.memory_bytes < before + 96 * MEGABYTE)
        assert answered(stub)
        assert server.metric("packshot_short_of_memory_total") == len(refused) + 1
        assert server.stop() == 0
        codes = Counter(line["code"] for line in requests_logged(server, "Classify"))
        assert codes == {"OK": len(waiting) + 1, "RESOURCE_EXHAUSTED": len(refused) + 1}


def refused_now(calls: list[grpc.Future], stub: ClassifierStub, server: Server) -> bool:
    """Whether memory is too short even for another few megabytes."""
    calls.append(stub.Classify.future(SMALLER))
    sorted_out(calls, server)
    return calls[-1].done()


def sorted_out(
    calls: list[grpc.Future], server: Server
) -> tuple[list[grpc.Future], list[grpc.Future]]:
    """Those whose images are in the queue, and those that were refused."""

    def all_known() -> bool:
        waiting = sum(not call.done() for call in calls)
        return 2 * waiting == server.metric("packshot_images_in_progress")

    until(all_known)
    return [call for call in calls if not call.done()], [call for call in calls if call.done()]


def test_a_message_that_grpc_refuses_is_counted_and_logged(tmp_path):
    too_large = pb.ClassifyRequest(images=[pb.Image(encoded=bytes(MEGABYTE))])
    limits = ("--max-message-bytes", MEGABYTE, "--max-image-bytes", MEGABYTE // 2)
    with (
        troubled(tmp_path, *limits, *EVERY_REQUEST) as (server, _),
        grpc.insecure_channel(server.target, SENT) as channel,
    ):
        call = ClassifierStub(channel).Classify.future(too_large)
        assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in call.details()
        until(lambda: server.metric(CANCELLED) == 1)
        assert server.stop() == 0
        assert [line["code"] for line in requests_logged(server, "Classify")] == ["CANCELLED"]


def test_a_request_whose_deadline_passes_while_it_is_sent_is_its_clients_to_answer_for(tmp_path):
    with (
        troubled(tmp_path, *EVERY_REQUEST) as (server, stub),
        connect(server.target) as slow,
    ):
        slow.sendall(hello() + request_headers(CLASSIFY, grpc_timeout="100m") + half_a_message())
        until(lambda: server.metric(CANCELLED) == 1)
        assert answered(stub)
        (tmp_path / "hang").touch()
        # A client of gRPC's might give up before the server does.
        slow.sendall(request_headers(CLASSIFY, 3, grpc_timeout="2S"))
        slow.sendall(message(ONE.SerializeToString(), 3, last=True))
        until(lambda: server.metric(DEADLINE_EXCEEDED) == 1)
        (tmp_path / "hang").unlink()
        assert server.stop() == 0
        codes = [line["code"] for line in requests_logged(server, "Classify")]
        assert codes == ["CANCELLED", "OK", "DEADLINE_EXCEEDED"]
