"""Where images are: a folder, Parquet files with their bytes or addresses; local or remote."""

import urllib.request
from collections.abc import Iterator
from functools import cache
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from packshot.errors import InvalidInput
from packshot.image import SUFFIXES

ID, IMAGE = "id", "image"
FILE, GROUP = "file", "group"
ROWS_AT_A_TIME = 64
HTTP_TIMEOUT_SECONDS = 30.0


class Unreadable(InvalidInput):
    """The bytes of one image cannot be had."""


def place(name: str) -> tuple[FileSystem, str]:
    """File system and path in it of a local path or a URI (s3://, gs://, hdfs://, ...).

    Raises InvalidInput.
    """
    try:
        if "://" in name:
            filesystem, path = FileSystem.from_uri(name)
            return filesystem, path.rstrip("/")
        return LocalFileSystem(), str(Path(name).absolute())
    except (OSError, ValueError, NotImplementedError) as error:
        raise InvalidInput(f"{name} cannot be opened: {error}") from error


def images_in(folder: str) -> pa.Table:
    """A row an image at any depth, by its path within the folder. Raises InvalidInput."""
    filesystem, root = place(folder)
    if filesystem.get_file_info(root).type is not FileType.Directory:
        raise InvalidInput(f"{folder} is no folder of images")
    found = filesystem.get_file_info(FileSelector(root, recursive=True))
    names = sorted(
        one.path.removeprefix(root).lstrip("/")
        for one in found
        if one.type is FileType.File and f".{one.extension.lower()}" in SUFFIXES
    )
    if not names:
        raise InvalidInput(
            f"no image in {folder}; of Parquet files, name the column that has them: --image-column"
        )
    return pa.table({ID: names, IMAGE: names})


class Parquet:
    """Parquet files with a column of images: bytes, or strings that say where they are."""

    def __init__(self, name: str, image_column: str, id_column: str | None) -> None:
        """Raises InvalidInput for files or columns that will not do."""
        self.name = name
        self.image_column = image_column
        self.id_column = id_column or image_column
        filesystem, path = place(name)
        try:
            self._files = pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet")
        except (OSError, pa.ArrowInvalid) as error:
            raise InvalidInput(f"{name} cannot be read as Parquet: {error}") from error
        schema = self._files.schema
        for column in (self.image_column, self.id_column):
            if column not in schema.names:
                raise InvalidInput(f"{name} has no column {column!r}; it has {schema.names}")
        kind = schema.field(image_column).type
        self.has_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        if not self.has_bytes and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InvalidInput(
                f"column {image_column!r} of {name} is {kind}; images are bytes, paths or URLs"
            )
        if self.has_bytes and id_column is None:
            raise InvalidInput(
                f"column {image_column!r} of {name} is {kind}, which names no image: name a column "
                "that does, --id-column"
            )

    def ids(self) -> pa.ChunkedArray:
        return self._files.to_table([self.id_column])[self.id_column].cast(pa.string())

    def groups(self) -> list[pa.Table]:
        """The row groups, each a table of one row: a path for `rows_of`, and a number."""
        return [
            pa.table({FILE: [one.path], GROUP: [number]})
            for one in self._files.get_fragments()
            for number in range(one.num_row_groups)
        ]

    def rows_of(self, groups: pa.Table) -> Iterator[pa.Table]:
        """Id and bytes of the images in row groups, some at a time."""
        filesystem, _ = place(self.name)
        columns = [self.id_column, self.image_column]
        for group in groups.to_pylist():
            with filesystem.open_input_file(group[FILE]) as file:
                for rows in pyarrow.parquet.ParquetFile(file).iter_batches(
                    ROWS_AT_A_TIME, row_groups=[group[GROUP]], columns=columns
                ):
                    ids, images = (rows.column(name) for name in columns)
                    yield pa.table([ids.cast(pa.string()), images], names=[ID, IMAGE])

    def places(self) -> pa.Table:
        """Id and place of each image."""
        columns = [
            self._files.to_table([name])[name] for name in (self.id_column, self.image_column)
        ]
        return pa.table([one.cast(pa.string()) for one in columns], names=[ID, IMAGE])


class Reader:
    """Bytes of images: they themselves, paths within `folder`, or local paths and URLs."""

    def __init__(
        self,
        folder: str | None,
        max_bytes: int,
        http_timeout_seconds: float = HTTP_TIMEOUT_SECONDS,
    ) -> None:
        self._folder = None if folder is None else place(folder)
        self._max_bytes = max_bytes
        self._http_timeout_seconds = http_timeout_seconds

    def read(self, image: bytes | str | None) -> bytes:
        """Of a larger file one byte more than the limit, to be refused. Raises Unreadable."""
        if image is None:
            raise Unreadable("no image: the column is null")
        if isinstance(image, bytes):
            return image
        try:
            return self._read_from(image)
        # urllib's, pyarrow's, http.client's (which are no OSError), `place`'s
        except (OSError, ValueError, HTTPException, InvalidInput) as error:
            if isinstance(error, HTTPError):
                error.close()  # it holds the connection
            raise Unreadable(f"{image} cannot be read: {error}") from error

    def _read_from(self, name: str) -> bytes:
        if self._folder is None and urlsplit(name).scheme in ("http", "https"):
            return self._fetched(name)
        filesystem, path = self._located(name)
        with filesystem.open_input_stream(path, compression=None) as stream:
            read: bytes = stream.read(self._max_bytes + 1)
        return read

    def _fetched(self, url: str) -> bytes:
        with urllib.request.urlopen(url, timeout=self._http_timeout_seconds) as response:  # noqa: S310  # http or https
            content: bytes = response.read(self._max_bytes + 1)
            # Of a body that ends too early `read` with a size says nothing. `length` is what is
            # still to come, None where the server did not tell.
            if response.length and len(content) <= self._max_bytes:
                raise Unreadable("the connection broke off")
        return content

    def _located(self, name: str) -> tuple[FileSystem, str]:
        if self._folder is not None:
            filesystem, root = self._folder
            return filesystem, f"{root}/{name}"
        parts = urlsplit(name)
        if not parts.scheme:
            return LocalFileSystem(), name
        base = f"{parts.scheme}://{parts.netloc}"
        filesystem, root = _opened(f"{base}/")
        return filesystem, f"{root}/{name.removeprefix(base).lstrip('/')}"


def repeated(ids: pa.ChunkedArray) -> int:
    """How many ids occur more than once."""
    return int(pc.sum(pc.greater(ids.value_counts().field("counts"), 1)).as_py() or 0)


@cache
def _opened(base: str) -> tuple[FileSystem, str]:
    """A bucket is opened once: doing so asks where it is."""
    return place(base)
