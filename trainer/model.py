"""The network: uint8 pixels in, logits and embedding out."""

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from packshot.image import ImageSpec
from trainer.architectures import Architecture, architecture


class Weights(NamedTuple):
    """What a network started from."""

    pretrained: bool
    source: str


class PixelNetwork(nn.Module):
    """What is trained, exported and served: normalisation, backbone, head.

    Normalisation is part of the network, so that nothing outside of it can get it wrong.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, kind: Architecture, classes: int, spec: ImageSpec) -> None:
        super().__init__()
        self.backbone = kind.build()
        setattr(self.backbone, kind.head, nn.Identity())
        self.head = nn.Linear(kind.width, classes)
        levels = 255.0
        self.register_buffer("mean", torch.tensor(spec.mean) * levels, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std) * levels, persistent=False)
        self._stages = kind.stages
        self._always_evaluating: tuple[nn.Module, ...] = ()

    @property
    def embedding_width(self) -> int:
        return int(self.head.in_features)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [N, H, W, 3] to (logits [N, classes], embedding [N, embedding_width])."""
        normal = (images.float() - self.mean) / self.std
        channels_first = normal.permute(0, 3, 1, 2)
        if torch.compiler.is_exporting():
            # The view's strides would follow it through the graph, as arithmetic on indices.
            channels_first = channels_first.contiguous()
        embedding = self.backbone(channels_first)
        return self.head(embedding), embedding

    def stage_parameters(self) -> Iterator[list[tuple[str, nn.Parameter]]]:
        """Names and parameters of the backbone's stages, from input to output."""
        for prefixes in self._stages:
            yield [p for p in self.backbone.named_parameters() if p[0].startswith(prefixes)]

    def freeze(self, stages: int, *, batchnorm: bool) -> None:
        """Holds the first `stages` of the backbone as they are, BatchNorm's statistics included.

        `batchnorm`: statistics of the other stages too. Their scales and shifts are still learnt.
        """
        for parameters in list(self.stage_parameters())[:stages]:
            for _, parameter in parameters:
                parameter.requires_grad_(False)
        frozen = tuple(prefix for prefixes in self._stages[:stages] for prefix in prefixes)
        self._always_evaluating = tuple(
            module
            for name, module in self.backbone.named_modules()
            if isinstance(module, _BatchNorm) and (batchnorm or name.startswith(frozen))
        )

    def train(self, mode: bool = True) -> Self:
        """What is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._always_evaluating:
            module.eval()
        return self


def new_network(arch: str, classes: int, spec: ImageSpec) -> PixelNetwork:
    """With random weights. Raises InvalidInput for an unknown architecture."""
    return PixelNetwork(architecture(arch), classes, spec)
