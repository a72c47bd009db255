"""docs/recipes.md, made of the tables of recipes and architectures."""

import textwrap
from collections.abc import Iterable, Sequence

from trainer.architectures import ARCHITECTURES
from trainer.budget import LEAST_FROM_SCRATCH
from trainer.probe import STRENGTHS
from trainer.recipes import (
    AUGMENTATIONS,
    CHOSEN,
    FEWEST_FOR_BATCHNORM,
    FROM_SCRATCH,
    HEAD_ONLY,
    LAST_STAGE,
    MANUAL,
    RANGES,
    SCRATCH_PASSES_ON_CPU,
    SIZES,
    USE_CASES,
    Recipe,
)

INTRODUCTION = """# Recipes

Written by `python -m trainer recipes`; a test holds it to the code.

A recipe is every number of a training run. `--recipe auto`, the default, takes one by the number of
images; any other can be named. Whatever is set by an option (`--epochs 5`) takes the place of the
recipe's own value.
"""
EXPLICIT = """
## Explicit parameters

`--recipe manual` starts from these defaults. The ranges hold for every recipe. Evaluation steps
count epochs: 1 evaluates after each of them.
"""
BY_SIZE = """
## By the number of images

What `auto` takes where there are pre-trained weights and a GPU; without a GPU only if one of the
options above is given, with a warning that it is slow.
"""
COMMON = f"""
All of them: AdamW, weight decay {SIZES[0].recipe.weight_decay:g} on matrices only, a warm-up over
{SIZES[0].recipe.warmup_share:.0%} of the steps and then a cosine, gradients clipped to a norm of
{SIZES[0].recipe.clip_norm:g}, the best checkpoint kept by macro-F1 on validation. The learning rate
is that of the backbone's last stage; each stage before it has {SIZES[0].recipe.stage_decay:g} of
the rate of the next. EMA: a moving average of the weights is what is evaluated and kept. Frozen
BatchNorm keeps the statistics of the pre-training; so does any batch under
{FEWEST_FOR_BATCHNORM} images. Floor: a head is fitted on the frozen backbone first, as below; it is
the first checkpoint, so that what is kept is never worse by macro-F1 on validation, and the end
says whether training got above it.

Augmentation is a random crop and flip (`--no-flip` for what means something else left to right),
and:

- heavy: crops from 35 % of the area, TrivialAugment (wide), random erasing of one image in ten;
- standard: crops from 50 %, brightness, contrast and colour changed by up to 20 %;
- light: crops from 60 %.
"""
HEAD = f"""
## A fitted head

`{HEAD_ONLY.name}` is what `auto` takes on a CPU with pre-trained weights. The embeddings of
training and validation images, as the server sees them, are computed once; a logistic regression on
them is the head, and nothing is trained. The L2 penalty is the best of
{", ".join(f"{strength:g}" for strength in STRENGTHS)} by macro-F1, then loss, on validation (on
features standardised to a mean square of 1 an image). Class weights count as in training;
`--sampler balanced` means inverse ones here, as there is no sampling. With `--cache DIR` the
embeddings are kept, by the weights' and each image's hash: another split, seed or weighting
computes none of them again.

`{LAST_STAGE.name}` goes on from there (linear probing, then fine-tuning: Kumar et al., ICLR 2022):
{LAST_STAGE.epochs} epochs of batch size {LAST_STAGE.batch_size} at {LAST_STAGE.learning_rate:g},
the head at the same rate, augmentation as for medium data; the backbone's last stage learns, with
BatchNorm's statistics frozen, and all before it stays as it is. A `{HEAD_ONLY.name}` run ends with
the command for it. Both need pre-trained weights.
"""
CASES = """
## Documented cases

As for medium data where nothing else is said. The accuracy is what the case usually gives with a
ResNet-50 from ImageNet weights; the report says whether a run is below, inside or above it.
"""
SCRATCH = f"""
## From random weights

`from-scratch` is what `auto` takes with `--weights none`, and what the drawn sample is trained with
where no weights can be had: {FROM_SCRATCH.epochs} epochs, batch size {FROM_SCRATCH.batch_size},
learning rate {FROM_SCRATCH.learning_rate:g}, most steps on small pictures. It will not do for
photographs. On a CPU, from about {SCRATCH_PASSES_ON_CPU // FROM_SCRATCH.epochs:,} images on there
are fewer epochs, {SCRATCH_PASSES_ON_CPU:,} over the number of images but two at least, of batches
of 8 with light crops, and more of the steps are at 224 px. A run whose steps can hardly move a
weight (learning rate x 0.5 x steps under {LEAST_FROM_SCRATCH:g}) is refused, unless `--yes`.
"""
NETWORKS = """
## Architectures

`--arch`, with the ImageNet weights that `--weights imagenet-NAME` starts from and the short side
that pictures are resized to for them (the crop is 224 px). Plain `imagenet` means V1 for tiny data
and fitted heads, and the newest otherwise. The checkpoint, and so the server, keeps that view of
pictures. ViTs take 224 px only. Freezing and learning rates go by stages: the stem and four more, a
ViT's blocks in four quarters.

With `--fit pad` no part of a picture is cut off: its long side becomes 224 px, on a white square.
"""
FROZEN = {0: "", 2: "stem, first stage"}


