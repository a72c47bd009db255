"""What a model's answers say, counted: labels by probability, embeddings, tensors."""

import msgspec
import numpy as np
import numpy.typing as npt

from packshot.errors import ImageError
from packshot.prediction import Logits, probabilities
from serving.engines import Answer
from serving.model import Model
from serving.ranking import Classified, Ranking, ranked


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """One answer per image, in order, and the engine that gave them."""

    images: list[Answer | ImageError]
    engine: str


class Tensors(msgspec.Struct, frozen=True, kw_only=True):
    """The answers to N images: float32 [N, classes], [N, classes] and [N, features]."""

    logits: Logits
    probabilities: npt.NDArray[np.float32]
    embedding: npt.NDArray[np.float32]


def classified(
    model: Model, answer: Answer | ImageError, ranking: Ranking
) -> Classified | ImageError:
    """Of one image."""
    if isinstance(answer, ImageError):
        model.metrics.answered(answer.reason)
        return answer
    found = ranked(answer.logits, model.manifest, ranking)
    model.metrics.answered("ok")
    model.metrics.was_sure(found.predictions[0].probability)
    if found.abstained:
        model.metrics.abstained()
    return found


def embedding(
    model: Model, answer: Answer | ImageError, *, normalize: bool
) -> npt.NDArray[np.float32] | ImageError:
    """float32 [features], of length 1 (L2) if `normalize` and not all zero."""
    if isinstance(answer, ImageError):
        model.metrics.answered(answer.reason)
        return answer
    model.metrics.answered("ok")
    length = float(np.linalg.norm(answer.embedding)) if normalize else 1.0
    return answer.embedding / np.float32(length or 1.0)


def tensors(model: Model, answers: Answers) -> Tensors:
    """What all images got. Raises ImageError if one of them could not be used."""
    unusable = {n: one for n, one in enumerate(answers.images) if isinstance(one, ImageError)}
    for error in unusable.values():
        model.metrics.answered(error.reason)
    for number, error in unusable.items():
        told = f"images[{number}] cannot be used: {error.reason}: {error}"
        raise ImageError(error.reason, told)
    found = [answer for answer in answers.images if isinstance(answer, Answer)]
    logits, embeddings = (np.stack(rows) for rows in zip(*found, strict=True))
    shares = probabilities(logits, model.manifest.temperature).astype(np.float32)
    for best in shares.max(axis=1).tolist():
        model.metrics.answered("ok")
        model.metrics.was_sure(best)
    return Tensors(logits=logits, probabilities=shares, embedding=embeddings)
