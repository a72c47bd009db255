"""The network: uint8 pixels in, logits and embedding out; torchvision's backbones and weights."""

import hashlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from packshot.errors import DamagedFile, InvalidInput, NotFound, PackshotError
from packshot.image import ImageSpec
from trainer.recipes import ARCHITECTURES

models = torchvision.models


class Architecture(NamedTuple):
    """A torchvision classifier whose last layer is `fc`."""

    build: Callable[..., nn.Module]
    imagenet: Any  # torchvision's weights


DOWNLOAD_TIMEOUT_SECONDS = 20


class WeightsUnavailable(PackshotError):
    """Pre-trained weights can neither be found nor fetched."""


class PixelNetwork(nn.Module):
    """What is trained, exported and served: normalisation, backbone, head.

    Normalisation is part of the network, so that nothing outside of it can get it wrong.
    """

    def __init__(self, backbone: nn.Module, classes: int, spec: ImageSpec) -> None:
        super().__init__()
        width = backbone.fc.in_features
        backbone.fc = nn.Identity()
        self.backbone = backbone
        self.head = nn.Linear(width, classes)
        levels = 255.0
        self.register_buffer("mean", torch.tensor(spec.mean) * levels, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std) * levels, persistent=False)

    @property
    def embedding_width(self) -> int:
        return int(self.head.in_features)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [N, H, W, 3] to (logits [N, classes], embedding [N, embedding_width])."""
        normal = (images.float() - self.mean) / self.std
        embedding = self.backbone(normal.permute(0, 3, 1, 2))
        return self.head(embedding), embedding


def architecture(name: str) -> Architecture:
    """Raises InvalidInput for a name that is not in the table."""
    if name not in ARCHITECTURES:
        raise InvalidInput(f"--arch is {name!r}; it must be one of {', '.join(ARCHITECTURES)}")
    weights = models.get_model_weights(name)[ARCHITECTURES[name]]
    return Architecture(models.get_model_builder(name), weights)


def new_network(arch: str, classes: int, spec: ImageSpec) -> PixelNetwork:
    """With random weights."""
    return PixelNetwork(architecture(arch).build(), classes, spec)


class Weights(NamedTuple):
    """What a network started from."""

    pretrained: bool
    source: str


def load_weights(network: PixelNetwork, arch: str, weights: str) -> Weights:
    """Fills the backbone from "imagenet", "none" or a file; the head stays random.

    Raises WeightsUnavailable, NotFound, DamagedFile or InvalidInput.
    """
    if weights == "none":
        return Weights(pretrained=False, source="random")
    if weights == "imagenet":
        wanted = architecture(arch).imagenet
        _load_backbone(network, _imagenet_state(arch), str(wanted))
        return Weights(pretrained=True, source=str(wanted))
    path = Path(weights)
    _load_backbone(network, _state_from_file(path), weights)
    return Weights(pretrained=True, source=f"{path.name} sha256 {_sha256(path)[:16]}")


def _imagenet_state(arch: str) -> dict[str, torch.Tensor]:
    wanted = architecture(arch).imagenet
    file = Path(torch.hub.get_dir(), "checkpoints", Path(wanted.url).name)
    _check_published_hash(file)
    try:
        with _short_timeout():
            return wanted.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsUnavailable(
            f"the ImageNet weights of {arch} are not in {file.parent} and cannot be downloaded "
            f"({error}). Three ways out:\n"
            f"  1. put {file.name} there yourself (or set TORCH_HOME to a folder that has it as "
            "hub/checkpoints/), fetched on a machine with a network\n"
            "  2. --weights PATH: a .safetensors or .pth file of this architecture\n"
            "  3. --weights none: train from random weights, which takes far more images and time"
        ) from error


def _check_published_hash(file: Path) -> None:
    """torchvision names a file by the start of its sha256, but checks only what it downloads."""
    expected = file.stem.rsplit("-", 1)[-1]
    if file.exists() and not _sha256(file).startswith(expected):
        raise DamagedFile(f"{file} does not have the hash in its name: delete it and try again")


def _state_from_file(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise NotFound(f"--weights {path}: no such file (nor one of imagenet, none)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # safetensors and torch raise many kinds for a file that is not theirs.
        raise DamagedFile(f"--weights {path} cannot be read as weights: {error}") from error
    if not isinstance(state, dict):
        raise DamagedFile(f"--weights {path} holds {type(state).__name__}, not a state dict")
    return state


def _load_backbone(network: PixelNetwork, state: dict[str, torch.Tensor], source: str) -> None:
    """Accepts torchvision's names and those of an earlier checkpoint of packshot."""
    backbone = {
        str(name).removeprefix("backbone."): value
        for name, value in state.items()
        if not str(name).startswith(("fc.", "head."))
    }
    try:
        network.backbone.load_state_dict(backbone)
    except (RuntimeError, TypeError) as error:
        first = str(error).strip().splitlines()[1:2] or [str(error)]
        raise InvalidInput(f"--weights {source} do not fit --arch: {first[0].strip()}") from error


@contextmanager
def _short_timeout() -> Iterator[None]:
    """So that a network which swallows packets costs seconds, not for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
