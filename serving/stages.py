"""The stages of a request, as they are told to traces and the access log."""

from typing import NamedTuple


class Stage(NamedTuple):
    """When a stage (decode, queue, infer) began and ended, in seconds of `time.monotonic`."""

    name: str
    started: float
    ended: float
