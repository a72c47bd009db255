"""Recipes: the documented numbers, what fits them to the case at hand, and what they do."""

import copy

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from processes import ROOT
from test_data import options
from torch import nn
from torchvision.transforms import TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import InterpolationMode

from packshot.errors import InvalidInput
from packshot.image import ImageSpec
from trainer.__main__ import main, parse_options
from trainer.architectures import ARCHITECTURES
from trainer.augment import CHANGES, erased, random_view, training_view, trivial_augment
from trainer.average import Average
from trainer.batches import LIMITS
from trainer.model import new_network
from trainer.objective import mixing_for
from trainer.optimizer import new_optimizer
from trainer.recipe_page import page
from trainer.recipes import (
    FROM_SCRATCH,
    HEAD_ONLY,
    LAST_STAGE,
    MEDIUM,
    RANGES,
    RECIPES,
    against_band,
    changed,
    named_recipe,
    recipe_for,
)
from trainer.schedule import Schedule

SPEC = ImageSpec()
RESNET50, VIT = ARCHITECTURES["resnet50"], ARCHITECTURES["vit_b_16"]


def recipe(folder, images=2000, pretrained=True, gpu=True, kind=RESNET50, **asked):
    wanted = options(folder, **asked)
    return recipe_for(wanted, kind, images=images, pretrained=pretrained, gpu=gpu)


def test_the_page_is_what_the_tables_say():
    written = (ROOT / "docs" / "recipes.md").read_text()
    assert written == page(), "run: python -m trainer recipes > docs/recipes.md"


def test_the_command_prints_the_page(capsys):
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out == page()


def test_manual_has_the_documented_defaults(tmp_path):
    manual = recipe(tmp_path, recipe="manual")
    assert (manual.batch_size, manual.epochs, manual.learning_rate) == (4, 1, 5e-5)
    assert manual.eval_steps == 1
    assert manual.frozen_batchnorm  # its batches are too small for statistics


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("batch_size", 2, 64),
        ("epochs", 1, 30),
        ("learning_rate", 1e-5, 5e-4),
        ("eval_steps", 1, 30),
    ],
)
def test_ranges_are_kept_and_named(tmp_path, name, low, high):
    assert RANGES[name] == (low, high)
    for value in (low, high):
        assert getattr(recipe(tmp_path, **{name: value}), name) == value
    for value in (low / 2, high * 1.01, float("nan")):
        with pytest.raises(InvalidInput) as caught:
            options(tmp_path, **{name: value})
        option = f"--{name.replace('_', '-')}"
        assert str(caught.value) == f"{option} is {value:g}; it must be from {low:g} to {high:g}"


def test_an_unknown_recipe_is_answered_with_those_that_there_are(tmp_path):
    with pytest.raises(InvalidInput, match=r"--recipe is 'xrays'; .* manual, .* xray"):
        options(tmp_path, recipe="xrays")


def test_every_recipe_keeps_the_ranges_that_users_must():
    for one in RECIPES.values():
        if one is HEAD_ONLY:  # it has no epochs
            continue
        for name in ("epochs", "batch_size", "learning_rate", "eval_steps"):
            low, high = RANGES[name]
            assert low <= getattr(one, name) <= high, (one.name, name)


