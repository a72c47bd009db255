"""What is said before the first step of a run that can hardly learn, and when it is refused."""

import re

import pytest
from processes import program
from test_data import fill, options, split_of

from packshot.errors import InvalidInput
from trainer.budget import budget_warnings, check_from_scratch, step_budget, steps_of
from trainer.command_line import parse_options
from trainer.model import Weights
from trainer.prepare import weighed_up
from trainer.recipes import FROM_SCRATCH, MANUAL, MEDIUM, RECIPES, TINY, Recipe, changed
from trainer.schedule import Schedule
from trainer.timing import estimated
from trainer.weights import RANDOM

PRETRAINED = RANDOM._replace(weights=Weights(pretrained=True, source="a test"))


def asked_for(advice: str, recipe: Recipe) -> Recipe:
    """The recipe with the options that a message advises, all of them."""
    values = {}
    for option, kind in (("epochs", int), ("learning-rate", float)):
        if found := re.search(rf"--{option} ([\d.e-]+)", advice):
            values[option.replace("-", "_")] = kind(found[1])
    assert values, advice
    return changed(recipe, **values)


@pytest.mark.parametrize("images", [3, 16, 17, 500])
def test_steps_are_those_of_the_plan(images):
    for recipe in (MANUAL, FROM_SCRATCH):
        assert steps_of(recipe, images) == Schedule(recipe, [0] * images, seed=0).steps


def test_the_budget_by_hand():
    assert step_budget(MANUAL, 500) == pytest.approx(5e-5 * 0.5 * 125)
    assert step_budget(FROM_SCRATCH, 512) == pytest.approx(0.08)


def test_the_documented_defaults_do_not_learn_from_random_weights():
    with pytest.raises(InvalidInput) as caught:
        check_from_scratch(MANUAL, 500)
    said = str(caught.value)
    assert "125 steps at learning rate 5e-05 move a weight by up to 0.0031" in said
    assert "under 0.01 nothing is learnt: set --epochs 4 or --learning-rate 0.00016" in said
    assert said.endswith("or say --yes to train all the same")
    check_from_scratch(changed(MANUAL, epochs=4), 500)
    check_from_scratch(changed(MANUAL, learning_rate=0.00016), 500)
    check_from_scratch(FROM_SCRATCH, 512)


@pytest.mark.parametrize(
    ("images", "epochs", "rate", "advice"),
    [
        (500, 1, 5e-5, r"set --epochs 4 or --learning-rate 0\.00016;"),
        (80, 1, 1e-4, r"set --epochs 10;"),
        (500, 2, 1e-5, r"set --epochs 16 or --learning-rate 8e-05;"),
        (100, 29, 2.5e-5, r"set --learning-rate 2\.8e-05;"),
        (12, 1, 1e-5, r"set --epochs 30 and --learning-rate 0\.00023;"),
        (40, 1, 1e-5, r"set --epochs 30 and --learning-rate 6\.7e-05;"),
    ],
)
def test_what_is_advised_is_in_range_and_enough(images, epochs, rate, advice):
    recipe = changed(MANUAL, epochs=epochs, learning_rate=rate)
    with pytest.raises(InvalidInput, match=advice) as caught:
        check_from_scratch(recipe, images)
    check_from_scratch(asked_for(str(caught.value), recipe), images)


def test_where_no_setting_is_enough_images_are():
    with pytest.raises(InvalidInput, match="add images, or set a smaller --batch-size"):
        check_from_scratch(changed(MANUAL, batch_size=16), 8)


def test_fine_tuning_is_warned_of_by_part_and_the_advice_helps():
    short = changed(MANUAL, learning_rate=1e-5, head_learning_rate_factor=2)
    backbone, head = budget_warnings(short, 500, backbone_learns=True)
    assert backbone.startswith(
        "the backbone will hardly learn: 125 steps at learning rate 1e-05 move a weight by up to "
        "0.00063 (1e-05 x 0.5 x steps), and 0.001 is the least: set --epochs 2 or --learning-rate "
    )
    assert head.startswith("the new head will hardly learn: 125 steps at learning rate 2e-05")
    assert "0.01 is the least: set --epochs 8 or --learning-rate 8e-05" in head
    mended = asked_for(head, short)
    assert list(budget_warnings(mended, 500, backbone_learns=True)) == []
    assert list(budget_warnings(short, 500, backbone_learns=False)) == [head]


@pytest.mark.parametrize(("recipe", "images"), [(TINY, 100), (MEDIUM, 1000), (MANUAL, 500)])
def test_recipes_have_budget_enough_for_what_they_are_meant_for(recipe, images):
    assert list(budget_warnings(recipe, images, backbone_learns=True)) == []


def test_a_run_that_is_long_on_a_cpu_is_warned_of_by_its_time():
    """However many images it has: the sample's 512 take minutes."""
    assert estimated(240, 160) == "estimated: 4 minutes for 160 steps, on the CPU"
    assert estimated(7200, 160).startswith(
        "WARNING: estimated: 120 minutes for 160 steps, on the CPU: take a machine with a GPU"
    )


@pytest.fixture
def shop(tmp_path):
    for seed, label in enumerate(("mug", "shoe")):
        fill(tmp_path / "shop" / label, 10, seed=seed)
    return tmp_path / "shop"


def test_a_run_is_warned_of_in_its_split_and_refused_from_random_weights(shop, capsys):
    split, asked = split_of(shop), options(shop)
    pretrained = weighed_up(asked, split, MANUAL, PRETRAINED)
    assert [text.split(":")[0] for text in pretrained.warnings[len(split.warnings) :]] == [
        "the backbone will hardly learn", "the new head will hardly learn",
    ]  # fmt: skip
    assert "WARNING: the backbone will hardly learn" in capsys.readouterr().out
    with pytest.raises(InvalidInput, match="from random weights 4 steps"):
        weighed_up(asked, split, MANUAL, RANDOM)
    assert weighed_up(options(shop, yes=True), split, MANUAL, RANDOM) == split
    nothing_learns = changed(TINY, frozen_stages=5, epochs=1)
    frozen = weighed_up(asked, split, nothing_learns, PRETRAINED)
    assert not any("backbone" in text for text in frozen.warnings)


def test_the_program_refuses_before_it_trains_unless_told_yes(shop, tmp_path):
    done = program(
        "trainer", "--data", shop, "--run", tmp_path / "run", "--arch", "resnet18",
        "--weights", "none", "--recipe", "manual", "--workers", 0,
    )  # fmt: skip
    assert done.returncode == 1
    assert "trainer: from random weights 4 steps at learning rate 5e-05" in done.stderr
    assert not (tmp_path / "run" / "log.jsonl").exists()
    assert parse_options(["--data", "x", "--yes"]).yes
    assert not parse_options(["--data", "x"]).yes


def test_every_recipe_leaves_the_advice_room():
    for recipe in (one for one in RECIPES.values() if one.epochs):
        for images in (20, 100, 1000):
            for text in budget_warnings(recipe, images, backbone_learns=True):
                if "no --epochs" not in text:
                    mended = asked_for(text, recipe)
                    part = text.split(" will")[0]
                    again = budget_warnings(mended, images, backbone_learns=True)
                    assert not [one for one in again if one.startswith(part)], text
