import numpy as np
import pytest

from packshot.prediction import probabilities, top_predictions


def test_ranks_and_adds_up():
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    ranked = top_predictions(logits, ("a", "b", "c"), 3)
    assert [p.label for p in ranked] == ["b", "c", "a"]
    assert [p.index for p in ranked] == [1, 2, 0]
    assert sum(p.probability for p in ranked) == pytest.approx(1)
    assert ranked[0].probability == pytest.approx(np.exp(3) / np.exp([1, 2, 3]).sum())


def test_k_above_the_number_of_labels_gives_them_all():
    assert len(top_predictions(np.zeros(3, np.float32), ("a", "b", "c"), 9)) == 3


def test_ties_keep_the_order_of_the_labels():
    ranked = top_predictions(np.zeros(3, np.float32), ("a", "b", "c"), 2)
    assert [p.label for p in ranked] == ["a", "b"]


def test_temperature_softens():
    logits = np.array([[1.0, 3.0]], np.float32)
    sharp, soft = probabilities(logits, 0.5), probabilities(logits, 2.0)
    assert sharp[0, 1] > probabilities(logits)[0, 1] > soft[0, 1] > 0.5


def test_huge_logits_do_not_overflow():
    assert probabilities(np.array([1e30, 0.0], np.float32)).tolist() == [1.0, 0.0]
