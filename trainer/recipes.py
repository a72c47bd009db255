"""Recipes: every number of a training run, in one table, and the ranges that options must keep.

`python -m trainer recipes` prints it as docs/recipes.md.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from packshot.errors import InvalidInput
from packshot.image import Fit
from packshot.resizing import Resizer

if TYPE_CHECKING:  # it loads PyTorch
    from trainer.architectures import Architecture

ARCHITECTURE_NAMES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "seresnet50",
    "vit_b_16", "vit_l_16",
)  # fmt: skip
"""Those of `trainer.architectures`, for who would not load PyTorch to name them."""

RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 30),
    "batch_size": (2, 64),
    "learning_rate": (1e-5, 5e-4),
    "eval_steps": (1, 30),
    "accumulate": (1, 64),
    "patience": (0, 30),
    "mixup": (0.0, 1.0),
    "cutmix": (0.0, 1.0),
    "max_minutes": (0.1, 100_000),
    "save_minutes": (0, 1440),
    "max_damaged_share": (0.0, 0.5),
    "val_share": (0.01, 0.5),
    "test_share": (0.01, 0.5),
    "target_precision": (0.5, 0.999),  # no number of images can show that all answers are right
    "workers": (0, 64),
    "seed": (0, 2**63 - 1),
}
CHOSEN = (
    "epochs", "batch_size", "learning_rate", "eval_steps", "accumulate", "patience", "mixup",
    "cutmix",
)  # fmt: skip
"""The numbers that the user may set in a recipe."""

# BatchNorm's averages over fewer images are noise, worse than those of the pre-training.
FEWEST_FOR_BATCHNORM = 8
SERVED_SIZE = 224


Augmentation = Literal["heavy", "standard", "light"]
ClassWeights = Literal["none", "sqrt", "inverse"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Sampler = Literal["shuffled", "balanced"]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a network is trained. `stages`: (image side in pixels, share of the steps), in order."""

    name: str
    epochs: int  # 0: a fitted head on the backbone as it is, and nothing else
    batch_size: int
    learning_rate: float  # of the backbone's last stage, at its peak
    head_learning_rate_factor: float
    weight_decay: float
    label_smoothing: float
    eval_steps: int = 1  # epochs from one evaluation to the next
    stage_decay: float = 1.0  # the learning rate of a backbone stage over that of the next one
    warmup_share: float = 0.05
    final_learning_rate_share: float = 0.01
    clip_norm: float = 1.0
    ema: bool = False  # evaluate and keep a moving average of the weights
    frozen_stages: int = 0  # from the input on; the stem is the first
    frozen_batchnorm: bool = False  # keep the statistics of the pre-training
    floor: bool = False  # first fit a head on the frozen backbone: what training must beat
    fitted_head: bool = False  # training starts from that head, not from a random one
    imagenet: str = "v2"  # which of the published weights, where there are several
    stages: tuple[tuple[int, float], ...] = ((SERVED_SIZE, 1.0),)
    crop_area: tuple[float, float] = (0.5, 1.0)
    crop_aspect: tuple[float, float] = (0.85, 1.18)
    flip: bool = True  # half of the views, left to right
    colour_jitter: float = 0.2
    trivial_augment: bool = False
    erasing: float = 0.0  # probability
    mixup: float = 0.0  # alpha of the Beta distribution; 0: none
    cutmix: float = 0.0  # likewise; with both, a batch gets one of them
    accumulate: int = 1  # batches whose gradients make one step
    patience: int = 5  # evaluations at the largest size without progress; 0: never stop early
    class_weights: ClassWeights = "none"  # in the loss: of class c 1, n_c ** -0.5 or n_c ** -1
    sampler: Sampler = "shuffled"  # an epoch: each image once, or each class equally often
    batchnorm_images: int = 0  # >0: re-estimate BatchNorm's statistics on so many at the end
    band: tuple[float, float] | None = None  # the accuracy that this recipe usually gives

    @property
    def step_images(self) -> int:
        """Images that one step of the optimizer sees, in all processes together."""
        return self.batch_size * self.accumulate


def _augmentation(
    smallest_crop: float, *, jitter: float = 0.0, trivial: bool = False, erasing: float = 0.0
) -> dict[str, Any]:
    return {
        "crop_area": (smallest_crop, 1.0),
        "colour_jitter": jitter,
        "trivial_augment": trivial,
        "erasing": erasing,
    }


AUGMENTATIONS = {
    "heavy": _augmentation(0.35, trivial=True, erasing=0.1),
    "standard": _augmentation(0.5, jitter=0.2),
    "light": _augmentation(0.6),
}


def changed(recipe: Recipe, **values: Any) -> Recipe:
    return msgspec.structs.replace(recipe, **values)


# AdamW at 5e-5 with a larger rate for the new head is the published setting for fine-tuning a
# ResNet-50 on 1,000 to 10,000 images; smaller sets take smaller steps and more of them.
MEDIUM = Recipe(
    name="medium",
    epochs=8,
    batch_size=16,
    learning_rate=5e-5,
    head_learning_rate_factor=10,
    weight_decay=0.05,
    label_smoothing=0.1,
    stage_decay=0.75,
    ema=True,
    floor=True,
    **AUGMENTATIONS["standard"],
)
SMALL = changed(
    MEDIUM,
    name="small",
    epochs=15,
    batch_size=8,
    learning_rate=2e-5,
    head_learning_rate_factor=20,
    frozen_batchnorm=True,
    **AUGMENTATIONS["heavy"],
)
TINY = changed(SMALL, name="tiny", epochs=20, frozen_stages=2, imagenet="v1")
LARGE = changed(
    MEDIUM,
    name="large",
    epochs=4,
    batch_size=32,
    learning_rate=1e-4,
    label_smoothing=0.05,
    floor=False,
    **AUGMENTATIONS["light"],
)
VERY_LARGE = changed(
    LARGE, name="very-large", epochs=3, batch_size=64, head_learning_rate_factor=5, mixup=0.1
)


class SizeClass(NamedTuple):
    """What `auto` takes for a folder of so many images, with what to consider besides."""

    fewer_than: float
    recipe: Recipe
    hint: str


SIZES = (
    SizeClass(500, TINY, "under the 500 images of an acceptable result; consider --arch resnet18"),
    SizeClass(1_000, SMALL, "consider --arch resnet18 if training is far ahead of validation"),
    SizeClass(10_000, MEDIUM, ""),
    SizeClass(50_001, LARGE, "consider --arch resnet101 or vit_b_16 if accuracy is critical"),
    SizeClass(math.inf, VERY_LARGE, "consider --arch vit_b_16 or vit_l_16, unless speed counts"),
)

# The documented defaults of the explicit parameters, with the rest as for medium data.
MANUAL = changed(MEDIUM, name="manual", epochs=1, batch_size=4, learning_rate=5e-5)

# Linear probing, then fine-tuning (Kumar et al., ICLR 2022): a random head would bend good features
# before it is any good itself; one that is fitted already takes no larger steps than the backbone.
# V1: training with smoothed labels, as V2's, gives fixed features that separate new classes worse
# (Kornblith et al., NeurIPS 2021).
LAST_STAGE = changed(
    MEDIUM,
    name="last-stage",
    epochs=5,
    head_learning_rate_factor=1,
    fitted_head=True,
    frozen_stages=4,
    frozen_batchnorm=True,
    imagenet="v1",
)
HEAD_ONLY = changed(LAST_STAGE, name="head-only", epochs=0, frozen_stages=5)

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
    stages=((64, 0.64), (128, 0.31), (SERVED_SIZE, 0.05)),
    crop_area=(0.35, 1.0),
    batchnorm_images=160,
)
# Images times epochs of a run on a CPU: those of the drawn sample, and a fifth more. In few epochs
# twice the steps of half the batch teach more; and a network that has seen one size only knows
# things in that size: a fifth of the steps, half of the time, is at the size that is served.
SCRATCH_PASSES_ON_CPU = 9_000
SIZES_ON_CPU = ((64, 0.62), (128, 0.20), (SERVED_SIZE, 0.18))


class UseCase(NamedTuple):
    """A documented case: its recipe, and the ResNet-50 data that its band was measured on."""

    recipe: Recipe
    data: str


USE_CASES = (
    UseCase(
        changed(MEDIUM, name="ecommerce", epochs=8, batch_size=16, band=(0.85, 0.90)),
        "50 product categories, 250 images each",
    ),
    UseCase(
        changed(
            MEDIUM, name="xray", epochs=12, batch_size=8, learning_rate=3e-5, band=(0.90, 0.94)
        ),
        "X-rays, normal or abnormal, 1,500 images each",
    ),
    UseCase(
        changed(MEDIUM, name="plants", epochs=10, batch_size=16, band=(0.82, 0.88)),
        "30 plant species, 200 images each",
    ),
)