@pytest.mark.parametrize(
    ("images", "name", "epochs", "batch", "rate", "head"),
    [
        (499, "tiny", 20, 8, 2e-5, 20),
        (500, "small", 15, 8, 2e-5, 20),
        (999, "small", 15, 8, 2e-5, 20),
        (1000, "medium", 8, 16, 5e-5, 10),
        (9_999, "medium", 8, 16, 5e-5, 10),
        (10_000, "large", 4, 32, 1e-4, 10),
        (50_000, "large", 4, 32, 1e-4, 10),
        (50_001, "very-large", 3, 64, 1e-4, 5),
    ],
)
def test_auto_goes_by_the_number_of_images(tmp_path, images, name, epochs, batch, rate, head):
    found = recipe(tmp_path, images)
    assert (found.name, found.epochs, found.batch_size) == (name, epochs, batch)
    assert (found.learning_rate, found.head_learning_rate_factor) == (rate, head)


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "rate", "low", "high"),
    [
        ("ecommerce", 16, 8, 5e-5, 0.85, 0.90),
        ("xray", 8, 12, 3e-5, 0.90, 0.94),
        ("plants", 16, 10, 5e-5, 0.82, 0.88),
    ],
)
def test_documented_cases_and_their_bands(tmp_path, name, batch, epochs, rate, low, high):
    found = recipe(tmp_path, images=10, recipe=name)
    assert (found.batch_size, found.epochs, found.learning_rate) == (batch, epochs, rate)
    assert found.band == (low, high)
    assert " below " in against_band(found, low - 0.001)
    assert " inside " in against_band(found, low)
    assert " inside " in against_band(found, high)
    assert " above " in against_band(found, high + 0.001)


def test_a_band_holds_for_the_recipe_as_it_is_documented(tmp_path):
    assert recipe(tmp_path, recipe="plants", epochs=10, eval_steps=2).band is not None
    assert recipe(tmp_path, recipe="plants", epochs=9).band is None
    assert recipe(tmp_path, recipe="plants", pretrained=False).band is None
    assert against_band(MEDIUM, 0.9) is None


def test_the_users_values_stand_in_any_recipe(tmp_path):
    found = recipe(tmp_path, images=100, epochs=5, learning_rate=3e-4)
    assert (found.name, found.epochs, found.learning_rate) == ("tiny", 5, 3e-4)
    assert found.batch_size == 8


def test_a_cpu_gets_a_fitted_head(tmp_path):
    assert recipe(tmp_path, gpu=False) == HEAD_ONLY
    assert recipe(tmp_path, gpu=False, recipe="medium") == RECIPES["medium"]
    assert recipe(tmp_path, 500, gpu=False, pretrained=False) == FROM_SCRATCH
    weighted = recipe(tmp_path, gpu=False, class_weights="sqrt")
    assert (weighted.name, weighted.class_weights) == ("head-only", "sqrt")


@pytest.mark.parametrize(
    "asked", [{"epochs": 3}, {"batch_size": 16}, {"learning_rate": 1e-4}, {"eval_steps": 2}]
)
def test_on_a_cpu_who_sets_a_value_of_the_loop_gets_the_loop(tmp_path, asked):
    found = recipe(tmp_path, gpu=False, **asked)
    assert found.name == "medium"
    ((name, value),) = asked.items()
    assert getattr(found, name) == value
    option = f"--{name.replace('_', '-')}"
    assert options(tmp_path, **asked).about_loop == (option,)
    with pytest.raises(InvalidInput, match=rf"head-only fits a head once.*leave out {option},"):
        options(tmp_path, weights="imagenet", recipe="head-only", **asked)


def test_the_weights_whose_fixed_features_are_better_are_taken_for_a_fitted_head(tmp_path):
    asked = options(tmp_path)
    assert named_recipe(asked, 2000, gpu=False).imagenet == "v1"
    assert named_recipe(asked, 2000, gpu=True).imagenet == "v2"


@pytest.mark.parametrize("name", ["head-only", "last-stage"])
def test_a_fitted_head_needs_weights_that_mean_something(tmp_path, name):
    with pytest.raises(InvalidInput, match=f"{name} needs pre-trained weights"):
        options(tmp_path, recipe=name, weights="none")
    with pytest.raises(InvalidInput, match=f"{name} needs pre-trained weights"):
        recipe(tmp_path, recipe=name, weights="imagenet", pretrained=False)


def test_the_floor_is_measured_where_it_is_quick_and_says_something(tmp_path):
    on = {one.name for one in RECIPES.values() if one.floor}
    assert on == set(RECIPES) - {"large", "very-large", "from-scratch"}
    assert not recipe(tmp_path, recipe="medium", pretrained=False).floor


