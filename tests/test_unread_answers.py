"""Clients that read no answers, and then are gone."""

import http2
import pytest
from open_inference_calls import SERVICE, of_files
from processes import until
from troubled import EVERY_REQUEST, IMAGE, requests_logged, troubled

from packshot.v1 import classifier_pb2 as pb

ONE = pb.ClassifyStreamRequest(id="x" * 50, image=IMAGE, include_logits=True)
STREAMS = {
    "packshot.v1.Classifier/ClassifyStream": ONE.SerializeToString(),
    f"{SERVICE}/ModelStreamInfer": of_files().SerializeToString(),
}
CALLS = 20


@pytest.mark.parametrize("method", STREAMS)
def test_what_is_told_of_a_stream_that_is_gone_is_its_own(tmp_path, method):
    """gRPC frees a call of which it could not write an answer: nothing may be asked of it then."""
    name = method.partition("/")[2]
    with troubled(tmp_path, *EVERY_REQUEST) as (server, _):
        for number in range(CALLS):
            before = server.metric("packshot_images_total")
            with http2.connect(server.target) as connection:
                connection.sendall(http2.hello(window=0))
                sent = f"{number:02}-" + "m" * 57  # too long to lie in the call itself
                connection.sendall(http2.request_headers(f"/{method}", x_request_id=sent))
                connection.sendall(http2.message(STREAMS[method]) * 3)
                until(lambda: server.metric("packshot_images_total") > before)  # noqa: B023
                connection.sendall(http2.reset())
        until(lambda: len(requests_logged(server, name)) == CALLS)
        logged = requests_logged(server, name)
        assert {one["request_id"][:2] for one in logged} == {f"{n:02}" for n in range(CALLS)}
        assert {one["request_id"][3:] for one in logged} == {"m" * 57}
        assert {one["code"] for one in logged} == {"CANCELLED"}
        assert "Traceback" not in server.log
        assert server.metric("packshot_images_in_progress") == 0
