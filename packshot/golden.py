"""Golden samples: a few images with PyTorch's answers, to check any engine with, anywhere."""

import io
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from packshot.errors import AnswersDiffer, DamagedFile
from packshot.image import ImageSpec, load_pixels, stack
from packshot.prediction import Logits

Run = Callable[[npt.NDArray[np.uint8]], Logits]
"""uint8 [N, crop, crop, 3] to float32 logits [N, classes]."""

# Another build of libjpeg may round differently: a level or two, never more.
PIXEL_TOLERANCE = 2


class GoldenSamples(msgspec.Struct, frozen=True, kw_only=True):
    """Encoded images, their pixels uint8 [N, crop, crop, 3], PyTorch's logits [N, classes]."""

    encoded: tuple[bytes, ...]
    pixels: npt.NDArray[np.uint8]
    logits: Logits

    def to_bytes(self) -> bytes:
        """An .npz archive without pickled objects: encoded images joined, with their lengths."""
        file = io.BytesIO()
        joined = np.frombuffer(b"".join(self.encoded), np.uint8)
        lengths = np.array([len(one) for one in self.encoded], np.int64)
        np.savez_compressed(
            file, encoded=joined, lengths=lengths, pixels=self.pixels, logits=self.logits
        )
        return file.getvalue()


def read_golden(content: bytes) -> GoldenSamples:
    """Raises DamagedFile if `content` is not what `GoldenSamples.to_bytes` wrote."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            ends = np.cumsum(arrays["lengths"])
            joined = arrays["encoded"].tobytes()
            starts = [0, *ends[:-1].tolist()]
            encoded = tuple(joined[a:b] for a, b in zip(starts, ends.tolist(), strict=True))
            return GoldenSamples(encoded=encoded, pixels=arrays["pixels"], logits=arrays["logits"])
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds on foreign bytes
        raise DamagedFile(f"golden samples cannot be read: {error}") from error


def make_golden(encoded: Sequence[bytes], spec: ImageSpec, run: Run) -> GoldenSamples:
    """Golden samples from encoded images and the trained network `run`."""
    pixels = stack([load_pixels(one, spec) for one in encoded])
    return GoldenSamples(encoded=tuple(encoded), pixels=pixels, logits=run(pixels))


def check_pixels(samples: GoldenSamples, spec: ImageSpec) -> int:
    """Decodes the samples as the server would; returns the largest difference in grey levels.

    Raises AnswersDiffer above `PIXEL_TOLERANCE`.
    """
    decoded = stack([load_pixels(one, spec) for one in samples.encoded])
    difference = int(np.abs(decoded.astype(np.int16) - samples.pixels.astype(np.int16)).max())
    if difference > PIXEL_TOLERANCE:
        raise AnswersDiffer(
            f"decoded golden images differ by {difference} grey levels from those of training "
            f"(at most {PIXEL_TOLERANCE}): this machine's image libraries decode differently"
        )
    return difference


def check_answers(logits: Logits, expected: Logits, tolerance: float) -> float:
    """Returns the largest |logit difference| from `expected`, PyTorch's of the same images.

    Raises AnswersDiffer if it exceeds `tolerance`.
    """
    if logits.shape != expected.shape:
        raise AnswersDiffer(
            f"the engine gives logits {list(logits.shape)}, the golden samples have "
            f"{list(expected.shape)}"
        )
    difference = float(np.abs(logits - expected).max())
    if not difference <= tolerance:  # so that NaN fails as well
        raise AnswersDiffer(
            f"logits of the golden samples differ by {difference:.4g} from PyTorch's "
            f"(at most {tolerance:.4g})"
        )
    return difference
