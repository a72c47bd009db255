"""The state of an unfinished run: with it, a run that was killed ends as if it had not been.

runs/<name>/state.safetensors    tensors, and in its header the rest as JSON; replaced in one step
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from packshot.atomic import write_whole
from packshot.errors import DamagedFile, InvalidInput
from packshot.image import ImageSpec
from packshot.resizing import Resizer
from trainer.checkpoint import RECORD, STATE, Checkpoint, read_record
from trainer.course import Patience
from trainer.evaluate import Rank
from trainer.learner import Learner, Scalars
from trainer.model import Weights
from trainer.recipes import Recipe

HEADER = "progress"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What must be the same in a run that is gone on with."""

    architecture: str
    data: str  # fingerprint
    image: ImageSpec
    recipe: Recipe
    weights: Weights
    seed: int


def identity_of(record: Checkpoint) -> Identity:
    return Identity(
        architecture=record.architecture,
        data=record.data_fingerprint,
        image=record.image,
        recipe=record.recipe,
        weights=record.weights,
        seed=record.seed,
    )


class Progress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the run stands after `step` of `steps`; losses since the last evaluation."""

    identity: Identity
    step: int
    steps: int
    losses: tuple[float, ...]
    standing: Rank | None  # of the best checkpoint: see `Keeper`
    patience: Patience
    scalars: Scalars


class State(msgspec.Struct, frozen=True, kw_only=True):
    """As read back. `tensors`: see `Learner.tensors`."""

    progress: Progress
    tensors: dict[str, torch.Tensor]


def save_state(run: Path, progress: Progress, learner: Learner) -> None:
    tensors = {name: value.cpu().contiguous() for name, value in learner.tensors().items()}
    header = {HEADER: msgspec.json.encode(progress).decode()}
    write_whole(run / STATE, save(tensors, header))


def read_state(run: Path) -> State | None:
    """None where no run was left unfinished. Raises DamagedFile."""
    path = run / STATE
    if not path.exists():
        return None
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        return State(progress=_progress(file), tensors=tensors)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, msgspec.MsgspecError) as error:
        raise DamagedFile(
            f"{path} cannot be read: {error}; remove it, or train anew without --resume"
        ) from error


def _progress(file: Any) -> Progress:
    return msgspec.json.decode((file.metadata() or {}).get(HEADER, ""), type=Progress)


def resizer_of(run: Path) -> Resizer | None:
    """Of an unfinished or finished run, None where there is none. Raises DamagedFile."""
    if (run / STATE).exists():
        with _opened(run / STATE) as file:
            return _progress(file).identity.image.resizer
    return read_record(run).image.resizer if (run / RECORD).exists() else None


def remove_state(run: Path) -> None:
    (run / STATE).unlink(missing_ok=True)


def check_identity(found: Identity, wanted: Identity, run: Path) -> None:
    """Raises InvalidInput, naming what is not as it was when the run began."""
    before, now = (_flat(one) for one in (found, wanted))
    for name, value in now.items():
        if before[name] != value:
            raise InvalidInput(
                f"--resume: {name} is {value!r} now and was {before[name]!r} when the run in {run} "
                "began: give the same options and data, or train anew without --resume"
            )


def _flat(identity: Identity) -> dict[str, object]:
    top = msgspec.structs.asdict(identity)
    for part in ("recipe", "image"):
        values = msgspec.structs.asdict(top.pop(part))
        top |= {f"{part}.{name}": value for name, value in values.items()}
    return top