def test_the_last_stage_and_the_head_learn_and_nothing_else():
    network = new_network("resnet18", 2, SPEC)
    before = train_one_step(network, LAST_STAGE)
    learnt = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    parameters = {name for name, _ in network.named_parameters()}
    assert learnt == {n for n in parameters if n.startswith(("backbone.layer4.", "head."))}


def test_random_weights_get_the_recipe_made_for_them(tmp_path):
    assert recipe(tmp_path, pretrained=False) == FROM_SCRATCH
    tiny = recipe(tmp_path, pretrained=False, recipe="tiny", batch_size=4)
    assert (tiny.frozen_stages, tiny.frozen_batchnorm) == (0, False)


def test_random_weights_on_a_cpu_get_so_many_images_in_all(tmp_path):
    def epochs(images, **asked):
        return recipe(tmp_path, images, pretrained=False, gpu=False, **asked).epochs

    sample = recipe(tmp_path, 752, pretrained=False, gpu=False)
    assert sample == FROM_SCRATCH, "its figures are published"
    few_and_many = (50, 752, 1000, 1797, 5400, 60_000)
    assert [epochs(images) for images in few_and_many] == [10, 10, 9, 5, 2, 2]
    fewer = recipe(tmp_path, 1797, pretrained=False, gpu=False)
    assert (fewer.name, fewer.crop_area) == ("from-scratch-on-cpu", (0.6, 1.0))
    assert Schedule(fewer, [0] * 1439, seed=0).sizes() == {64: 558, 128: 180, 224: 162}
    assert epochs(1797, epochs=20) == 20
    assert epochs(1797, recipe="from-scratch") == 10
    assert recipe(tmp_path, 60_000, pretrained=False) == FROM_SCRATCH


def test_networks_of_one_size_without_batchnorm_get_a_recipe_that_fits(tmp_path):
    for pretrained in (True, False):
        found = recipe(tmp_path, 100, pretrained, gpu=False, kind=VIT, batch_size=4)
        assert found.stages == ((224, 1.0),)
        assert (found.batchnorm_images, found.frozen_batchnorm) == (0, False)


def test_the_command_line_leaves_to_the_recipe_what_is_not_said():
    asked = parse_options(["--data", "x", "--eval-steps", "3"])
    assert (asked.recipe, asked.weights) == ("auto", "imagenet")
    assert asked.chosen == {"eval_steps": 3}


def test_evaluation_steps_count_epochs_and_the_end_is_always_evaluated():
    every = changed(FROM_SCRATCH, epochs=5, batch_size=4)
    for eval_steps, expected in ((1, [2, 4, 6, 8, 10]), (2, [4, 8, 10]), (30, [10])):
        schedule = Schedule(changed(every, eval_steps=eval_steps), [0] * 8, seed=0)
        due = [n for n in range(1, 11) if schedule.evaluation_is_due(n)]
        assert due == expected


def train_one_step(network, one):
    """One step at the peak rate; returns the parameters before it, by name."""
    network.freeze(one.frozen_stages, batchnorm=one.frozen_batchnorm)
    optimizer = new_optimizer(network, one)
    before = copy.deepcopy(network.state_dict())
    network.train()
    images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    loss = nn.functional.cross_entropy(network(images)[0], torch.tensor([0, 1, 0, 1]))
    loss.backward()
    optimizer.step()
    return before


def test_frozen_stages_and_statistics_stay_and_the_rest_learns():
    network = new_network("resnet18", 2, SPEC)
    before = train_one_step(network, RECIPES["tiny"])
    changed_names = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    frozen = ("backbone.conv1", "backbone.bn1", "backbone.layer1")
    assert not [name for name in changed_names if name.startswith(frozen)]
    assert not [name for name in changed_names if "running" in name or "tracked" in name]
    for name in ("backbone.layer2.0.conv1.weight", "backbone.layer4.1.bn2.weight", "head.weight"):
        assert name in changed_names
    network.eval()
    network.train()
    assert not network.backbone.layer4[0].bn1.training


def test_without_freezing_everything_learns_and_statistics_move():
    network = new_network("resnet18", 2, SPEC)
    before = train_one_step(network, MEDIUM)
    same = {n for n, v in network.state_dict().items() if torch.equal(v, before[n])}
    assert same == set()


def test_learning_rates_fall_from_head_to_stem():
    network = new_network("resnet18", 2, SPEC)
    optimizer = new_optimizer(network, MEDIUM)
    rate_of = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {
        "backbone.conv1.weight": 5e-5 * 0.75**4, "backbone.bn1.bias": 5e-5 * 0.75**4,
        "backbone.layer1.0.conv1.weight": 5e-5 * 0.75**3, "backbone.layer3.0.bn1.weight": 3.75e-5,
        "backbone.layer4.1.conv2.weight": 5e-5, "head.weight": 5e-4, "head.bias": 5e-4,
    }  # fmt: skip
    parameters = dict(network.named_parameters())
    assert set(rate_of) == set(parameters.values())
    for name, rate in expected.items():
        assert rate_of[parameters[name]] == pytest.approx(rate), name
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[parameters["backbone.conv1.weight"]] == MEDIUM.weight_decay
    assert decays[parameters["backbone.bn1.weight"]] == decays[parameters["head.bias"]] == 0


def test_class_token_and_positions_of_a_vit_do_not_decay():
    with torch.device("meta"):
        network = new_network("vit_b_16", 2, SPEC)
    groups = new_optimizer(network, MEDIUM).param_groups
    decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
    backbone = network.backbone
    assert decays[backbone.class_token] == decays[backbone.encoder.pos_embedding] == 0
    assert decays[backbone.conv_proj.weight] == MEDIUM.weight_decay


def test_the_average_follows_the_weights_and_is_what_the_formula_says():
    network = new_network("resnet18", 2, SPEC)
    average = Average(network, steps=100)
    bias = network.head.bias.detach()
    expected = float(bias[0])
    for step in range(1, 60):
        bias += 0.1
        average.update(network, step)
        decay = min(1 - 1 / 20, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * float(bias[0])
    assert average.network.head.bias[0].item() == pytest.approx(expected, abs=1e-4)
    assert expected < float(bias[0]) - 0.5
    network.backbone.bn1.num_batches_tracked += 3
    average.update(network, 60)
    assert average.network.backbone.bn1.num_batches_tracked == 3
    assert not average.network.training


IMAGES = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 8, 8, 3) * 10
LABELS = torch.tensor([0, 1, 2, 0])


def test_without_mixing_a_batch_stays_as_it_is():
    plain, same = mixing_for(MEDIUM, 3)(IMAGES, LABELS)
    assert plain is IMAGES
    assert same is LABELS


def test_mixup_lays_images_and_targets_over_each_other_by_one_share():
    torch.manual_seed(3)
    views, targets = mixing_for(changed(MEDIUM, mixup=1.0), 3)(IMAGES, LABELS)
    share = targets[1, 1].item()
    assert 0 < share < 1
    assert targets[1].tolist() == pytest.approx([1 - share, share, 0])
    assert targets[3].tolist() == pytest.approx([share, 0, 1 - share])
    assert views.shape == IMAGES.shape
    assert views[2, 0, 0, 0].item() == pytest.approx(20 * share + 10 * (1 - share))


def test_cutmix_puts_a_rectangle_of_one_image_into_another_and_its_share_into_the_target():
    torch.manual_seed(1)
    views, targets = mixing_for(changed(MEDIUM, cutmix=1.0), 3)(IMAGES, LABELS)
    assert set(views[2].unique().tolist()) == {10.0, 20.0}
    share = (views[2] == 20).float().mean().item()
    assert targets[2].tolist() == pytest.approx([0, 1 - share, share])


