"""The job: images in, through engines on all machines, answers out; each step by name."""

import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from deploy.ray.images import HTTP_TIMEOUT_SECONDS, ID, Parquet, images_in, repeated
from packshot.errors import InvalidInput, NotFound, PackshotError, ServiceFailed, Unavailable
from packshot.image import ImageLimits
from serving.engines.open import EngineChoice
from serving.ranking import Ranking
from serving.supply import Store

# Ray reports usage to its maker unless told otherwise first.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.data

from deploy.ray.output import Job, Output, Parts, Summary
from deploy.ray.worker import Classifier, Task, refusal

ROWS = 64
"""Images a worker is given at a time, or fewer: reading goes on while the first are decoded."""

MAX_ROWS = 1000
BLOCKS_PER_ACTOR = 4
BLOCK_BYTES = 32 * 1024 * 1024
CODE = ("packshot", "serving", "deploy")
GPU_ENGINES = frozenset({"tensorrt", "cuda"})
CONNECT_SECONDS = 10


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of images; or Parquet files, whose columns are named."""

    name: str
    image_column: str | None = None
    id_column: str | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done. `actors` 0: as many as there are cores, or GPUs."""

    models: Path
    model: str
    version: int | None = None
    source: Source
    output: str
    resume: bool = False
    ranking: Ranking
    limits: ImageLimits
    engines: tuple[str, ...]
    require: str | None = None
    max_batch: int
    http_timeout_seconds: float = HTTP_TIMEOUT_SECONDS
    actors: int = 0
    cpus_per_actor: int = 0
    address: str | None = None


class Machines(msgspec.Struct, frozen=True, kw_only=True):
    """Workers, and what each takes of the cluster."""

    actors: int
    cpus: int
    gpus: int


def run(options: Options) -> Summary:
    """Raises PackshotError, or OSError of input or output."""
    output = Output(options.output)
    images = _images(options.source)
    ids = images.ids() if isinstance(images, Parquet) else images[ID]
    if again := repeated(ids):
        raise InvalidInput(
            f"{again} ids occur more than once in {options.source.name}: name a column whose "
            "values differ, --id-column"
        )
    job = _job(options, output)
    done = output.answered()
    with _cluster(options.address):
        machines = machines_for(options, _nodes())
        task = _task(options, job, machines)
        _prove(task, machines)
        if not options.resume:
            output.begin(job)
        output.reopen()
        dataset, rows = _dataset(images, done, machines)
        _classify(dataset, rows, task, machines, options.output)
    return output.finish(ids)


def _images(source: Source) -> pa.Table | Parquet:
    """Where each image is, or the files that have them all."""
    if source.image_column is None:
        return images_in(source.name)
    files = Parquet(source.name, source.image_column, source.id_column)
    return files if files.has_bytes else files.places()


def _job(options: Options, output: Output) -> Job:
    ranking = options.ranking
    job = Job(
        model=options.model,
        version=options.version or int(Store(options.models).choose(options.model).name),
        top_k=ranking.top_k,
        min_confidence=ranking.min_confidence,
    )
    if not options.resume:
        _version_folder(options, job)
        output.must_be_new()
        return job
    begun = output.begun()
    if options.version is None:  # another may have been released since
        job = msgspec.structs.replace(job, version=begun.version)
    for name in Job.__struct_fields__:
        if getattr(job, name) != getattr(begun, name):
            raise InvalidInput(
                f"{output.name} was begun with {name} {getattr(begun, name)}, not "
                f"{getattr(job, name)}: resume it with the same, or name another folder"
            )
    return job


def _version_folder(options: Options, job: Job) -> Path:
    folder = options.models.absolute() / job.model / str(job.version)
    if not folder.is_dir():
        raise NotFound(f"no version {job.version} of {job.model} in {options.models}")
    return folder


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """A cluster that runs already, or one of this machine for as long as the job takes."""
    _connect(address or os.environ.get("RAY_ADDRESS"))
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    """Raises Unavailable."""
    root = Path(__file__).parents[2]
    try:
        _knock(address)
        ray.init(
            address=address,
            include_dashboard=None if address else False,
            # Machines need the libraries; the code that they run is the one that was started here.
            runtime_env={"py_modules": [str(root / name) for name in CODE]},
            logging_level=logging.WARNING,
        )
    except (Exception, SystemExit) as error:  # of many kinds; Ray also ends the process
        where = f"no Ray cluster at {address}" if address else "Ray cannot be started"
        raise Unavailable(f"{where}: {_in_short(error)}") from error


def _knock(address: str | None) -> None:
    """Raises OSError where nobody listens: Ray itself tries for two minutes, and tells no reason.

    Of an address of another form (auto, local, ray://...) Ray knows.
    """
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            pass


def _nodes() -> list[Mapping[str, float]]:
    """What each machine has: "CPU", "GPU", ..."""
    found = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own
    return [node["Resources"] for node in found if node["Alive"]]


