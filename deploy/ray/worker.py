"""What runs on a machine of the cluster: one engine, and what it says of the images given to it."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec
import pyarrow as pa

from deploy.ray.images import HTTP_TIMEOUT_SECONDS, ID, IMAGE, Reader, Unreadable
from packshot.errors import ImageError, PackshotError
from packshot.image import ImageLimits, Pixels, load_pixels
from serving.engines.open import EngineChoice
from serving.ranking import Classified, Ranking, ranked
from serving.supply import Store
from serving.verified import open_version

READING = 8
"""Files on their way at a time: what is far away takes long, not much CPU."""

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "label": pa.string(),
        "probability": pa.float64(),
        "labels": pa.list_(pa.string()),
        "probabilities": pa.list_(pa.float64()),
        "abstained": pa.bool_(),
        "reason": pa.string(),
        "error": pa.string(),
        "model": pa.string(),
        "version": pa.int32(),
        "engine": pa.string(),
    }
)

T = TypeVar("T")
Trouble: TypeAlias = ImageError | Unreadable


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What every worker is told. `folder`: of images that are named by their path within it."""

    version_folder: Path
    choice: EngineChoice
    limits: ImageLimits
    ranking: Ranking
    decoders: int
    folder: str | None
    http_timeout_seconds: float = HTTP_TIMEOUT_SECONDS


class Classifier:
    """Opens the engine as the server does, golden samples and all, and answers tables by tables."""

    def __init__(self, task: Task) -> None:
        """Raises NotFound, DamagedFile, AnswersDiffer, EngineRefused or InvalidInput."""
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        self._task = task
        store = Store(task.version_folder.parents[1])
        bundle, self._opened = open_version(store, task.version_folder, task.choice)
        self._manifest = bundle.manifest
        self._reader = Reader(task.folder, task.limits.max_bytes, task.http_timeout_seconds)
        self._reading = ThreadPoolExecutor(READING, "read")
        self._decoding = ThreadPoolExecutor(task.decoders, "decode")

    def __call__(self, table: pa.Table) -> pa.Table:
        """A row of SCHEMA for each row, in order."""
        ids, images = table[ID].to_pylist(), table[IMAGE].to_pylist()
        answers: list[Classified | Trouble] = []
        # The threads read on while the engine runs.
        for some in batches(self._reading.map(self._read, images), self._task.choice.max_batch):
            answers += self._answers(list(self._decoding.map(self._decode, some)))
        rows = [self._row(id_, answer) for id_, answer in zip(ids, answers, strict=True)]
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _read(self, image: bytes | str | None) -> bytes | Trouble:
        try:
            return self._reader.read(image)
        except Unreadable as error:
            return error

    def _decode(self, content: bytes | Trouble) -> Pixels | Trouble:
        if not isinstance(content, bytes):
            return content
        try:
            return load_pixels(content, self._manifest.image, self._task.limits)
        except ImageError as error:
            return error

    def _answers(self, pictures: Sequence[Pixels | Trouble]) -> list[Classified | Trouble]:
        good = [one for one in pictures if not isinstance(one, Trouble)]
        logits = iter(self._opened.engine.run(good).logits) if good else iter(())
        return [
            one
            if isinstance(one, Trouble)
            else ranked(next(logits), self._manifest, self._task.ranking)
            for one in pictures
        ]

    def _row(self, id_: str, answer: Classified | Trouble) -> dict[str, object]:
        row: dict[str, object] = {
            "id": id_,
            "model": self._manifest.model,
            "version": self._manifest.version,
            "engine": self._opened.engine.name,
        }
        if isinstance(answer, Trouble):
            reason = answer.reason if isinstance(answer, ImageError) else "unreadable"
            return {**row, "reason": reason, "error": str(answer)}
        best = answer.predictions[0]
        return {
            **row,
            "label": best.label,
            "probability": best.probability,
            "labels": [one.label for one in answer.predictions],
            "probabilities": [one.probability for one in answer.predictions],
            "abstained": answer.abstained,
        }


def refusal(task: Task) -> str | None:
    """Why no worker can be had, if none can."""
    try:
        Classifier(task)
    except PackshotError as error:
        return str(error)
    return None


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(itertools.islice(rest, size)):
        yield some
