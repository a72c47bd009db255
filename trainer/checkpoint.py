"""The checkpoint of a run: weights as safetensors, everything else as JSON. Nothing is pickled.

runs/<name>/checkpoint.json            names the weights file and its hash; replaced in one step
runs/<name>/weights-<hash>.safetensors
runs/<name>/data-<fingerprint>.json    the split: which file was trained on, which held out
"""

import hashlib
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from packshot.atomic import write_whole
from packshot.bundle import to_json
from packshot.errors import DamagedFile, NotFound
from packshot.image import ImageSpec
from packshot.record import decode_record
from trainer.data import Split
from trainer.evaluate import Evaluation
from trainer.model import PixelNetwork, Weights, new_network
from trainer.probe import Floor
from trainer.recipes import Recipe

FORMAT = 1
RECORD = "checkpoint.json"
STATE = "state.safetensors"
DIGITS = 12  # of a hash that are in a name
WEIGHTS = f"weights-{'[0-9a-f]' * DIGITS}.safetensors"  # as `glob` takes it: of nobody else's file
SPLITS = f"data-{'[0-9a-f]' * DIGITS}.json"


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was trained, how, on what, and how good it is."""

    format: int = FORMAT
    architecture: str
    labels: tuple[str, ...]
    image: ImageSpec
    recipe: Recipe
    weights: Weights
    seed: int
    epoch: int
    step: int
    validation: Evaluation
    floor: Floor | None = None  # what a head on the frozen backbone reaches, where it was fitted
    # Set by `trainer.finish`, once training has ended or was interrupted:
    finished: bool = False
    interrupted_at: int | None = None  # the epoch in which training was cut short
    test: Evaluation | None = None
    temperature: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    min_confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    data_fingerprint: str
    versions: dict[str, str]
    weights_file: str = ""
    weights_sha256: str = ""

    @property
    def trained_to_the_end(self) -> bool:
        return self.finished and self.interrupted_at is None


def save_checkpoint(
    run: Path, record: Checkpoint, network: PixelNetwork, split: Split
) -> Checkpoint:
    """Writes weights and split, then the record that names them, then removes what it replaces."""
    state = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
    content = save(state)
    digest = hashlib.sha256(content).hexdigest()
    name = f"weights-{digest[:DIGITS]}.safetensors"
    write_whole(run / name, content)
    record = msgspec.structs.replace(record, weights_file=name, weights_sha256=digest)
    write_whole(split_path(run, record), msgspec.json.encode(split))
    save_record(run, record)
    current = {run / name, split_path(run, record)}
    for old in {*run.glob(WEIGHTS), *run.glob(SPLITS)} - current:
        old.unlink()
    return record


def save_record(run: Path, record: Checkpoint) -> None:
    write_whole(run / RECORD, to_json(record))


def load_checkpoint(run: Path) -> tuple[Checkpoint, PixelNetwork]:
    """The record and its network, in evaluation mode. Raises NotFound or DamagedFile."""
    record = read_record(run)
    path = run / record.weights_file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path} is missing: train again, or copy the whole run folder") from error
    if hashlib.sha256(content).hexdigest() != record.weights_sha256:
        raise DamagedFile(f"{path} does not have the hash in {RECORD}: train or copy it again")
    network = new_network(record.architecture, len(record.labels), record.image)
    try:
        network.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise DamagedFile(f"{path} does not fit {record.architecture}: {error}") from error
    return record, network.eval()


def read_record(run: Path) -> Checkpoint:
    """Raises NotFound or DamagedFile."""
    path = run / RECORD
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFound(
            f"no checkpoint in {run}: run `make train`, or name another --run"
        ) from error
    return decode_record(content, Checkpoint, path=path, what="checkpoint", reads=FORMAT)


def split_path(run: Path, record: Checkpoint) -> Path:
    return run / f"data-{record.data_fingerprint[:DIGITS]}.json"


def load_split_of(run: Path, record: Checkpoint, data: Path | None = None) -> Split:
    """The split that the checkpoint was trained on. Raises NotFound or DamagedFile.

    `data`: where the images are now, if not where they were in training.
    """
    path = split_path(run, record)
    try:
        split = msgspec.json.decode(path.read_bytes(), type=Split)
    except OSError as error:
        raise NotFound(f"{path} is missing: copy the whole run folder, or train again") from error
    except msgspec.MsgspecError as error:
        raise DamagedFile(f"{path} is not a split: {error}") from error
    return split if data is None else msgspec.structs.replace(split, folder=str(data.resolve()))


def versions() -> dict[str, str]:
    """Of what trained the network."""
    import torchvision

    from packshot import __version__

    return {
        "packshot": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }
