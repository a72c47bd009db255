"""Recipes: every number of a training run, in one table, and the ranges that options must keep."""

from pathlib import Path
from typing import Literal

import msgspec

from packshot.errors import InvalidInput

RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 30),
    "batch_size": (2, 64),
    "learning_rate": (1e-5, 5e-4),
    "max_damaged_share": (0.0, 0.5),
    "val_share": (0.01, 0.5),
    "test_share": (0.01, 0.5),
    "workers": (0, 64),
    "seed": (0, 2**63 - 1),
}


ClassWeights = Literal["none", "sqrt", "inverse"]
Sampler = Literal["shuffled", "balanced"]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a network is trained. `stages`: (image side in pixels, share of the steps), in order."""

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate_factor: float
    weight_decay: float
    label_smoothing: float
    warmup_share: float = 0.05
    final_learning_rate_share: float = 0.01
    clip_norm: float = 1.0
    stages: tuple[tuple[int, float], ...] = ((224, 1.0),)
    crop_area: tuple[float, float] = (0.5, 1.0)
    crop_aspect: tuple[float, float] = (0.85, 1.18)
    colour_jitter: float = 0.2
    class_weights: ClassWeights = "none"  # in the loss: of class c 1, n_c ** -0.5 or n_c ** -1
    sampler: Sampler = "shuffled"  # an epoch: each image once, or each class equally often
    batchnorm_images: int = 0  # >0: re-estimate BatchNorm's statistics on so many at the end


# AdamW at 5e-5 with a larger rate for the new head is the published setting for fine-tuning a
# ResNet-50 on 1,000 to 10,000 images.
FINE_TUNE = Recipe(
    name="fine-tune",
    epochs=8,
    batch_size=16,
    learning_rate=5e-5,
    head_learning_rate_factor=10,
    weight_decay=0.05,
    label_smoothing=0.1,
)

# The same on a CPU, with a fifth of the work: fewer epochs, most steps at 128 px.
FINE_TUNE_ON_CPU = msgspec.structs.replace(
    FINE_TUNE, name="fine-tune-on-cpu", epochs=3, stages=((128, 0.7), (224, 0.3))
)

# From random weights on few cores: most steps on small pictures, a twelfth of the pixels each, a
# last few at the size that is served, and BatchNorm's statistics measured at that size (progressive
# resizing; FixRes, Touvron et al., 2019). Rates above 1e-3 do not learn at all here.
FROM_SCRATCH = Recipe(
    name="from-scratch",
    epochs=10,
    batch_size=16,
    learning_rate=5e-4,
    head_learning_rate_factor=1,
    weight_decay=0.02,
    label_smoothing=0.05,
    stages=((64, 0.64), (128, 0.31), (224, 0.05)),
    crop_area=(0.35, 1.0),
    batchnorm_images=160,
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for. Raises InvalidInput, naming option, value and range."""

    data: Path
    run: Path
    arch: str
    weights: str
    without_weights: str
    epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    class_weights: ClassWeights | None = None
    sampler: Sampler | None = None
    cache: Path | None = None
    max_damaged_share: float
    val_share: float
    test_share: float
    workers: int
    seed: int

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                option = f"--{name.replace('_', '-')}"
                raise InvalidInput(f"{option} is {value:g}; it must be from {low:g} to {high:g}")
        if self.sampler == "balanced" and self.class_weights in ("sqrt", "inverse"):
            raise InvalidInput(
                f"--sampler balanced and --class-weights {self.class_weights} make up for the same "
                "imbalance twice: choose one of them"
            )


def recipe_for(options: Options, *, pretrained: bool, gpu: bool) -> Recipe:
    """The recipe with the user's values in place of its own."""
    recipe = (FINE_TUNE if gpu else FINE_TUNE_ON_CPU) if pretrained else FROM_SCRATCH
    names = ("epochs", "batch_size", "learning_rate", "class_weights", "sampler")
    chosen = {name: value for name in names if (value := getattr(options, name)) is not None}
    return msgspec.structs.replace(recipe, **chosen)
