"""Diagnosis: what went wrong in a training, by which numbers, and what usually helps.

The problems and their remedies are those that guides to fine-tuning list: overfitting, slow
convergence, poor final accuracy. A problem is named only where the intervals of the figures show
it; what so few images cannot tell is said to be so.
"""

import math
from collections.abc import Iterator, Sequence

import msgspec

from trainer.evaluate import Share
from trainer.history import Evaluated, stages, throughput
from trainer.recipe_page import augmentation_of
from trainer.recipes import RANGES, SIZES, USE_CASES, Recipe

GAP = 0.10  # between training and held-out accuracy: less is usual, of a good network too
LEARNED = 0.95  # of the training images: above, the loss has little left to fall for
BARELY_LEARNED = 0.70  # below, what it was shown is not learned, whatever the losses do
STILL_FALLING = 0.05  # over the last third: the schedule ends in tiny steps, and losses level off
HARDLY_FALLING = 0.10  # over a whole stage
NEAR_CHANCE = 0.5  # of the loss that guessing has
FEWEST_EVALUATIONS = 3  # that make a history
TOLD = 3  # remedies on a terminal
UNBALANCED = 3.0  # largest class over smallest: milder than what is warned of before training

EXPECTED = min(case.recipe.band[0] for case in USE_CASES if case.recipe.band)
"""What the weakest of the documented cases gives at least."""
LOW_RATE, HIGH_RATE = 2e-5, 1e-4
FEWER_EPOCHS = 0.6  # by 30 to 50 %
VERY_LIMITED = SIZES[1].fewer_than  # images: where ResNet-18 is advised
LARGER = {
    "resnet18": "resnet50",
    "resnet34": "resnet50",
    "resnet50": "resnet101 or vit_b_16",
    "resnext50_32x4d": "resnet101 or vit_b_16",
    "seresnet50": "resnet101 or vit_b_16",
    "resnet101": "vit_b_16",
    "resnet152": "vit_b_16",
    "vit_b_16": "vit_l_16",
}


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run. `held_out`: its accuracy on test images, else on validation."""

    architecture: str
    recipe: Recipe
    pretrained: bool
    images: int  # all that there are
    train_counts: tuple[int, ...]  # training images of each class
    train: Share
    held_out: Share
    history: tuple[Evaluated, ...]
    likely_label_errors: int = 0
    interrupted_at: int | None = None  # the epoch in which training was cut short


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A problem, the numbers that it was named for, and remedies, the likeliest first."""

    problem: str
    evidence: tuple[str, ...]
    remedies: tuple[str, ...]


def diagnose(case: Case) -> tuple[Finding, ...]:
    """None of a good run; of one that was cut short nothing else can be told."""
    if case.interrupted_at is not None:
        return (_interrupted(case.interrupted_at, case.recipe),)
    found = (
        _overfitting(case),
        _too_few_to_tell(case),
        _slow_convergence(case),
        _poor_accuracy(case),
    )
    return tuple(finding for finding in found if finding)


def _interrupted(epoch: int, recipe: Recipe) -> Finding:
    return Finding(
        problem="unfinished",
        evidence=(f"training was interrupted at epoch {epoch} of {recipe.epochs}",),
        remedies=("the same command with --resume, which goes on (make train TRAIN=--resume)",),
    )


def _overfits(case: Case) -> bool:
    return _gap(case) >= GAP and case.train.interval[0] > case.held_out.interval[1]


def _gap(case: Case) -> float:
    return case.train.accuracy - case.held_out.accuracy


def _overfitting(case: Case) -> Finding | None:
    if not _overfits(case):
        return None
    return Finding(
        problem="overfitting",
        evidence=(_accuracies(case), *_parting_losses(case.history)),
        remedies=tuple(_against_overfitting(case)),
    )


def _accuracies(case: Case) -> str:
    return (
        f"{_share(case.train)} of the images trained on are answered rightly, "
        f"{_share(case.held_out)} of those held out: {_gap(case) * 100:.0f} points less"
    )


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.accuracy:.1%} ({low:.1%} to {high:.1%})"


def _parting_losses(history: Sequence[Evaluated]) -> Iterator[str]:
    """Where validation's loss has risen again while that of training went on falling."""
    stage = _last_stage(history)
    if not stage:
        return
    best, last = min(stage, key=lambda one: one.loss), stage[-1]
    assert best.train_loss is not None
    assert last.train_loss is not None
    if last.loss > best.loss * (1 + STILL_FALLING) and last.train_loss < best.train_loss:
        yield (
            f"from epoch {best.epoch} to {last.epoch} the validation loss rose from "
            f"{best.loss:.3f} to {last.loss:.3f}, while the training loss fell from "
            f"{best.train_loss:.3f} to {last.train_loss:.3f}"
        )


def _against_overfitting(case: Case) -> Iterator[str]:
    recipe = case.recipe
    fewer = round(recipe.epochs * FEWER_EPOCHS)
    if not case.pretrained:
        yield _start_pretrained()
    if augmentation_of(recipe) != "heavy":
        yield "more augmentation: --augmentation heavy"
    if 0 < fewer < recipe.epochs:
        yield f"30 to 50 % fewer epochs: --epochs {fewer}"
    if case.pretrained and recipe.learning_rate > LOW_RATE:
        yield f"a lower learning rate: --learning-rate {LOW_RATE:g}"
    yield f"more training images; there are {sum(case.train_counts)}"
    if case.images < VERY_LIMITED and case.architecture != "resnet18":
        yield "a smaller network, for so few images: --arch resnet18"