def page() -> str:
    """docs/recipes.md."""
    return "".join(
        (
            INTRODUCTION,
            EXPLICIT,
            _explicit(),
            BY_SIZE,
            _sizes(),
            _filled(COMMON),
            _filled(HEAD),
            CASES,
            _cases(),
            _filled(SCRATCH),
            NETWORKS,
            _architectures(),
        )
    )


def _filled(text: str) -> str:
    """Paragraphs in full lines again, after numbers were put in."""
    parts = text.strip("\n").split("\n\n")
    filled = [part if part.startswith(("-", "#")) else textwrap.fill(part, 100) for part in parts]
    return "\n" + "\n\n".join(filled) + "\n"


def augmentation_of(recipe: Recipe) -> str:
    """Its name in the table of augmentations."""
    for name, values in AUGMENTATIONS.items():
        if all(getattr(recipe, field) == value for field, value in values.items()):
            return name
    return f"of recipe {recipe.name}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def _explicit() -> str:
    rows = []
    for name in CHOSEN:
        low, high = RANGES[name]
        option = f"`--{name.replace('_', '-')}`"
        rows.append((option, f"{getattr(MANUAL, name):g}", f"{low:g} to {high:g}"))
    return _table(("option", "default", "range"), rows)


def _sizes() -> str:
    head = (
        "recipe", "images", "epochs", "batch size", "learning rate", "head", "augmentation",
        "label smoothing", "mixup", "EMA", "frozen", "floor", "hint",
    )  # fmt: skip
    fewest: float = 0
    rows = []
    for size in SIZES:
        most = size.fewer_than - 1
        count = f"{fewest:,} to {most:,}" if most != float("inf") else f"{fewest:,} and more"
        rows.append((size.recipe.name, count, *_numbers(size.recipe), size.hint))
        fewest = size.fewer_than
    return _table(head, rows)


def _numbers(recipe: Recipe) -> tuple[object, ...]:
    frozen = [FROZEN[recipe.frozen_stages], "BatchNorm" if recipe.frozen_batchnorm else ""]
    return (
        recipe.epochs,
        recipe.batch_size,
        f"{recipe.learning_rate:g}",
        f"x{recipe.head_learning_rate_factor:g}",
        augmentation_of(recipe),
        f"{recipe.label_smoothing:g}",
        f"{recipe.mixup:g}" if recipe.mixup else "",
        "on" if recipe.ema else "off",
        ", ".join(part for part in frozen if part),
        "on" if recipe.floor else "off",
    )


def _cases() -> str:
    head = ("recipe", "data", "epochs", "batch size", "learning rate", "accuracy")
    rows = []
    for recipe, data in USE_CASES:
        assert recipe.band is not None
        low, high = recipe.band
        rate = f"{recipe.learning_rate:g}"
        rows.append(
            (recipe.name, data, recipe.epochs, recipe.batch_size, rate, f"{low:.0%} to {high:.0%}")
        )
    return _table(head, rows)


def _architectures() -> str:
    head = ("architecture", "parameters", "embedding", "ImageNet weights: resize", "good for")
    rows = []
    for name, kind in ARCHITECTURES.items():
        published = ", ".join(
            f"{short}: {one.spec.resize_short_side}" for short, one in kind.published.items()
        )
        parameters = f"{kind.parameters / 1e6:.1f} M"
        rows.append((name, parameters, kind.width, published, kind.good_for))
    return _table(head, rows)
