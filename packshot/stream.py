"""Bulk classification: images out, answers back as they finish, taken up again where it breaks off.

What was sent and not answered is kept. When the server drains or goes away, it is sent again over
a new call, so that every id is answered exactly once whatever happens in between.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

import grpc

from packshot.answers import Result, result
from packshot.errors import (
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Overloaded,
    PackshotError,
    Unavailable,
)
from packshot.limits import LEAST_MESSAGE_BYTES, Limits
from packshot.outgoing import ImageSource, Outgoing, read_source
from packshot.v1 import classifier_pb2 as pb

MAX_UNANSWERED_IMAGES = 128
MAX_UNANSWERED_BYTES = 64 * 1024 * 1024
ID_BYTES = 22  # at most: 20 digits, and what tells that they follow
PAUSES_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0)
"""Before each attempt to go on, as long as none brings an answer: time for a server to restart."""

NOT_NOW = "unavailable"  # reason of an image to be sent again

_Call: TypeAlias = "grpc._CallIterator[pb.ClassifyStreamResponse]"
OpenCall = Callable[[Iterator[pb.ClassifyStreamRequest]], _Call]


class Sent(NamedTuple):
    """An image that waits for its answer, and the caller's name for it."""

    name: str
    request: pb.ClassifyStreamRequest


class BulkStream:
    """One pass over `items`. Lives in the caller's thread, which also reads the images."""

    def __init__(
        self,
        open_call: OpenCall,
        items: Iterable[tuple[str, ImageSource]],
        *,
        template: pb.ClassifyStreamRequest,
        ask_limits: Callable[[], Limits],
        translated: Callable[[grpc.RpcError], PackshotError],
        timeout_seconds: float,
    ) -> None:
        """`template`: a request but for id and image. `timeout_seconds`: for the next answer."""
        self._open_call = open_call
        self._items = iter(items)
        self._held: Outgoing | None = None  # read, and the server could not be asked about it
        self._all_read = False
        self._template = template
        self._fields_bytes = template.ByteSize() + ID_BYTES
        self._ask_limits = ask_limits
        self._limits: Limits | None = None
        self._translated = translated
        self._timeout_seconds = timeout_seconds
        self._failures = 0  # attempts in a row without an answer
        self._numbers = itertools.count()  # our ids on the wire: any text can be the caller's
        self._unanswered: dict[str, Sent] = {}
        self._unanswered_bytes = 0

    def results(self) -> Iterator[Result]:
        """Yields as answers come. Raises PackshotError when trying again has not helped."""
        while True:
            exchange = Exchange(self._open_call)
            try:
                yield from self._over(exchange)
                return
            except (Unavailable, Overloaded):
                if self._failures >= len(PAUSES_SECONDS):
                    raise
            finally:
                exchange.close()
            time.sleep(PAUSES_SECONDS[self._failures])
            self._failures += 1

    def _over(self, exchange: "Exchange") -> Iterator[Result]:
        """Yields until all is answered; raises what ended the call before that."""
        refused: set[str] = set()
        for sent in self._unanswered.values():
            exchange.send(sent.request)
        read_last = False
        while True:
            # In turns where both could be done: neither a slow source nor slow answers hold the
            # other up.
            take = exchange.has_answer and read_last
            if self._has_room and not refused and not take:
                yield from self._read(exchange)
                read_last = True
            elif len(self._unanswered) > len(refused):
                yield from self._receive(exchange, refused)
                read_last = False
            elif refused:
                raise Unavailable(f"the server is not ready for {len(refused)} of the images")
            else:
                exchange.finish(self._timeout_seconds)
                return

    @property
    def _has_room(self) -> bool:
        return (
            not self._all_read
            and len(self._unanswered) < MAX_UNANSWERED_IMAGES
            and self._unanswered_bytes < MAX_UNANSWERED_BYTES
        )

    def _read(self, exchange: "Exchange") -> Iterator[Result]:
        """Sends the next image, or tells at once why it cannot be sent."""
        self._held = self._held or self._next()
        if self._held is None:
            self._all_read = True
            return
        image, self._held = self._kept(self._held), None
        if image.message is None:
            yield Result(name=image.name, error=image.error, reason=image.reason)
            return
        request = pb.ClassifyStreamRequest(id=str(next(self._numbers)), image=image.message)
        request.MergeFrom(self._template)
        self._unanswered[request.id] = Sent(image.name, request)
        self._unanswered_bytes += request.ByteSize()
        exchange.send(request)

    def _next(self) -> Outgoing | None:
        item = next(self._items, None)
        if item is None:
            return None
        name, source = item
        if any(name == sent.name for sent in self._unanswered.values()):
            raise InvalidInput(f"id {name!r} is given again before it is answered")
        return read_source(name, source)

    def _kept(self, image: Outgoing) -> Outgoing:
        """With an error in its place if it is too large, of which the whole stream would end."""
        if self._limits is None and self._fields_bytes + image.size > LEAST_MESSAGE_BYTES:
            try:
                self._limits = self._ask_limits()
            except NotFound as error:  # no such model, as the answer would tell
                return Outgoing(name=image.name, error=str(error), reason="not_found")
        return self._limits.kept(image, self._fields_bytes) if self._limits else image

    def _receive(self, exchange: "Exchange", refused: set[str]) -> Iterator[Result]:
        try:
            response = exchange.answer(self._timeout_seconds)
        except grpc.RpcError as error:
            raise self._translated(error) from error
        sent = self._unanswered.get(response.id)
        if sent is None:
            return  # answered before, by a call that broke off
        if response.result.error.reason == NOT_NOW:
            refused.add(response.id)
            return
        del self._unanswered[response.id]
        self._unanswered_bytes -= sent.request.ByteSize()
        self._failures = 0
        yield result(sent.name, response.result, response)


