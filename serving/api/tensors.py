"""The input tensor of the Open Inference Protocol: its forms, and the images in it."""

import math
from collections.abc import Callable, Sequence
from itertools import islice
from reprlib import Repr

from packshot.bundle import INPUT
from packshot.errors import InvalidInput
from packshot.image import ImageSpec
from packshot.oip import open_inference_pb2 as pb
from serving.pipeline import SentImage

Shape = tuple[int, ...]
CheckCount = Callable[[int], None]
"""Raises InvalidInput for a number of images that is not taken."""

LENGTH_BYTES = 4  # in front of each element of BYTES, little-endian
JPEG_START = b"\xff\xd8\xff"
MAX_DIMENSIONS = 4
MAX_NAMED = 4  # tensors that an error message lists
MAX_TYPED = 1 << 20  # values one by one, each a Python object on the way: some 50 ms of the loop

_short = Repr()
_short.maxstring = 80
quoted = _short.repr
"""A client's own words, cut to what an error message can carry."""


def images_of(
    request: pb.ModelInferRequest, spec: ImageSpec, check_count: CheckCount
) -> list[SentImage]:
    """The images of the tensor `images`, in order. Raises InvalidInput.

    BYTES [N] or [N, 1]: encoded files. UINT8 [1, n]: one file. UINT8 [N, height, width, 3]: pixels.
    """
    tensor = _only_input(request)
    shape = _shape(tensor)
    raw = request.raw_input_contents[0] if request.raw_input_contents else None
    match tensor.datatype, shape:
        case ("BYTES", (count,) | (count, 1)):
            check_count(count)
            return [SentImage(content=f, is_pixels=False) for f in _files(tensor, raw, count)]
        case "UINT8", (1, size):
            return [SentImage(content=_octets(tensor, raw, size), is_pixels=False)]
        case "UINT8", (count, *image) if tuple(image) == spec.shape:
            check_count(count)
            pixels = _octets(tensor, raw, count * math.prod(spec.shape))
            return [SentImage(content=one, is_pixels=True) for one in _split(pixels, count)]
    pixels_shape = ", ".join(map(str, ("N", *spec.shape)))
    raise InvalidInput(
        f"{INPUT} is {quoted(tensor.datatype)} {list(shape)}; send files as BYTES [N] or UINT8 "
        f"[1, n], or pixels as UINT8 [{pixels_shape}]: the network normalises them itself"
    )


def _only_input(request: pb.ModelInferRequest) -> pb.ModelInferRequest.InferInputTensor:
    names = [tensor.name for tensor in islice(request.inputs, MAX_NAMED)]
    if names != [INPUT]:
        raise InvalidInput(f"the inputs are {quoted(names)}; send one, {INPUT!r}")
    (tensor,) = request.inputs
    if "shared_memory_region" in tensor.parameters:
        raise InvalidInput(
            f"{INPUT} is in shared memory, which is not read: send it in the request"
        )
    entries = len(request.raw_input_contents)
    if entries > 1:
        raise InvalidInput(f"raw_input_contents has {entries} entries; send one, for {INPUT}")
    # An empty message in there says nothing.
    if entries and tensor.HasField("contents") and tensor.contents.ByteSize():
        raise InvalidInput(f"{INPUT} has contents beside raw_input_contents: send one of them")
    return tensor


def _shape(tensor: pb.ModelInferRequest.InferInputTensor) -> Shape:
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise InvalidInput(
            f"{INPUT} has {len(tensor.shape)} dimensions; at most {MAX_DIMENSIONS} are taken"
        )
    shape = tuple(tensor.shape)
    if any(length < 0 for length in shape):
        raise InvalidInput(f"the shape of {INPUT} is {list(shape)}; none of it may be negative")
    return shape


def _files(
    tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, count: int
) -> Sequence[bytes]:
    if raw is None:
        _check_length("bytes_contents", len(tensor.contents.bytes_contents), count)
        return tensor.contents.bytes_contents
    if count == 1 and _is_bare_jpeg(raw):
        return [raw]
    return _elements(raw, count)


def _is_bare_jpeg(raw: bytes) -> bool:
    """Without its length: some tools send files as they are."""
    # The start may also be a length, of 16 MB or more: then so much follows.
    length = int.from_bytes(raw[:LENGTH_BYTES], "little")
    return raw.startswith(JPEG_START) and length + LENGTH_BYTES != len(raw)


def _elements(raw: bytes, count: int) -> list[bytes]:
    found, at = [], 0
    for number in range(count):
        start = at + LENGTH_BYTES
        at = start + int.from_bytes(raw[at:start], "little")
        if at > len(raw):
            raise InvalidInput(
                f"element {number} of {INPUT} would end at byte {at}, and raw_input_contents has "
                f"{len(raw)}: put each file's length before it, in {LENGTH_BYTES} bytes, "
                "little-endian"
            )
        found.append(raw[start:at])
    _check_length("raw_input_contents", len(raw), at)
    return found


def _octets(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, count: int) -> bytes:
    if raw is not None:
        _check_length("raw_input_contents", len(raw), count)
        return raw
    values = tensor.contents.uint_contents
    if len(values) > MAX_TYPED:
        raise InvalidInput(
            f"uint_contents of {INPUT} has {len(values)} values; at most {MAX_TYPED} are taken in "
            "that form: send them as raw_input_contents"
        )
    _check_length("uint_contents", len(values), count)
    try:
        return bytes(values)
    except ValueError:
        raise InvalidInput(f"uint_contents of {INPUT} has a value above 255, of UINT8") from None


def _split(pixels: bytes, count: int) -> list[bytes]:
    size = len(pixels) // count
    return [pixels[at : at + size] for at in range(0, len(pixels), size)]


def _check_length(where: str, found: int, expected: int) -> None:
    if found != expected:
        unit = "bytes" if where.startswith("raw") else "values"
        raise InvalidInput(
            f"{where} of {INPUT} has {found} {unit}; the shape that was sent makes it {expected}"
        )
