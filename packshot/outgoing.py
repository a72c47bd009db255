"""What a client sends: images, read from where they are, and what it wants to know of them."""

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from packshot.errors import InvalidInput
from packshot.prediction import DEFAULT_TOP_K
from packshot.v1 import classifier_pb2 as pb

ImageSource = str | Path | bytes | npt.NDArray[np.uint8]
"""A path, an encoded file's bytes, or pixels: RGB, uint8, of the shape that `model()` tells."""

MAX_REQUEST_BYTES = 32 * 1024 * 1024
IMAGE_FIELDS_BYTES = 10  # at most: what tells in a request that so many bytes of an image follow
MAX_TOP_K = 1_000_000


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to tell of each image. Raises InvalidInput.

    `top_k` 0 means 5. Without `min_confidence` the model's own threshold holds; 0 never abstains.
    """

    top_k: int = DEFAULT_TOP_K
    include_logits: bool = False
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise InvalidInput(f"top_k is {self.top_k}; it must be from 0 to {MAX_TOP_K}")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise InvalidInput(f"min_confidence is {self.min_confidence}; it must be from 0 to 1")


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """One image read and ready to send, or the reason why it is not."""

    name: str
    message: pb.Image | None = None
    content_bytes: int = 0
    error: str | None = None
    reason: str | None = None

    @property
    def size(self) -> int:
        """Bytes of a request, at most."""
        return self.content_bytes + IMAGE_FIELDS_BYTES if self.message is not None else 0


def read_source(name: str, image: ImageSource) -> Outgoing:
    """Raises InvalidInput for an array that cannot be pixels."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InvalidInput(
                f"{name} is an array of {image.dtype} {list(image.shape)}; expected uint8 RGB "
                "[height, width, 3]"
            )
        return _too_large(name, image.nbytes) or Outgoing(
            name=name, message=pb.Image(pixels=image.tobytes()), content_bytes=image.nbytes
        )
    if isinstance(image, bytes):
        return _too_large(name, len(image)) or _file(name, image)
    try:
        size = Path(image).stat().st_size
        return _too_large(name, size) or _file(name, Path(image).read_bytes())
    except OSError as error:
        return _unreadable(name, str(error.strerror))
    except ValueError as error:  # a NUL character in the path
        return _unreadable(name, str(error))


def too_many_bytes(name: str, size: int, limit: int) -> Outgoing:
    """In the place of an image."""
    error = f"{size} bytes; at most {limit} can be sent"
    return Outgoing(name=name, error=error, reason="too_many_bytes")


def _too_large(name: str, size: int) -> Outgoing | None:
    return too_many_bytes(name, size, MAX_REQUEST_BYTES) if size > MAX_REQUEST_BYTES else None


def _file(name: str, content: bytes) -> Outgoing:
    return Outgoing(name=name, message=pb.Image(encoded=content), content_bytes=len(content))


def _unreadable(name: str, why: str) -> Outgoing:
    return Outgoing(name=name, error=f"cannot be read: {why}", reason="unreadable")
