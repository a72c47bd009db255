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
    error: str | None = None

    @property
    def size(self) -> int:
        return self.message.ByteSize() if self.message is not None else 0


def read_source(name: str, image: ImageSource) -> Outgoing:
    """Raises InvalidInput for an array that cannot be pixels."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InvalidInput(
                f"{name} is an array of {image.dtype} {list(image.shape)}; expected uint8 RGB "
                "[height, width, 3]"
            )
        return _too_large(name, image.nbytes) or Outgoing(
            name=name, message=pb.Image(pixels=image.tobytes())
        )
    if isinstance(image, bytes):
        return _too_large(name, len(image)) or Outgoing(name=name, message=pb.Image(encoded=image))
    try:
        size = Path(image).stat().st_size
        return _too_large(name, size) or Outgoing(
            name=name, message=pb.Image(encoded=Path(image).read_bytes())
        )
    except OSError as error:
        return Outgoing(name=name, error=f"cannot be read: {error.strerror}")
    except ValueError as error:  # a NUL character in the path
        return Outgoing(name=name, error=f"cannot be read: {error}")


def _too_large(name: str, size: int) -> Outgoing | None:
    if size <= MAX_REQUEST_BYTES:
        return None
    return Outgoing(name=name, error=f"{size} bytes; at most {MAX_REQUEST_BYTES} can be sent")
