"""Weights to start from: published ImageNet ones, a file, or an earlier run. Nothing unpickles.

`python -m trainer weights fetch` gets the published ones ahead, for a machine without a network.
"""

import hashlib
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from safetensors.torch import load_file

from packshot.errors import DamagedFile, InvalidInput, NotFound, PackshotError
from packshot.image import ImageSpec
from trainer.architectures import ARCHITECTURES, Architecture, Published, architecture
from trainer.checkpoint import RECORD, load_checkpoint
from trainer.model import PixelNetwork, Weights

DOWNLOAD_TIMEOUT_SECONDS = 20
IMAGENET = "imagenet"
# What training programs put around a state dict, and in front of its names.
WRAPPERS = ("state_dict", "model")
PREFIXES = ("module.", "backbone.")
PARTS = ("heads.head.", "head.", "fc.")  # names of a head's weight and bias

State = Mapping[str, torch.Tensor]


class WeightsUnavailable(PackshotError):
    """Pre-trained weights can neither be found nor fetched."""


class Start(NamedTuple):
    """What a network starts from, read and checked; `state` is None for random weights."""

    weights: Weights
    spec: ImageSpec
    state: State | None


RANDOM = Start(Weights(pretrained=False, source="random"), ImageSpec(), None)


def read_weights(
    arch: str, weights: str, preferred: str = "v2", sha256: str | None = None
) -> Start:
    """The weights that `--weights` names: "imagenet", "imagenet-v1", "none", a file or a run.

    `preferred`: which ImageNet weights "imagenet" means, if the architecture has them. `sha256`: of
    the file, checked. Raises WeightsUnavailable, NotFound, DamagedFile or InvalidInput.
    """
    kind = architecture(arch)
    check_weights(arch, weights)
    if sha256 is not None:
        _check_sha256_option(weights, sha256)
    if weights == "none":
        return RANDOM
    if _names_published(weights):
        return _from_imagenet(arch, published_weights(arch, weights, preferred))
    path = Path(weights)
    if path.is_dir():
        return _from_run(arch, path)
    return _from_file(kind, path, sha256)


def check_weights(arch: str, weights: str) -> None:
    """What can be known at once, before the data is scanned. Raises NotFound or InvalidInput."""
    if _names_published(weights):
        published_weights(arch, weights, "")
    elif weights != "none" and not Path(weights).exists():
        names = ", ".join(f"{IMAGENET}-{name}" for name in architecture(arch).published)
        raise NotFound(
            f"--weights {weights}: no such file or run (nor one of {IMAGENET}, {names}, none)"
        )


def _names_published(weights: str) -> bool:
    """A folder of data may well be called imagenet: ./imagenet is how to name that."""
    return weights == IMAGENET or (
        weights.startswith(f"{IMAGENET}-") and not Path(weights).exists()
    )


def fill(network: PixelNetwork, kind: Architecture, start: Start) -> None:
    """Puts the weights into the backbone. The head stays random: its classes are others.

    Raises InvalidInput for weights of another architecture, naming the first that does not fit.
    """
    if start.state is None:
        return
    backbone = {name: value for name, value in start.state.items() if not name.startswith(PARTS)}
    heads = [v for name, v in start.state.items() if name.startswith(PARTS) and v.ndim == 2]
    refusal = f"--weights: {start.weights.source} do not fit --arch"
    for head in heads:
        if head.shape[1] != kind.width:
            raise InvalidInput(
                f"{refusal}: their head is of {head.shape[1]} features, not {kind.width}; name the "
                "architecture that they are of"
            )
    expected = network.backbone.state_dict()
    if fault := _misfit(expected, backbone):
        raise InvalidInput(f"{refusal}: {fault}; name the architecture that they are of")
    network.backbone.load_state_dict(backbone)


