"""A moving average of a network's weights: what is evaluated and kept, steadier than the last."""

import copy

import torch

from trainer.model import PixelNetwork


class Average:
    """Exponential moving average (EMA) of weights and BatchNorm statistics.

    It reaches back about a fifth of the run, and less at its start: later averages would hold on to
    the random head (torchvision's ImageNet recipe has the decay, TensorFlow's EMA the warm-up).
    """

    def __init__(self, network: PixelNetwork, steps: int) -> None:
        self.network = copy.deepcopy(network).eval()
        self._decay = min(0.9998, 1 - 1 / max(1.0, steps / 5))

    @torch.no_grad()
    def update(self, network: PixelNetwork, step: int) -> None:
        """Takes in the weights after the step of this number, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        current = network.state_dict()
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], 1 - decay)
            else:
                value.copy_(current[name])
