"""Each problem is named by its numbers, and only where they show it."""

import msgspec
import pytest

from packshot.intervals import share_interval
from trainer.diagnosis import Case, diagnose, told
from trainer.evaluate import Share
from trainer.history import Evaluated
from trainer.recipes import AUGMENTATIONS, FROM_SCRATCH, MEDIUM, RECIPES, SMALL, changed


def share(hits: int, images: int) -> Share:
    return Share(images=images, accuracy=hits / images, interval=share_interval(hits, images))


def history(*train_losses: float | None, size: int = 224, losses=(), rate=None):
    """Evaluations, one an epoch; validation's losses are those of training where not given."""
    return tuple(
        Evaluated(
            epoch=i, step=10 * i, size=size, train_loss=loss,
            loss=losses[i - 1] if losses else loss or 0.0, accuracy=0.5, macro_f1=0.5,
            learning_rate=None, images_per_second=rate,
        )
        for i, loss in enumerate(train_losses, start=1)
    )  # fmt: skip


DONE = history(1.8, 1.0, 0.7, 0.6, 0.6, 0.6)


def case(**changes) -> Case:
    """A good run, but for what is changed."""
    good = Case(
        architecture="resnet50", recipe=MEDIUM, pretrained=True, images=2000,
        train_counts=(200,) * 8, train=share(490, 500), held_out=share(190, 200), history=DONE,
    )  # fmt: skip
    return msgspec.structs.replace(good, **changes)


def only(found):
    (finding,) = found
    return finding


def problems(found) -> list[str]:
    return [finding.problem for finding in found]


def test_a_good_run_has_no_findings():
    assert diagnose(case()) == ()


OVERFIT = {"train": share(498, 500), "held_out": share(176, 200)}


def test_overfitting_is_named_with_both_accuracies_and_the_remedies():
    finding = only(diagnose(case(**OVERFIT)))
    assert finding.problem == "overfitting"
    assert "99.6%" in finding.evidence[0]
    assert "88.0%" in finding.evidence[0]
    assert "12 points less" in finding.evidence[0]
    assert finding.remedies == (
        "more augmentation: --augmentation heavy",
        "30 to 50 % fewer epochs: --epochs 5",
        "a lower learning rate: --learning-rate 2e-05",
        "more training images; there are 1600",
    )


def test_remedies_that_are_in_use_already_are_not_told():
    recipe = changed(SMALL, epochs=1)
    assert recipe.crop_area == AUGMENTATIONS["heavy"]["crop_area"]
    finding = only(diagnose(case(**OVERFIT, recipe=recipe, images=800)))
    assert finding.remedies == (
        "more training images; there are 1600",
        "a smaller network, for so few images: --arch resnet18",
    )
    finding = only(diagnose(case(**OVERFIT, recipe=recipe, images=800, architecture="resnet18")))
    assert finding.remedies == ("more training images; there are 1600",)


def test_an_overfitted_network_from_random_weights_is_told_of_others_first():
    finding = only(diagnose(case(**OVERFIT, recipe=FROM_SCRATCH, pretrained=False)))
    assert "--weights imagenet" in finding.remedies[0]
    assert not any("--learning-rate" in text for text in finding.remedies)


def test_losses_that_part_are_evidence_of_overfitting():
    parting = history(1.5, 0.9, 0.5, 0.3, losses=(1.2, 0.6, 0.7, 0.9))
    finding = only(diagnose(case(**OVERFIT, history=parting)))
    assert finding.evidence[1] == (
        "from epoch 2 to 4 the validation loss rose from 0.600 to 0.900, while the training loss "
        "fell from 0.900 to 0.300"
    )


def test_a_small_gap_is_no_overfitting_however_sure():
    assert diagnose(case(train=share(5000, 5000), held_out=share(4600, 5000))) == ()


def test_five_points_on_forty_images_are_nothing():
    assert diagnose(case(train=share(490, 500), held_out=share(37, 40))) == ()


def test_a_gap_on_few_images_is_said_to_be_uncertain():
    finding = only(diagnose(case(train=share(98, 100), held_out=share(35, 40))))
    assert finding.problem == "too few held-out images to tell overfitting"
    assert "on 40 held-out images such a gap may be chance" in finding.evidence[1]
    assert "--val-share" in finding.remedies[0]


LEARNING = {"train": share(400, 500), "held_out": share(165, 200)}


def test_a_loss_that_falls_to_the_end_is_slow_convergence():
    falling = history(2.0, 1.8, 1.6, 1.4, 1.2, 1.0, rate=30.0)
    finding = only(diagnose(case(**LEARNING, history=falling)))
    assert finding.problem == "slow convergence"
    assert finding.evidence == (
        "the training loss was still falling when training at 224 px ended: from 1.400 to 1.000 "
        "over the last third",
    )
    assert finding.remedies == (
        "a higher learning rate: --learning-rate 0.0001",
        "train longer: --epochs 16",
        "larger batches, if memory allows: --batch-size 32",
        "check the pre-processing: the report's pictures are what the network sees",
        "check that there is a GPU, and that it is busy (30 images/s at 224 px)",
    )