def _misfit(expected: State, given: State) -> str | None:
    missing = [name for name in expected if name not in given]
    # Files of old torch versions have no counters.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    unknown = [name for name in given if name not in expected]
    for names, fault in ((missing, "has no"), (unknown, "has an unknown")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"the file {fault} {names[0]}{more}"
    for name, value in given.items():
        if value.shape != expected[name].shape:
            return f"{name} is {list(value.shape)}, not {list(expected[name].shape)}"
    return None


def published_weights(arch: str, weights: str, preferred: str) -> Published:
    """Raises InvalidInput for a name that the architecture has no weights of."""
    known = architecture(arch).published
    if weights == IMAGENET:
        return known.get(preferred, list(known.values())[-1])
    name = weights.removeprefix(IMAGENET).removeprefix("-")
    if name not in known:
        names = ", ".join(f"{IMAGENET}-{one}" for one in known)
        raise InvalidInput(
            f"--weights is {weights!r}; {arch} has {names} (or a file, a run's folder, none)"
        )
    return known[name]


def cached(published: Published, folder: Path | None = None) -> Path:
    """Where torch looks for the file, or where it is in `folder`."""
    return (folder or Path(torch.hub.get_dir(), "checkpoints")) / published.file


def fetch(published: Published, folder: Path | None = None) -> Path:
    """The file, downloaded if it is not there; its hash is checked in either case.

    Raises DamagedFile for a wrong hash, OSError or RuntimeError if it cannot be downloaded.
    """
    file = cached(published, folder)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with _short_timeout():
            # Into a temporary file beside it, renamed once the hash is right.
            torch.hub.download_url_to_file(published.url, str(file), _hash_in_name(published))
    _check_published_hash(file, published)
    return file


def _from_imagenet(arch: str, published: Published) -> Start:
    try:
        file = fetch(published)
    except (URLError, OSError, RuntimeError) as error:
        folder = cached(published).parent
        raise WeightsUnavailable(
            f"the ImageNet weights of {arch} are not in {folder} and cannot be downloaded "
            f"({error}). Three ways out:\n"
            f"  1. on a machine with a network: python -m trainer weights fetch --arch {arch}\n"
            f"     then copy {published.file} to {folder} (or set TORCH_HOME to a folder that has "
            "it in hub/checkpoints/)\n"
            "  2. --weights PATH: a .safetensors or .pth file of this architecture, or an earlier "
            "run's folder\n"
            "  3. --weights none: train from random weights, which takes far more images and time"
        ) from error
    weights = Weights(pretrained=True, source=f"{published.title} {_short_hash(file)}")
    return Start(weights, published.spec, _stripped(_state_from_file(file)))


def _hash_in_name(published: Published) -> str:
    found = re.search(r"-([0-9a-f]{8,})\.\w+$", published.file)
    assert found is not None, f"{published.file} has no hash in its name"
    return found[1]


def _check_published_hash(file: Path, published: Published) -> None:
    """A file is named by the start of its sha256, but torch checks only what it downloads."""
    if not _sha256(file).startswith(_hash_in_name(published)):
        raise DamagedFile(f"{file} does not have the hash in its name: delete it and try again")


def _from_file(kind: Architecture, path: Path, sha256: str | None) -> Start:
    if sha256 is not None and _sha256(path) != sha256.lower():
        raise DamagedFile(
            f"--weights {path} has sha256 {_sha256(path)}, not --weights-sha256 {sha256}: copy or "
            "download it again"
        )
    known = [one for one in kind.published.values() if one.file == path.name]
    for published in known:
        _check_published_hash(path, published)
    spec = known[0].spec if known else ImageSpec()
    source = f"{path.name} {_short_hash(path)}"
    return Start(Weights(pretrained=True, source=source), spec, _stripped(_state_from_file(path)))


def _from_run(arch: str, run: Path) -> Start:
    """An earlier run's network and the view of images that it was trained on."""
    if not (run / RECORD).exists():
        raise NotFound(f"--weights {run} is a folder without {RECORD}: name a run's folder")
    record, network = load_checkpoint(run)
    if record.architecture != arch:
        raise InvalidInput(
            f"--weights {run} is a {record.architecture}, not --arch {arch}: name that one"
        )
    source = f"run {run.name}, epoch {record.epoch}, {record.weights_file}"
    weights = Weights(pretrained=True, source=source)
    return Start(weights, record.image, _stripped(network.state_dict()))


def _state_from_file(path: Path) -> State:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # safetensors and torch raise many kinds for a file that is not theirs.
        raise DamagedFile(
            f"--weights {path} cannot be read as weights ({_reason(error)}): save the network's "
            "state_dict, best as .safetensors"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise DamagedFile(f"--weights {path} holds {type(state).__name__}, not a state dict")
    tensors = {str(name): value for name, value in state.items()}
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise DamagedFile(
                f"--weights {path} is no state dict: {name} is of type {type(value).__name__}"
            )
    return tensors


def _reason(error: Exception) -> str:
    """torch's own words for a refused pickle are an advice to run the code in it."""
    if type(error).__name__ == "UnpicklingError":
        return "no file of tensors alone; one that holds code is not opened"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _stripped(state: State) -> State:
    """torchvision's names, whatever saved them: DataParallel, or an earlier run of packshot."""
    for prefix in PREFIXES:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _check_sha256_option(weights: str, sha256: str) -> None:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InvalidInput(f"--weights-sha256 is {sha256!r}; it must be 64 hexadecimal digits")
    if not Path(weights).is_file():
        raise InvalidInput(
            f"--weights-sha256 goes with a file, and --weights is {weights!r}: published weights "
            "and runs carry hashes of their own"
        )


@contextmanager
def _short_timeout() -> Iterator[None]:
    """So that a network which swallows packets costs seconds, not for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _short_hash(path: Path) -> str:
    return f"sha256 {_sha256(path)[:16]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_all(archs: list[str], weights: str, folder: Path | None) -> list[Path]:
    """Downloads the weights of the architectures ("all": every one), and says what is where.

    Raises WeightsUnavailable, DamagedFile or InvalidInput.
    """
    files = []
    for arch in ARCHITECTURES if archs == ["all"] else archs:
        published = published_weights(arch, weights, "v2")
        try:
            file = fetch(published, folder)
        except (URLError, OSError, RuntimeError) as error:
            raise WeightsUnavailable(
                f"{published.url} cannot be downloaded ({error}): fetch it with a browser or on "
                f"another machine and put it into {cached(published, folder).parent}"
            ) from error
        print(f"{arch}: {published.title} in {file}\n  sha256 {_sha256(file)}", flush=True)
        files.append(file)
    print(
        "On the machine without a network: copy them to $TORCH_HOME/hub/checkpoints (by default "
        "~/.cache/torch/hub/checkpoints), or name one with --weights"
    )
    return files