def machines_for(options: Options, nodes: Sequence[Mapping[str, float]]) -> Machines:
    """A core a worker: lanes that share nothing are fastest. Or a GPU, with its share of cores.

    Raises InvalidInput for workers that fit on no machine: Ray would wait for one without end.
    """
    order = (options.require,) if options.require else options.engines
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if not GPU_ENGINES.intersection(order):
        with_gpu = []
    cores = [int(node.get("CPU", 0)) for node in with_gpu or nodes]
    if options.cpus_per_actor > max(cores, default=0):
        raise InvalidInput(
            f"cpus_per_actor is {options.cpus_per_actor}, and the largest machine"
            f"{' with a GPU' if with_gpu else ''} has {max(cores, default=0)} cores: lower it"
        )
    if with_gpu:
        gpus = [int(node["GPU"]) for node in with_gpu]
        # The least share, so that every GPU gets its worker; 0 where Ray may use no core there.
        each = options.cpus_per_actor or min(map(int.__floordiv__, cores, gpus))
        fit = (
            min(gpu, core // each) if each else gpu for gpu, core in zip(gpus, cores, strict=True)
        )
        return Machines(actors=options.actors or sum(fit), cpus=each, gpus=1)
    each = options.cpus_per_actor or 1
    fits = sum(core // each for core in cores)
    return Machines(actors=options.actors or max(1, fits), cpus=each, gpus=0)


def _task(options: Options, job: Job, machines: Machines) -> Task:
    source = options.source
    return Task(
        version_folder=_version_folder(options, job),
        choice=EngineChoice(
            order=(options.require,) if options.require else options.engines,
            required=options.require is not None,
            lanes=1,
            max_batch=options.max_batch,
        ),
        limits=options.limits,
        ranking=options.ranking,
        decoders=max(1, machines.cpus),
        folder=source.name if source.image_column is None else None,
        http_timeout_seconds=options.http_timeout_seconds,
    )


def _prove(task: Task, machines: Machines) -> None:
    """Opens the engine once where a worker will: Ray starts workers that fail again and again.

    Raises ServiceFailed.
    """
    remote = ray.remote(num_cpus=machines.cpus, num_gpus=machines.gpus)(refusal)
    try:
        reason = ray.get(remote.remote(task))
    except ray.exceptions.RayError as error:
        raise ServiceFailed(f"a worker cannot be started: {_in_short(error)}") from error
    if reason:
        raise ServiceFailed(reason)


def _dataset(
    images: pa.Table | Parquet, done: pa.ChunkedArray, machines: Machines
) -> tuple[Any, int]:
    """What has no answer yet, in blocks, and how many rows a worker is to be given at a time.

    A block becomes a file, and is lost with its worker.
    """
    if not isinstance(images, Parquet):
        left = without(images, done)
        share = len(left) // (machines.actors * BLOCKS_PER_ACTOR)
        rows = max(1, min(MAX_ROWS, share))
        blocks = [left.slice(start, rows) for start in range(0, len(left), rows)] or [left]
        # Ray puts blocks together until they have what is asked for: of a small catalogue one
        # worker would get it all.
        return ray.data.from_arrow(blocks), min(ROWS, rows)
    ray.data.DataContext.get_current().target_max_block_size = BLOCK_BYTES
    known = ray.put(done)
    # Ray's own reading of Parquet asks for cores, and the workers have them all: it would wait for
    # them, and they for it.
    read = ray.data.from_arrow(images.groups()).map_batches(
        lambda groups: (without(rows, ray.get(known)) for rows in images.rows_of(groups)),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(max(1, machines.actors // 2)),
    )
    return read, ROWS


def without(rows: pa.Table, done: pa.ChunkedArray) -> pa.Table:
    """Those whose id is not among the ids done."""
    return rows.filter(pc.invert(pc.is_in(rows[ID], value_set=done)))


def _classify(dataset: Any, rows: int, task: Task, machines: Machines, output: str) -> None:
    answers = dataset.map_batches(
        Classifier,
        fn_constructor_args=(task,),
        batch_format="pyarrow",
        batch_size=rows,
        compute=ray.data.ActorPoolStrategy(size=machines.actors),
        num_cpus=machines.cpus,
        num_gpus=machines.gpus or None,
    )
    try:
        answers.write_datasink(
            Parts(output, uuid.uuid4().hex[:8]),
            ray_remote_args={"num_cpus": 0},
            concurrency=max(1, machines.actors // 32),  # it is little work: few processes for it
        )
    except ray.exceptions.RayError as error:
        raise _ours(error) from error


def _ours(error: BaseException) -> PackshotError:
    """What a worker raised, or that it could not go on."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PackshotError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return ServiceFailed(f"{_in_short(error)}; once that is mended --resume goes on where it ended")


def _in_short(error: BaseException) -> str:
    """Ray's messages are tracebacks, whose last line tells what it was."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