def _start_pretrained() -> str:
    return "start from pre-trained weights (--weights imagenet): this run began from random ones"


def _too_few_to_tell(case: Case) -> Finding | None:
    """A gap that would be overfitting if it were sure."""
    if _gap(case) < GAP or _overfits(case):
        return None
    return Finding(
        problem="too few held-out images to tell overfitting",
        evidence=(
            _accuracies(case),
            f"on {case.held_out.images} held-out images such a gap may be chance: the intervals "
            "overlap",
        ),
        remedies=("hold out more: --val-share and --test-share, or collect more images",),
    )


def _slow_convergence(case: Case) -> Finding | None:
    evidence = tuple(_slowness(case))
    if not evidence:
        return None
    return Finding(
        problem="slow convergence",
        evidence=evidence,
        remedies=tuple(_against_slowness(case)),
    )


def _slowness(case: Case) -> Iterator[str]:
    if case.train.interval[1] < BARELY_LEARNED:
        yield f"even of the images trained on, {_share(case.train)} are answered rightly"
    if case.train.interval[1] >= LEARNED:
        return
    stage = _last_stage(case.history)
    losses = [one.train_loss for one in stage if one.train_loss is not None]
    if not losses:
        return
    chance = math.log(len(case.train_counts))
    first, late, last = losses[0], losses[-1 - max(1, len(losses) // 3)], losses[-1]
    if last <= late * (1 - STILL_FALLING):
        yield (
            f"the training loss was still falling when training at {stage[-1].size} px ended: from "
            f"{late:.3f} to {last:.3f} over the last third"
        )
    elif last > first * (1 - HARDLY_FALLING) and last > chance * NEAR_CHANCE:
        yield (
            f"the training loss hardly moved: {first:.3f} at first, {last:.3f} at last, where "
            f"guessing gives {chance:.3f}"
        )


def _last_stage(history: Sequence[Evaluated]) -> tuple[Evaluated, ...]:
    """The last stretch at one image size with enough evaluations to be a history, or nothing.

    Of it those with a training loss: re-estimated statistics are evaluated without one.
    """
    measured = [
        tuple(one for one in stage if one.train_loss is not None) for stage in stages(history)
    ]
    long_enough = [stage for stage in measured if len(stage) >= FEWEST_EVALUATIONS]
    return long_enough[-1] if long_enough else ()


def _against_slowness(case: Case) -> Iterator[str]:
    recipe = case.recipe
    if not case.pretrained:
        yield _start_pretrained()
    yield from _higher_rate(case)
    yield from _longer(recipe)
    larger = min(2 * recipe.batch_size, int(RANGES["batch_size"][1]))
    if larger > recipe.batch_size:
        yield f"larger batches, if memory allows: --batch-size {larger}"
    yield "check the pre-processing: the report's pictures are what the network sees"
    yield f"check that there is a GPU, and that it is busy{_speed(case.history)}"


def _speed(history: Sequence[Evaluated]) -> str:
    rates = [f"{rate:.0f} images/s at {size} px" for size, rate in throughput(history).items()]
    return f" ({', '.join(rates)})" if rates else ""


def _higher_rate(case: Case) -> Iterator[str]:
    if case.recipe.learning_rate < HIGH_RATE:
        yield f"a higher learning rate: --learning-rate {HIGH_RATE:g}"


def _longer(recipe: Recipe) -> Iterator[str]:
    longer = min(2 * recipe.epochs, int(RANGES["epochs"][1]))
    if longer > recipe.epochs:
        yield f"train longer: --epochs {longer}"


def _poor_accuracy(case: Case) -> Finding | None:
    band = case.recipe.band
    expected = band[0] if band else EXPECTED
    if case.held_out.interval[1] >= expected:
        return None
    source = f"recipe {case.recipe.name} usually gives" if band else "documented cases give"
    return Finding(
        problem="poor final accuracy",
        evidence=(
            f"{_share(case.held_out)} of {case.held_out.images} held-out images are answered "
            f"rightly; {source} at least {expected:.0%}",
        ),
        remedies=tuple(_against_poor_accuracy(case)),
    )


def _against_poor_accuracy(case: Case) -> Iterator[str]:
    """More training and a larger network are no remedies where it learns by heart already."""
    overfits = _overfits(case)
    if not case.pretrained:
        yield _start_pretrained()
    if not overfits:
        yield from _longer(case.recipe)
    looked_at = (
        f"the {case.likely_label_errors} likely label errors first"
        if case.likely_label_errors
        else "the confident mistakes first"
    )
    yield f"check data quality and labels: {looked_at}"
    yield from _balance(case)
    if not overfits:
        yield from _higher_rate(case)
        if larger := LARGER.get(case.architecture):
            yield f"a larger network: --arch {larger}"
    if case.images < SIZES[2].fewer_than:
        yield f"more images; there are {case.images}"


def _balance(case: Case) -> Iterator[str]:
    most, least = max(case.train_counts), min(case.train_counts)
    if most >= UNBALANCED * least:
        yield (
            f"balance the classes, now {least} to {most} images: --class-weights sqrt or "
            "--sampler balanced"
        )


def told(finding: Finding) -> str:
    """For a terminal, in two lines: the report has the rest."""
    more = len(finding.remedies) - TOLD
    rest = f"; {more} more in the report" if more > 0 else ""
    return (
        f"{finding.problem}: {'; '.join(finding.evidence)}\n"
        f"  try {'; '.join(finding.remedies[:TOLD])}{rest}"
    )
