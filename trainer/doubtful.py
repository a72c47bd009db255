"""Images that a person should look at: confident mistakes, and labels that are likely wrong."""

from collections.abc import Sequence

import msgspec
import numpy as np

from trainer.answered import Answers, Part

LISTED = 100


class Doubtful(msgspec.Struct, frozen=True, kw_only=True):
    """An image whose label and answer differ, with the probability that each of them was given."""

    file: str
    part: Part
    label: str
    answer: str
    label_probability: float
    answer_probability: float


class Doubts(msgspec.Struct, frozen=True, kw_only=True):
    """`images`: how many there are; `listed`: of them at most `LISTED`, the most doubtful first."""

    images: int
    listed: tuple[Doubtful, ...]


def confident_mistakes(held_out: Sequence[Answers], labels: Sequence[str]) -> Doubts:
    """Wrong answers on images that were not trained on, most probable first."""
    wrong = [
        _doubtful(answers, i, labels)
        for answers in held_out
        for i in np.flatnonzero(~answers.right).tolist()
    ]
    wrong.sort(key=lambda one: -one.answer_probability)
    return Doubts(images=len(wrong), listed=tuple(wrong[:LISTED]))


def likely_label_errors(
    held_out: Sequence[Answers], train: Sequence[Answers], labels: Sequence[str]
) -> Doubts:
    """Images that the network surely takes for another class than their label's.

    Surely: with at least the mean probability that held-out images of that other class are given
    for it (confident learning: Northcutt et al., JAIR 2021). Training images were fitted, labels
    and all: fewer of their errors are found.
    """
    usual = usual_confidence(held_out, len(labels))
    found = [
        _doubtful(answers, i, labels)
        for answers in (*held_out, *train)
        for i in _surely_others(answers, usual)
    ]
    found.sort(key=lambda one: one.label_probability - one.answer_probability)
    return Doubts(images=len(found), listed=tuple(found[:LISTED]))


def usual_confidence(held_out: Sequence[Answers], classes: int) -> np.ndarray:
    """Mean probability of each class on its own images, float [classes].

    Infinite for a class without images: nothing is known of it then.
    """
    truth = np.concatenate([answers.truth for answers in held_out])
    own = np.concatenate([a.shares[np.arange(len(a.truth)), a.truth] for a in held_out])
    images = np.bincount(truth, minlength=classes)
    total = np.bincount(truth, weights=own, minlength=classes)
    return np.where(images > 0, total / np.maximum(images, 1), np.inf)


def _surely_others(answers: Answers, usual: np.ndarray) -> list[int]:
    sure = answers.confidence >= usual[answers.said]
    return [int(i) for i in np.flatnonzero(~answers.right & sure)]


def _doubtful(answers: Answers, i: int, labels: Sequence[str]) -> Doubtful:
    label, said = int(answers.truth[i]), int(answers.said[i])
    return Doubtful(
        file=answers.examples[i].file,
        part=answers.part,
        label=labels[label],
        answer=labels[said],
        label_probability=float(answers.shares[i, label]),
        answer_probability=float(answers.shares[i, said]),
    )
