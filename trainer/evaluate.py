"""Evaluation: the network's answers on the server's pixels, and what they are worth."""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from packshot.image import ImageSpec, Pixels
from packshot.intervals import Interval, share_interval
from packshot.prediction import Logits, probabilities
from trainer.batches import served_views
from trainer.data import Example, Split
from trainer.model import PixelNetwork

EVALUATION_BATCH = 16
TOP = 5


class ClassScore(msgspec.Struct, frozen=True, kw_only=True):
    label: str
    images: int
    precision: float
    recall: float
    f1: float


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Figures on one split. `interval`: Wilson's 95 % interval of the accuracy.

    `top5`: share of the images with their class among the five most probable; null where there are
    no more than five classes.
    """

    images: int
    image_size: int
    loss: float
    accuracy: float
    interval: Interval
    top5: float | None = None
    top5_interval: Interval | None = None
    macro_f1: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]  # row: true class, column: predicted


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """An accuracy alone, with Wilson's 95 % interval."""

    images: int
    accuracy: float
    interval: Interval

    @classmethod
    def of(cls, right: npt.NDArray[np.bool_]) -> "Share":
        """`right`: whether each answer is [N]."""
        hits, images = int(right.sum()), len(right)
        return cls(images=images, accuracy=hits / images, interval=share_interval(hits, images))


class Views(msgspec.Struct, frozen=True, kw_only=True):
    """Images as the server would see them, uint8 [N, crop, crop, 3], with their labels [N]."""

    images: Pixels
    truth: np.ndarray

    @classmethod
    def of(cls, split: Split, examples: Sequence[Example], spec: ImageSpec) -> "Views":
        truth = np.array([example.label for example in examples], np.int64)
        return cls(images=served_views(split, examples, spec), truth=truth)


def predict(network: PixelNetwork, views: Pixels) -> Logits:
    """Logits float32 [N, classes] of views uint8 [N, side, side, 3], in evaluation mode."""
    device = network.mean.device
    if not len(views):
        return np.empty((0, network.head.out_features), np.float32)
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        chunks = [
            network(torch.from_numpy(views[i : i + EVALUATION_BATCH]).to(device))[0].float().cpu()
            for i in range(0, len(views), EVALUATION_BATCH)
        ]
    network.train(was_training)
    logits: Logits = torch.cat(chunks).numpy()
    return logits


def resized(views: Pixels, size: int) -> Pixels:
    """The same views at another size, to follow a training stage on smaller pictures."""
    if views.shape[1] == size or not len(views):
        return views
    side = (size, size)
    return np.stack(
        [np.asarray(Image.fromarray(v).resize(side, Image.Resampling.BILINEAR)) for v in views]
    )


def score(
    logits: Logits, truth: npt.NDArray[np.int64], labels: tuple[str, ...], image_size: int
) -> Evaluation:
    """Figures from logits [N, classes] and true labels [N]."""
    predicted = logits.argmax(axis=1)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    right = int((predicted == truth).sum())
    likelihood = probabilities(logits)[np.arange(len(truth)), truth]
    classes = tuple(_class_score(confusion, i, label) for i, label in enumerate(labels))
    among_top = _among_top(logits, truth) if len(labels) > TOP else None
    return Evaluation(
        images=len(truth),
        image_size=image_size,
        loss=float(-np.log(np.maximum(likelihood, 1e-12)).mean()),
        accuracy=right / len(truth),
        interval=share_interval(right, len(truth)),
        top5=None if among_top is None else among_top / len(truth),
        top5_interval=None if among_top is None else share_interval(among_top, len(truth)),
        macro_f1=float(np.mean([one.f1 for one in classes if one.images])),
        classes=classes,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def _among_top(logits: Logits, truth: npt.NDArray[np.int64]) -> int:
    """Images whose class is among the `TOP` most probable; ties in the order of the labels."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    return int((best == truth[:, None]).sum())


def _class_score(confusion: npt.NDArray[np.int64], i: int, label: str) -> ClassScore:
    hits, images, predicted = confusion[i, i], confusion[i].sum(), confusion[:, i].sum()
    precision = float(hits / predicted) if predicted else 0.0
    recall = float(hits / images) if images else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return ClassScore(
        label=label, images=int(images), precision=precision, recall=recall, f1=float(f1)
    )


def brief(evaluation: Evaluation) -> dict[str, float]:
    """The figures of a log line: the confusion of many classes would make it endless."""
    names = ("images", "image_size", "loss", "accuracy", "macro_f1")
    return {name: getattr(evaluation, name) for name in names}


Rank = tuple[float, ...]
"""Higher is better; figures at different sizes do not compare, the larger size counts more."""


def rank(evaluation: Evaluation) -> Rank:
    return (evaluation.image_size, evaluation.macro_f1, -evaluation.loss)


def size_of(standing: Rank) -> int:
    """The image side in pixels."""
    return int(standing[0])