class Exchange:
    """One call, opened with the first request. A thread waits for its answers until it ends."""

    def __init__(self, open_call: OpenCall) -> None:
        self._open_call = open_call
        self._call: _Call | None = None
        self._receiver: threading.Thread | None = None
        self._requests: queue.SimpleQueue[pb.ClassifyStreamRequest | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[pb.ClassifyStreamResponse | grpc.RpcError | None]
        self._answers = queue.SimpleQueue()

    @property
    def has_answer(self) -> bool:
        return not self._answers.empty()

    def send(self, request: pb.ClassifyStreamRequest) -> None:
        self._requests.put(request)
        if self._call is None:
            self._call = call = self._open_call(iter(self._requests.get, None))
            self._receiver = threading.Thread(
                target=self._receive, args=(call,), name="packshot-stream", daemon=True
            )
            self._receiver.start()

    def answer(self, timeout_seconds: float) -> pb.ClassifyStreamResponse:
        """The next one. Raises grpc.RpcError, Unavailable or DeadlineExceeded."""
        try:
            answer = self._answers.get(timeout=timeout_seconds)
        except queue.Empty:
            raise DeadlineExceeded(f"no answer for {timeout_seconds:g} s") from None
        if answer is None:
            raise Unavailable("the server ended the stream with images unanswered")
        if isinstance(answer, grpc.RpcError):
            raise answer
        return answer

    def finish(self, timeout_seconds: float) -> None:
        """Says that there is no more, and lets the call end by itself."""
        self._requests.put(None)
        if self._receiver is not None:
            self._receiver.join(timeout_seconds)

    def close(self) -> None:
        """Cancels the call if it has not ended; no thread is left behind."""
        self._requests.put(None)
        if self._call is not None and self._receiver is not None:
            self._call.cancel()
            self._receiver.join()

    def _receive(self, call: _Call) -> None:
        try:
            for response in call:
                self._answers.put(response)
            self._answers.put(None)
        except grpc.RpcError as error:
            self._answers.put(error)
