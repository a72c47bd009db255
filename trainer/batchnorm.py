"""BatchNorm's running statistics, measured anew."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from packshot.image import Pixels
from trainer.evaluate import EVALUATION_BATCH
from trainer.model import PixelNetwork


def reestimate_batchnorm(network: PixelNetwork, views: Pixels) -> bool:
    """Replaces the running statistics by plain averages over `views`, at the size served.

    Statistics gathered on smaller pictures do not hold at a larger size. Frozen ones stay; returns
    whether there were others.
    """
    network.train()
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average
    with torch.no_grad():
        for i in range(0, len(views) if layers else 0, EVALUATION_BATCH):
            network(torch.from_numpy(views[i : i + EVALUATION_BATCH]).to(network.mean.device))
    for layer in layers:
        layer.momentum = 0.1  # torch's default
    return bool(layers)
