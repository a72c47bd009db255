"""What a TensorRT plan was built for, in a file beside it: `model.<gpu>.plan.json`.

Nothing inside a plan can be read without a GPU, and TensorRT's own answer to a plan of another
version or another GPU is a null pointer. So the exporter writes down what it built, and the server
compares that with what it has before it lets TensorRT near the file.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from packshot.bundle import EMBEDDING, INPUT, LOGITS, SIDECAR
from packshot.errors import DamagedFile, EngineRefused

Flavour = Literal["tensorrt", "tensorrt_rtx"]
"""The runtime that a plan is for, by the name of its import package."""

Capability = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d+\+?$")]
"""Compute capability: "9.0", or "12.0+" for that one and all later ones."""

BATCH = -1
"""In a shape: the dimension that counts images."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Images per run that the plan was built for: from, best at, up to."""

    min_batch: int
    opt_batch: int
    max_batch: int


class Tensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input or output. `dtype`: NumPy's name; `shape` begins with BATCH."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"


class PlanSidecar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan is and what it needs."""

    sha256: str  # of the plan
    flavour: Flavour
    version: str  # of TensorRT: a plan loads in no other, unless it is
    version_compatible: bool = False  # then it loads in this version and later ones
    compute_capabilities: tuple[Capability, ...]
    profiles: tuple[Profile, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    source_sha256: str  # of the ONNX file that it was built from


def sidecar_path(plan: Path) -> Path:
    return plan.with_name(plan.name + SIDECAR)


def read_sidecar(path: Path) -> PlanSidecar:
    """Raises DamagedFile if there is none, or if it is not one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=PlanSidecar)
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise DamagedFile(f"{path} does not describe a TensorRT plan: {error}") from error


def check_plan(
    sidecar: PlanSidecar,
    plan: bytes,
    *,
    compute_capability: str,
    max_batch: int,
    image_shape: tuple[int, int, int],
) -> None:
    """Everything that can be known before TensorRT is imported.

    Raises EngineRefused: damaged, wrong_gpu or wrong_shape.
    """
    actual = hashlib.sha256(plan).hexdigest()
    if actual != sidecar.sha256:
        raise EngineRefused(
            "damaged", f"the plan has sha256 {actual[:12]}, its sidecar says {sidecar.sha256[:12]}"
        )
    if not any(
        _covers(built_for, compute_capability) for built_for in sidecar.compute_capabilities
    ):
        raise EngineRefused(
            "wrong_gpu",
            f"built for compute capability {', '.join(sidecar.compute_capabilities)}; this GPU has "
            f"{compute_capability}: export a plan on such a GPU",
        )
    check_tensors(sidecar.inputs, sidecar.outputs, image_shape)
    profile_for(sidecar, max_batch)


def check_runtime(sidecar: PlanSidecar, *, flavour: str, version: str) -> None:
    """Raises EngineRefused (wrong_flavour, wrong_version) unless this runtime loads the plan."""
    if flavour != sidecar.flavour:
        raise EngineRefused(
            "wrong_flavour", f"built for {sidecar.flavour}; {flavour} is what is installed here"
        )
    if sidecar.version_compatible and _numbers(version) >= _numbers(sidecar.version):
        return
    if version != sidecar.version:
        or_later = " or later" if sidecar.version_compatible else ""
        raise EngineRefused(
            "wrong_version",
            f"built by {flavour} {sidecar.version}, which {flavour} {version} cannot load: "
            f"install {sidecar.version}{or_later}, or export again",
        )


def largest_batch(profiles: Iterable[Profile]) -> int:
    """Most images of a profile that takes single ones as well, as a server needs it; 0 if none."""
    return max((one.max_batch for one in profiles if one.min_batch <= 1), default=0)


def profile_for(sidecar: PlanSidecar, max_batch: int) -> int:
    """Index of a profile that takes 1 to `max_batch` images.

    Raises EngineRefused (wrong_shape) if there is none.
    """
    for index, profile in enumerate(sidecar.profiles):
        if profile.min_batch <= 1 and max_batch <= profile.max_batch:
            return index
    built_for = ", ".join(f"{p.min_batch} to {p.max_batch}" for p in sidecar.profiles)
    raise EngineRefused(
        "wrong_shape",
        f"built for batches of {built_for or 'no size'}; 1 to {max_batch} are needed: "
        "export it for more, or lower --max-batch",
    )


def check_tensors(
    inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], image_shape: tuple[int, int, int]
) -> None:
    """Raises EngineRefused (wrong_shape) unless they are what every engine of a bundle has."""
    expected = Tensor(name=INPUT, dtype="uint8", shape=(BATCH, *image_shape))
    if inputs != (expected,):
        raise EngineRefused(
            "wrong_shape", f"its inputs are {listed(inputs)}, not {listed((expected,))}"
        )
    found = {tensor.name: (tensor.dtype, tensor.shape[:-1]) for tensor in outputs}
    if found != dict.fromkeys((LOGITS, EMBEDDING), ("float32", (BATCH,))):
        raise EngineRefused(
            "wrong_shape",
            f"its outputs are {listed(outputs)}, not {LOGITS} float32 [{BATCH}, classes] "
            f"and {EMBEDDING} float32 [{BATCH}, features]",
        )


def _covers(built_for: str, compute_capability: str) -> bool:
    if built_for.endswith("+"):
        return _numbers(compute_capability) >= _numbers(built_for[:-1])
    return compute_capability == built_for


def _numbers(dotted: str) -> tuple[int, ...]:
    """Of a compute capability or a version: the later one is the greater."""
    return tuple(int(number) for number in re.findall(r"\d+", dotted))


def listed(tensors: Iterable[Tensor]) -> str:
    """For a message."""
    return ", ".join(str(tensor) for tensor in tensors) or "none"
