"""BatchNorm's running statistics, measured anew."""

import torch
from torch import nn

from packshot.image import Pixels
from trainer.evaluate import EVALUATION_BATCH
from trainer.model import PixelNetwork


def reestimate_batchnorm(network: PixelNetwork, views: Pixels) -> None:
    """Replaces the running statistics by plain averages over `views`, at the size served.

    Statistics gathered on smaller pictures do not hold at a larger size.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average
    network.train()
    with torch.no_grad():
        for i in range(0, len(views), EVALUATION_BATCH):
            network(torch.from_numpy(views[i : i + EVALUATION_BATCH]).to(network.mean.device))
    for layer in layers:
        layer.momentum = 0.1  # torch's default
