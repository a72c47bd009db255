"""What training minimises: mixed images, their targets, and the loss."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from trainer.recipes import ClassWeights, Recipe

Mixing = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def mixing_for(recipe: Recipe, classes: int) -> Mixing:
    """Mixup (Zhang et al., ICLR 2018), CutMix (Yun et al., ICCV 2019), or one of both at random.

    The function takes images uint8 [N, H, W, 3] and labels [N], and gives float images with
    targets [N, classes]; without mixing it gives what it was given. Random choices are torch's.
    """
    kinds = []
    if recipe.mixup:
        kinds.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
    if recipe.cutmix:
        kinds.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
    if not kinds:
        return lambda images, labels: (images, labels)
    one_of_them = v2.RandomChoice(kinds)

    def mixed(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        views, targets = one_of_them(images.permute(0, 3, 1, 2).float(), labels)
        return views.permute(0, 2, 3, 1), targets

    return mixed


def summed_loss(
    logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, recipe: Recipe
) -> torch.Tensor:
    """Cross-entropy, summed over the images: parts of a batch add up, however it was cut.

    logits [N, classes]; targets: labels [N] or shares [N, classes]; weight [classes].
    """
    return cross_entropy(
        logits.float(), targets, weight, reduction="sum", label_smoothing=recipe.label_smoothing
    )


def class_weights(how: ClassWeights, counts: Sequence[int]) -> torch.Tensor:
    """Of each class in the loss, float32 [classes]; their mean over the images is 1.

    "inverse" gives every class the same say, "sqrt" goes half of the way (Mahajan et al., 2018).
    """
    power = {"none": 0.0, "sqrt": -0.5, "inverse": -1.0}[how]
    images = torch.tensor(counts, dtype=torch.float32)
    raw = images**power
    return raw * images.sum() / (raw * images).sum()