def test_with_both_a_batch_gets_one_of_them():
    mix = mixing_for(changed(MEDIUM, mixup=1.0, cutmix=1.0), 3)
    torch.manual_seed(0)
    levels = [set(mix(IMAGES, LABELS)[0][2].unique().tolist()) for _ in range(40)]
    cut = [found <= {10.0, 20.0} for found in levels]
    assert 8 < sum(cut) < 32
    torch.manual_seed(0)
    again = [set(mix(IMAGES, LABELS)[0][2].unique().tolist()) for _ in range(40)]
    assert again == levels


PHOTO = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
)


def test_the_operations_of_trivial_augment_are_torchvisions():
    # torchvision's order, with its names; strengths at the end of the wide space.
    names = (
        "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness",
        "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
    )  # fmt: skip
    space = TrivialAugmentWide()._augmentation_space(31)
    for name, change in zip(names, CHANGES, strict=True):
        magnitudes, _ = space[name]
        strongest = float(magnitudes[-1]) if magnitudes.ndim else 0.0
        reference = np.asarray(_apply_op(PHOTO, name, strongest, InterpolationMode.NEAREST, None))
        # Either sign is as likely: which one is called positive does not matter.
        differing = [
            (np.abs(np.asarray(change(PHOTO, 1.0, sign)).astype(int) - reference) > 1).mean()
            for sign in (1, -1)
        ]
        assert min(differing) < 0.02, name


def test_heavy_views_are_many_and_fixed_by_their_generator():
    seen = {trivial_augment(PHOTO, np.random.default_rng(i)).tobytes() for i in range(40)}
    assert len(seen) > 25
    again = {trivial_augment(PHOTO, np.random.default_rng(i)).tobytes() for i in range(40)}
    assert again == seen


def test_an_erased_rectangle_is_of_the_documented_size():
    shares = []
    for seed in range(50):
        view = erased(np.full((64, 64, 3), 7, np.uint8), np.random.default_rng(seed))
        shares.append((view != 7).any(axis=2).mean())
    assert min(shares) > 0.01
    assert max(shares) < 0.35


def test_recipes_differ_in_the_views_that_they_make(tmp_path):
    encoded = tmp_path / "photo.png"
    PHOTO.save(encoded)

    def views(one):
        rng = np.random.default_rng(0)
        return [
            training_view(encoded.read_bytes(), 32, one, SPEC, rng, LIMITS).tobytes()
            for _ in range(30)
        ]

    heavy, light = RECIPES["tiny"], RECIPES["large"]
    assert views(heavy) != views(changed(heavy, erasing=0.0))
    assert views(heavy) != views(changed(heavy, trivial_augment=False))
    assert views(MEDIUM) != views(changed(MEDIUM, colour_jitter=0.0))
    assert views(MEDIUM) != views(changed(MEDIUM, flip=False))
    assert views(light) == views(light)


def left_half_is_dark(view):
    width = view.shape[1]
    return view[:, : width // 2].mean() < view[:, width // 2 :].mean()


def test_without_flips_left_stays_left(tmp_path):
    half = np.full((64, 64, 3), 255, np.uint8)
    half[:, :32] = 0
    rng = np.random.default_rng(0)
    for no_flip, sides in ((True, {True}), (False, {True, False})):
        asked = parse_options(["--data", str(tmp_path), *(["--no-flip"] if no_flip else [])])
        fitted = recipe_for(asked, RESNET50, images=2000, pretrained=True, gpu=True)
        assert fitted.flip is not no_flip
        views = [random_view(Image.fromarray(half), 32, fitted, SPEC, rng) for _ in range(20)]
        assert {left_half_is_dark(view) for view in views} == sides


def test_a_recipe_survives_its_record():
    for one in RECIPES.values():
        assert msgspec.json.decode(msgspec.json.encode(one), type=type(one)) == one
