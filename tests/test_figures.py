"""The figures of a finished run, on answers made by hand."""

import numpy as np
import pytest

from packshot.intervals import share_interval
from packshot.prediction import probabilities
from trainer.abstaining import choose_threshold, fewest_to_show, told
from trainer.answered import TRAIN_SAMPLE, Answers, train_sample
from trainer.coverage import CURVE_POINTS, curve, operation, operations
from trainer.data import Example
from trainer.doubtful import LISTED, confident_mistakes, likely_label_errors, usual_confidence
from trainer.evaluate import Share, score
from trainer.metrics import calibration_of
from trainer.reliability import reliability


def answers(shares, truth, part="val", temperature=1.0) -> Answers:
    """Of a network that gives these probabilities [N, classes]."""
    shares = np.asarray(shares, float)
    return Answers(
        part=part,
        examples=tuple(Example(f"{part}/{i}.jpg", int(t), "") for i, t in enumerate(truth)),
        views=np.zeros((len(shares), 4, 4, 3), np.uint8),
        logits=np.log(shares).astype(np.float32),
        temperature=temperature,
    )


def sure(confidence, right, part="val") -> Answers:
    """Of two classes, the first always said, with these probabilities, rightly or not."""
    confidence = np.asarray(confidence, float)
    shares = np.stack([confidence, 1 - confidence], axis=1)
    return answers(shares, [0 if one else 1 for one in right], part)


def test_top_5_counts_the_classes_among_the_five_most_probable():
    logits = np.array([[6, 5, 4, 3, 2, 1]] * 4, np.float32)
    result = score(logits, np.array([0, 4, 5, 5]), tuple("abcdef"), 224)
    assert (result.accuracy, result.top5) == (0.25, 0.5)
    assert result.top5_interval == share_interval(2, 4)


def test_top_5_of_equal_logits_goes_by_the_order_of_the_labels():
    result = score(np.zeros((2, 6), np.float32), np.array([4, 5]), tuple("abcdef"), 224)
    assert result.top5 == 0.5


def test_of_five_classes_the_first_five_would_say_nothing():
    result = score(np.zeros((2, 5), np.float32), np.array([0, 4]), tuple("abcde"), 224)
    assert (result.top5, result.top5_interval) == (None, None)


def test_a_share_has_its_interval():
    found = Share.of(np.array([True, True, False, True]))
    assert (found.images, found.accuracy, found.interval) == (4, 0.75, share_interval(3, 4))


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    found = reliability(confidence, np.array([True, False, True, True]))
    assert found.error == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
    low, high = found.bins
    assert (low.low, low.high) == (pytest.approx(8 / 15), pytest.approx(9 / 15))
    assert (low.images, low.confidence, low.accuracy) == (2, pytest.approx(0.55), 1.0)
    assert (high.high, high.images, high.accuracy) == (1.0, 2, 0.5)


def test_a_probability_of_one_is_in_the_last_bin():
    (only,) = reliability(np.array([1.0]), np.array([True])).bins
    assert (only.high, only.images) == (1.0, 1)


def test_the_error_of_right_probabilities_is_that_of_chance_and_shrinks_with_images():
    rng = np.random.default_rng(1)
    few, many = (reliability(c, rng.random(n) < c) for n in (40, 4000) for c in [rng.random(n)])
    assert few.error_by_chance > 0.08
    assert many.error_by_chance < 0.025
    assert many.error == pytest.approx(many.error_by_chance, abs=0.02)
    confidence = np.full(4000, 0.99)
    wrong = reliability(confidence, np.arange(4000) % 2 == 0)
    assert wrong.error == pytest.approx(0.49)
    assert wrong.error_by_chance < 0.01


def test_calibration_is_told_before_and_after_the_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (2000, 4)).astype(np.float32)
    truth = [rng.choice(4, p=p) for p in probabilities(logits, 2.5)]
    found = calibration_of(answers(probabilities(logits), truth, temperature=2.5))
    assert found.temperature == 2.5
    assert found.before.error > 0.1
    assert found.after.error < 0.03


def test_coverage_by_hand():
    confidence = np.array([0.9, 0.8, 0.8, 0.6])
    right = np.array([True, True, False, False])
    found = operations(confidence, right)
    assert [(one.threshold, one.answered, one.precision) for one in found] == [
        (0.9, 1, 1.0),
        (0.8, 3, pytest.approx(2 / 3)),  # equal ones are answered together
        (0.6, 4, 0.5),
    ]
    assert [one.coverage for one in found] == [0.25, 0.75, 1.0]
    assert found[1].interval == share_interval(2, 3)
    assert operation(0.8, confidence, right) == found[1]


def test_a_threshold_above_all_answers_nothing():
    nothing = operation(0.95, np.array([0.9]), np.array([True]))
    assert (nothing.answered, nothing.coverage) == (0, 0.0)
    assert (nothing.precision, nothing.interval) == (None, None)


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    confidence = np.linspace(0.5, 1, 5000)
    found = curve(confidence, confidence > 0.6)
    assert len(found) == CURVE_POINTS
    assert (found[0].answered, found[-1].answered) == (1, 5000)


