"""The folder of answers: Parquet files that appear whole, and a mark once all are there.

out/_job.json             which version answers, and what was asked for; written first
out/part-<run>-<n>.parquet   answers; rows are in no order
out/_SUCCESS              written last: without it the folder is not finished

Names that begin with _ or . are no data to pyarrow, Spark and Ray.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem
from ray.data import Datasink

from deploy.ray.images import ID, place, repeated
from packshot.atomic import write_whole
from packshot.errors import DamagedFile, InvalidInput

JOB, SUCCESS = "_job.json", "_SUCCESS"


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all answers of one folder have in common."""

    model: str
    version: int
    top_k: int
    min_confidence: float | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the folder. `unusable`: images by reason; `engines`: images by engine."""

    images: int
    abstained: int
    unusable: dict[str, int]
    engines: dict[str, int]

    def __str__(self) -> str:
        unusable = f" ({_listed(self.unusable)})" if self.unusable else ""
        return (
            f"{self.images} images: {self.abstained} abstained, {sum(self.unusable.values())} "
            f"cannot be used{unusable}; engine {_listed(self.engines)}"
        )


class Output:
    """One folder of answers, local or of an object store."""

    def __init__(self, name: str) -> None:
        """Raises InvalidInput if there can be none."""
        self.name = name
        self._filesystem, self._path = place(name)

    def must_be_new(self) -> None:
        """Raises InvalidInput if something is there already."""
        if self._names():
            raise InvalidInput(
                f"{self.name} is there already: name another folder, or give --resume to answer "
                "what it has no answer to yet"
            )

    def begin(self, job: Job) -> None:
        """Raises InvalidInput if something is there already."""
        self.must_be_new()
        self._put(JOB, msgspec.json.encode(job))

    def begun(self) -> Job:
        """The job that is to be resumed. Raises InvalidInput or DamagedFile."""
        if JOB not in self._names():
            raise InvalidInput(f"{self.name} has no {JOB}, so there is nothing to resume")
        with self._filesystem.open_input_stream(f"{self._path}/{JOB}") as stream:
            content = stream.read()
        try:
            return msgspec.json.decode(content, type=Job)
        except msgspec.DecodeError as error:
            raise DamagedFile(f"{self.name}/{JOB} cannot be read: {error}") from error

    def answered(self) -> pa.ChunkedArray:
        """Ids that have an answer."""
        return self._answers().to_table(columns=[ID])[ID]

    def reopen(self) -> None:
        """From now on it is not finished."""
        if SUCCESS in self._names():
            self._filesystem.delete_file(f"{self._path}/{SUCCESS}")

    def finish(self, ids: pa.ChunkedArray) -> Summary:
        """Counts, and marks the folder as finished. Raises DamagedFile unless each id is there."""
        table = self._answers().to_table(columns=[ID, "abstained", "reason", "engine"])
        self._check(table[ID], ids)
        summary = Summary(
            images=len(table),
            abstained=pc.sum(table["abstained"]).as_py() or 0,
            unusable=_counted(table["reason"]),
            engines=_counted(table["engine"]),
        )
        self._put(SUCCESS, msgspec.json.encode(summary))
        return summary

    def _check(self, answered: pa.ChunkedArray, ids: pa.ChunkedArray) -> None:
        unknown = len(answered) - (pc.sum(pc.is_in(answered, value_set=ids)).as_py() or 0)
        if unknown:
            raise DamagedFile(
                f"{self.name} has {unknown} answers to images that are not there: the input has "
                "changed since; put them back, or name another folder"
            )
        if twice := repeated(answered):
            raise DamagedFile(
                f"{self.name} has {twice} ids that are answered more than once: two jobs wrote "
                "into it; name another folder"
            )
        if len(answered) != len(ids):
            raise DamagedFile(
                f"{self.name} has {len(answered)} answers to {len(ids)} images: is it a folder "
                "that all machines of the cluster share?"
            )

    def _names(self) -> list[str]:
        found = self._filesystem.get_file_info(FileSelector(self._path, allow_not_found=True))
        return [one.base_name for one in found]

    def _answers(self) -> Any:
        files = self._filesystem.get_file_info(FileSelector(self._path, allow_not_found=True))
        parts = [
            one.path
            for one in files
            if one.type is FileType.File and one.base_name.startswith("part-")
        ]
        texts = {name: pa.string() for name in (ID, "reason", "engine")}
        schema = pa.schema({**texts, "abstained": pa.bool_()})
        return pyarrow.dataset.dataset(
            parts, schema=schema, filesystem=self._filesystem, format="parquet"
        )

    def _put(self, name: str, content: bytes) -> None:
        put_whole(self._filesystem, f"{self._path}/{name}", content)


class Parts(Datasink[None]):
    """Writes a file for each task of Ray Data. A task that is run again replaces its file."""

    def __init__(self, folder: str, run: str) -> None:
        """`run` tells the files of this run from those of one that it resumes."""
        self._folder = folder
        self._run = run

    def write(self, blocks: Iterable[Any], ctx: Any) -> None:
        table = pa.concat_tables(blocks)
        if not len(table):
            return
        content = pa.BufferOutputStream()
        pyarrow.parquet.write_table(table, content)
        filesystem, path = place(self._folder)
        name = f"{path}/part-{self._run}-{ctx.task_idx:06}.parquet"
        put_whole(filesystem, name, content.getvalue().to_pybytes())


def put_whole(filesystem: FileSystem, path: str, content: bytes) -> None:
    """A file of an object store is there when it is closed; a local one when it is renamed."""
    if isinstance(filesystem, LocalFileSystem):
        write_whole(Path(path), content)
        return
    with filesystem.open_output_stream(path, compression=None) as stream:
        stream.write(content)


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(Counter(value for value in column.to_pylist() if value is not None))


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
