"""What training minimises: mixed images, their targets, and the weights of classes in the loss."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import one_hot

from trainer.recipes import ClassWeights, Recipe


def mixed(
    images: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    classes: int,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al., ICLR 2018): each image laid over the next one, and so its target.

    Images uint8 [N, H, W, 3] and labels [N] to float images and targets [N, classes], or as they
    are without mixup.
    """
    alpha = recipe.mixup
    if not alpha:
        return images, labels
    share = float(rng.beta(alpha, alpha))
    targets = one_hot(labels, classes).float()
    return (
        torch.lerp(images.float().roll(1, 0), images.float(), share),
        torch.lerp(targets.roll(1, 0), targets, share),
    )


def class_weights(how: ClassWeights, counts: Sequence[int]) -> torch.Tensor:
    """Of each class in the loss, float32 [classes]; their mean over the images is 1.

    "inverse" gives every class the same say, "sqrt" goes half of the way (Mahajan et al., 2018).
    """
    power = {"none": 0.0, "sqrt": -0.5, "inverse": -1.0}[how]
    images = torch.tensor(counts, dtype=torch.float32)
    raw = images**power
    return raw * images.sum() / (raw * images).sum()