CONFIDENCE = np.linspace(0.99, 0.51, 100)
RIGHT = np.arange(100) < 80  # the surest 80 of 100


def test_the_threshold_is_the_lowest_whose_interval_is_above_the_target():
    validation, test = sure(CONFIDENCE, RIGHT), sure([0.9, 0.52], [True, False], "test")
    chosen = choose_threshold(0.9, validation, test)
    most = max(n for n in range(1, 101) if share_interval(min(n, 80), n)[0] >= 0.9)
    assert most > 80, "some wrong answers are allowed for"
    assert chosen.reached
    assert chosen.validation.answered == most
    assert CONFIDENCE[most] < chosen.threshold < CONFIDENCE[most - 1]
    assert chosen.validation.interval[0] >= 0.9
    assert (chosen.test.answered, chosen.test.precision) == (1, 1.0)
    assert chosen.observed is None
    sentence = told(chosen)
    assert f"answers below a probability of {chosen.threshold:.3f} abstain" in sentence
    assert "on test 50.0% of 2 images are answered, 100.0% of them rightly" in sentence


def test_too_few_images_promise_nothing_and_the_observed_threshold_is_told():
    chosen = choose_threshold(0.95, sure(CONFIDENCE[::3], RIGHT[::3]), None)
    assert (chosen.reached, chosen.threshold) == (False, 0.0)
    assert chosen.validation.coverage == 1.0
    assert chosen.observed.precision >= 0.95
    assert chosen.observed.answered == 28  # 27 right, then one wrong; with two it is 93 %
    assert fewest_to_show(0.95) == 73
    assert share_interval(73, 73)[0] >= 0.95 > share_interval(72, 72)[0]
    sentence = told(chosen)
    assert "it takes 73 answers, all of them right, to show it" in sentence
    assert "there are 34 validation images" in sentence
    assert "--min-confidence 0." in sentence


def test_where_the_surest_answers_are_wrong_no_threshold_is_told():
    chosen = choose_threshold(0.9, sure(CONFIDENCE, ~RIGHT), None)
    assert (chosen.reached, chosen.observed) == (False, None)
    assert "a better network is needed" in told(chosen)


def test_where_all_may_be_answered_none_abstains():
    chosen = choose_threshold(0.9, sure(CONFIDENCE, [True] * 100), None)
    assert (chosen.reached, chosen.threshold) == (True, 0.0)
    assert "every answer may be given" in told(chosen)


LABELS = ("a", "b", "c")


def test_mistakes_are_told_surest_first():
    val = answers([[0.7, 0.2, 0.1], [0.9, 0.05, 0.05]], [1, 0])
    test = answers([[0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], [2, 0], "test")
    found = confident_mistakes([val, test], LABELS)
    assert found.images == 3
    assert [(one.file, one.part, one.label, one.answer) for one in found.listed] == [
        ("test/0.jpg", "test", "c", "b"),
        ("val/0.jpg", "val", "b", "a"),
        ("test/1.jpg", "test", "a", "c"),
    ]
    assert found.listed[0].answer_probability == pytest.approx(0.8)
    assert found.listed[0].label_probability == pytest.approx(0.1)


def test_more_mistakes_than_are_listed_are_counted():
    many = sure(np.full(LISTED + 5, 0.8), [False] * (LISTED + 5))
    found = confident_mistakes([many], ("a", "b"))
    assert (found.images, len(found.listed)) == (LISTED + 5, LISTED)


def test_likely_label_errors_are_those_surer_than_is_usual_for_the_class():
    held_out = answers(
        [
            [0.9, 0.05, 0.05],  # an a
            [0.7, 0.2, 0.1],  # an a: 0.8 is usual
            [0.85, 0.1, 0.05],  # called b, surely an a
            [0.75, 0.2, 0.05],  # called b, perhaps an a
            [0.1, 0.8, 0.1],
        ],
        [0, 0, 1, 1, 1],
    )
    train = answers([[0.95, 0.03, 0.02], [0.3, 0.3, 0.4]], [1, 0], "train")
    usual = usual_confidence([held_out], 3)
    assert usual[0] == pytest.approx(0.8)
    assert np.isinf(usual[2])  # no image of it: nothing is sure
    found = likely_label_errors([held_out], [train], LABELS)
    assert [one.file for one in found.listed] == ["train/0.jpg", "val/2.jpg"]
    assert found.images == 2


def test_a_large_training_set_is_sampled_by_the_seed():
    train = [Example(f"{i}.jpg", 0, "") for i in range(2000)]
    assert len(train_sample(train, 0)) == TRAIN_SAMPLE
    assert train_sample(train, 0) == train_sample(train, 0) != train_sample(train, 1)
    assert train_sample(train[:9], 0) == train[:9]