def test_a_loss_that_falls_is_none_where_all_is_learned():
    falling = history(2.0, 1.8, 1.6, 1.4, 1.2, 1.0)
    assert diagnose(case(history=falling)) == ()


def test_a_loss_that_hardly_moves_is_slow_convergence():
    stuck = history(2.0, 1.99, 1.98, 1.97, 1.97)
    finding = only(diagnose(case(**LEARNING, history=stuck)))
    assert finding.evidence == (
        "the training loss hardly moved: 2.000 at first, 1.970 at last, where guessing gives 2.079",
    )


def test_a_loss_that_falls_at_last_is_not_said_to_hardly_move():
    late = history(2.0, 2.05, 2.1, 2.1, 2.0, 1.95)
    (evidence,) = only(diagnose(case(**LEARNING, history=late))).evidence
    assert "was still falling" in evidence


def test_of_a_run_that_was_cut_short_nothing_else_is_told():
    """Neither overfitting nor accuracy: both are of training that has not ended."""
    for found in (OVERFIT, POOR, {}):
        finding = only(diagnose(case(**found, interrupted_at=3)))
        assert told(finding) == (
            "unfinished: training was interrupted at epoch 3 of 8\n"
            "  try the same command with --resume, which goes on (make train TRAIN=--resume)"
        )


def test_a_low_loss_need_not_move():
    assert diagnose(case(**LEARNING, history=history(0.61, 0.6, 0.6, 0.6))) == ()


def test_what_was_shown_and_is_not_known_was_not_learned():
    finding = diagnose(case(train=share(200, 500), held_out=share(80, 200), history=()))[0]
    assert finding.problem == "slow convergence"
    assert "40.0%" in finding.evidence[0]


@pytest.mark.parametrize("losses", [(), (2.0,), (2.0, 1.0), (2.0, 1.0, None)])
def test_two_evaluations_are_no_course(losses):
    assert diagnose(case(**LEARNING, history=history(*losses))) == ()


def test_losses_are_compared_at_one_image_size_only():
    jump = (*history(1.0, 0.9, 0.9, 0.9, size=64), *history(2.0, size=224))
    assert diagnose(case(**LEARNING, history=jump)) == ()


def test_no_remedy_leaves_its_range():
    recipe = changed(MEDIUM, epochs=30, batch_size=64, learning_rate=5e-4)
    falling = history(2.0, 1.8, 1.6, 1.4, 1.2, 1.0)
    finding = only(diagnose(case(**LEARNING, history=falling, recipe=recipe)))
    assert not any("--" in text for text in finding.remedies)


POOR = {"train": share(390, 500), "held_out": share(140, 200)}


def test_poor_accuracy_is_judged_by_the_documented_cases():
    finding = only(diagnose(case(**POOR, likely_label_errors=7)))
    assert finding.problem == "poor final accuracy"
    assert "70.0%" in finding.evidence[0]
    assert "documented cases give at least 82%" in finding.evidence[0]
    assert finding.remedies == (
        "train longer: --epochs 16",
        "check data quality and labels: the 7 likely label errors first",
        "a higher learning rate: --learning-rate 0.0001",
        "a larger network: --arch resnet101 or vit_b_16",
        "more images; there are 2000",
    )


def test_a_recipe_with_a_band_is_judged_by_it():
    xray = RECIPES["xray"]  # 90 to 94 %
    low = {"train": share(440, 500), "held_out": share(165, 200)}
    finding = only(diagnose(case(**low, recipe=xray)))
    assert "recipe xray usually gives at least 90%" in finding.evidence[0]
    assert diagnose(case(**low)) == ()


def test_an_accuracy_whose_interval_reaches_what_is_expected_is_not_called_poor():
    assert diagnose(case(train=share(410, 500), held_out=share(31, 40))) == ()


def test_unequal_classes_are_a_reason_for_poor_accuracy():
    finding = only(diagnose(case(**POOR, train_counts=(900, 100, 300))))
    assert any("now 100 to 900 images: --class-weights sqrt" in text for text in finding.remedies)


def test_more_training_is_no_remedy_where_it_learns_by_heart():
    found = diagnose(case(train=share(500, 500), held_out=share(120, 200)))
    assert problems(found) == ["overfitting", "poor final accuracy"]
    poor = " ".join(found[1].remedies)
    assert "--epochs" not in poor
    assert "--arch" not in poor
    assert "--learning-rate" not in poor


def test_the_largest_network_has_no_larger_one():
    finding = only(diagnose(case(**POOR, architecture="vit_l_16")))
    assert not any("--arch" in text for text in finding.remedies)


def test_a_finding_is_told_with_its_numbers_and_remedies():
    finding = only(diagnose(case(**OVERFIT)))
    first, second = told(finding).splitlines()
    assert first.startswith("overfitting: 99.6%")
    assert second == (
        "  try more augmentation: --augmentation heavy; 30 to 50 % fewer epochs: --epochs 5; "
        "a lower learning rate: --learning-rate 2e-05; 1 more in the report"
    )
    assert "more in the report" not in told(msgspec.structs.replace(finding, remedies=("rest",)))