AUTO = "auto"
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        MANUAL,
        *(size.recipe for size in SIZES),
        *(case.recipe for case in USE_CASES),
        HEAD_ONLY,
        LAST_STAGE,
        FROM_SCRATCH,
    )
}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for. Raises InvalidInput, naming option, value and range."""

    data: Path
    run: Path
    arch: str
    weights: str
    weights_sha256: str | None = None
    without_weights: str
    recipe: str = AUTO
    epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    eval_steps: int | None = None
    accumulate: int | None = None
    patience: int | None = None
    mixup: float | None = None
    cutmix: float | None = None
    augmentation: Augmentation | None = None
    class_weights: ClassWeights | None = None
    sampler: Sampler | None = None
    flip: bool | None = None
    fit: Fit | None = None
    draft_short_side: int | None = None
    resizer: Resizer | None = None
    cache: Path | None = None
    max_minutes: float | None = None
    save_minutes: float = 5.0
    resume: bool = False
    precision: Precision = "auto"
    compile: bool = False
    deterministic: bool = False
    max_damaged_share: float
    val_share: float
    test_share: float
    target_precision: float | None = None
    workers: int
    seed: int
    yes: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                option = f"--{name.replace('_', '-')}"
                raise InvalidInput(f"{option} is {value:g}; it must be from {low:g} to {high:g}")
        if self.recipe not in (AUTO, *RECIPES):
            known = ", ".join((AUTO, *RECIPES))
            raise InvalidInput(f"--recipe is {self.recipe!r}; it must be one of {known}")
        if self.sampler == "balanced" and self.class_weights in ("sqrt", "inverse"):
            raise InvalidInput(
                f"--sampler balanced and --class-weights {self.class_weights} make up for the same "
                "imbalance twice: choose one of them"
            )
        if self.recipe == HEAD_ONLY.name and (about_loop := self.about_loop):
            raise InvalidInput(
                f"--recipe {self.recipe} fits a head once, without epochs or batches: leave out "
                f"{', '.join(about_loop)}, or name another recipe"
            )
        if self.weights == "none" and self.recipe != AUTO:
            refuse_random_weights(RECIPES[self.recipe])

    @property
    def chosen(self) -> dict[str, Any]:
        """The values that the user set in place of the recipe's."""
        names = (*CHOSEN, "class_weights", "sampler", "flip")
        values = {name: value for name in names if (value := getattr(self, name)) is not None}
        return values | (AUGMENTATIONS[self.augmentation] if self.augmentation else {})

    @property
    def about_loop(self) -> tuple[str, ...]:
        """The options given that only the training loop has a use for."""
        names = (*CHOSEN, "augmentation", "max_minutes")
        given = [name for name in names if getattr(self, name) is not None]
        return tuple(f"--{name.replace('_', '-')}" for name in given)


def size_class(images: int) -> SizeClass:
    return next(size for size in SIZES if images < size.fewer_than)


def named_recipe(options: Options, images: int, *, gpu: bool) -> Recipe:
    """The recipe asked for, as it is in the table; `images`: all that there are.

    Without a GPU `auto` is a fitted head, unless the user sets what only the loop has a use for.
    """
    if options.recipe != AUTO:
        return RECIPES[options.recipe]
    return size_class(images).recipe if gpu or options.about_loop else HEAD_ONLY


def refuse_random_weights(recipe: Recipe) -> None:
    """Raises InvalidInput for a recipe that rests on the features of pre-trained weights."""
    if recipe.fitted_head:
        raise InvalidInput(
            f"--recipe {recipe.name} needs pre-trained weights: it keeps what they learnt, and "
            f"random ones nothing; leave it out, or name --recipe {FROM_SCRATCH.name}"
        )


def recipe_for(
    options: Options, kind: "Architecture", *, images: int, pretrained: bool, gpu: bool
) -> Recipe:
    """The recipe asked for, fitted to weights, hardware and network; the user's values in it.

    Raises InvalidInput for random weights where the recipe rests on pre-trained ones.
    """
    recipe = named_recipe(options, images, gpu=gpu)
    if options.recipe == AUTO and not pretrained:
        recipe = FROM_SCRATCH if gpu else from_scratch_on_cpu(images)
    if not pretrained:
        refuse_random_weights(recipe)
        recipe = changed(recipe, floor=False, frozen_stages=0, frozen_batchnorm=False, band=None)
    if not kind.any_size:
        recipe = changed(recipe, stages=((SERVED_SIZE, 1.0),))
    if not kind.batchnorm:
        recipe = changed(recipe, batchnorm_images=0, frozen_batchnorm=False)
    fitted = changed(recipe, **options.chosen)
    if changed(fitted, eval_steps=recipe.eval_steps) != recipe:
        fitted = changed(fitted, band=None)  # it is that of the recipe unchanged
    if pretrained and kind.batchnorm and fitted.batch_size < FEWEST_FOR_BATCHNORM:
        fitted = changed(fitted, frozen_batchnorm=True)
    return fitted


def from_scratch_on_cpu(images: int) -> Recipe:
    """Fewer epochs where there are more images, two at least, with more steps at the last size.

    Crops then cut less: there is no time to overfit.
    """
    epochs = max(2, round(SCRATCH_PASSES_ON_CPU / images))
    if epochs >= FROM_SCRATCH.epochs:
        return FROM_SCRATCH
    return changed(
        FROM_SCRATCH,
        name="from-scratch-on-cpu",
        epochs=epochs,
        batch_size=8,
        stages=SIZES_ON_CPU,
        crop_area=AUGMENTATIONS["light"]["crop_area"],
    )


def against_band(recipe: Recipe, accuracy: float) -> str | None:
    """How an accuracy compares with what the recipe usually gives, if that is documented."""
    if recipe.band is None:
        return None
    low, high = recipe.band
    place = "below" if accuracy < low else "above" if accuracy > high else "inside"
    return (
        f"{accuracy:.1%} is {place} the {low:.0%} to {high:.0%} that recipe {recipe.name} usually "
        "gives with a ResNet-50"
    )
