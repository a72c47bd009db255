"""The vocabulary of what can go wrong, shared by the programs and by the client.

    PackshotError
    ├── InvalidInput           a value from outside is wrong: the message names it and the remedy
    │   └── ImageError         one image cannot be used; `reason` is from a closed set
    ├── Unauthenticated        no valid token was shown
    ├── NotFound               no model, version or file of that name
    ├── DamagedFile            a file is not what its record says: wrong hash, half, unreadable
    ├── EngineRefused          an engine cannot run here; `reason` is from a closed set
    ├── AnswersDiffer          an engine's answers are not the trained model's
    ├── Overloaded             too much queued: try again later
    ├── DeadlineExceeded       the answer came too late to be of use
    ├── Unavailable            not ready, draining, or not there
    └── ServiceFailed          the service failed; its log says why

`packshot.status` translates them to gRPC status codes and back.
"""

from typing import Literal, Self

ImageReason = Literal[
    "empty",
    "not_an_image",
    "damaged",
    "unsupported",
    "too_many_bytes",
    "too_many_pixels",
    "wrong_size",
]
EngineReason = Literal[  # in the order in which they are found out
    "unknown_engine",
    "not_in_bundle",
    "no_driver",
    "no_gpu",
    "wrong_cpu",
    "damaged",
    "wrong_gpu",  # this and wrong_* below: what a TensorRT plan was built for
    "wrong_shape",
    "no_runtime",
    "wrong_flavour",
    "wrong_version",
    "load_failed",
    "answers_differ",
    "failed",  # while it served, or while it was built
]


class PackshotError(Exception):
    """Anything that packshot raises on purpose."""

    def without_history(self) -> Self:
        """To be handed on as a value: the frames of a history keep all that they worked on."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class InvalidInput(PackshotError):
    """A value from outside is wrong."""


class ImageError(InvalidInput):
    """One image cannot be used; others beside it can."""

    def __init__(self, reason: ImageReason, message: str) -> None:
        super().__init__(message)
        self.reason: ImageReason = reason


class Unauthenticated(PackshotError):
    """No valid token was shown."""


class NotFound(PackshotError):
    """No model, version or file of that name."""


class DamagedFile(PackshotError):
    """A file is not what its record says."""


class EngineRefused(PackshotError):
    """An engine cannot run here."""

    def __init__(self, reason: EngineReason, message: str) -> None:
        super().__init__(message)
        self.reason: EngineReason = reason


class AnswersDiffer(PackshotError):
    """An engine's answers are not the trained model's."""


class Overloaded(PackshotError):
    """Too much is queued: try again later, if it is known after how long."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(PackshotError):
    """The answer came too late to be of use."""


class Unavailable(PackshotError):
    """The service is not ready, is draining, or is not there."""


class ServiceFailed(PackshotError):
    """The service failed; its log says why."""
