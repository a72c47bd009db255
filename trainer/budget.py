"""What a run can reach before it starts: how far its steps move a weight.

AdamW moves a weight by about its learning rate a step, so by learning rate x 0.5 x steps over a
run, 0.5 being the mean of the schedule: the step budget. Random weights are about 0.03 in size, and
ResNet-50 learnt nothing from them with a budget under 0.01; for weights that were trained before,
the limits are reasoned, not measured.
"""

import math
from collections.abc import Iterator

from packshot.errors import InvalidInput
from trainer.recipes import RANGES, Recipe

MEAN_OF_SCHEDULE = 0.5
LEAST_FROM_SCRATCH = 0.01
LEAST_BACKBONE = 1e-3
LEAST_HEAD = 1e-2


def steps_of(recipe: Recipe, images: int) -> int:
    """Steps of a run that trains on so many images."""
    return recipe.epochs * -(-images // recipe.step_images)


def step_budget(recipe: Recipe, images: int) -> float:
    """How far the run can move a weight of the backbone; the head's is larger by its factor."""
    return recipe.learning_rate * MEAN_OF_SCHEDULE * steps_of(recipe, images)


def check_from_scratch(recipe: Recipe, images: int) -> None:
    """Raises InvalidInput for a run from random weights that cannot learn."""
    if step_budget(recipe, images) < LEAST_FROM_SCRATCH:
        raise InvalidInput(
            f"from random weights {_told(recipe, images, 1.0)}; under {LEAST_FROM_SCRATCH:g} "
            f"nothing is learnt: {_remedy(recipe, step_budget(recipe, images), LEAST_FROM_SCRATCH)}"
            "; or say --yes to train all the same"
        )


def budget_warnings(recipe: Recipe, images: int, *, backbone_learns: bool) -> Iterator[str]:
    """Of a run from pre-trained weights on so many images: which part will hardly change."""
    parts = [("new head", recipe.head_learning_rate_factor, LEAST_HEAD)]
    if backbone_learns:
        parts.insert(0, ("backbone", 1.0, LEAST_BACKBONE))
    for part, factor, least in parts:
        budget = step_budget(recipe, images) * factor
        if budget < least:
            yield (
                f"the {part} will hardly learn: {_told(recipe, images, factor)}, and {least:g} is "
                f"the least: {_remedy(recipe, budget, least)}"
            )


def _told(recipe: Recipe, images: int, factor: float) -> str:
    rate = recipe.learning_rate * factor
    budget = step_budget(recipe, images) * factor
    return (
        f"{steps_of(recipe, images)} steps at learning rate {rate:.2g} move a weight by up to "
        f"{budget:.2g} ({rate:.2g} x {MEAN_OF_SCHEDULE:g} x steps)"
    )


def _remedy(recipe: Recipe, budget: float, least: float) -> str:
    """Options within their ranges that give the least budget."""
    most_epochs, most_rate = int(RANGES["epochs"][1]), RANGES["learning_rate"][1]
    wanted = least / budget
    epochs = math.ceil(recipe.epochs * wanted)
    rate = _rounded_up(recipe.learning_rate * wanted)
    ways = [f"--epochs {epochs}"] if epochs <= most_epochs else []
    ways += [f"--learning-rate {rate:.2g}"] if rate <= most_rate else []
    if ways:
        return f"set {' or '.join(ways)}"
    rate = _rounded_up(recipe.learning_rate * wanted * recipe.epochs / most_epochs)
    if rate <= most_rate:
        return f"set --epochs {most_epochs} and --learning-rate {rate:.2g}"
    return "add images, or set a smaller --batch-size: no --epochs and --learning-rate will do"


def _rounded_up(rate: float) -> float:
    """To two digits."""
    unit: float = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return math.ceil(round(rate / unit, 6)) * unit
