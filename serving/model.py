"""A served model: one version of a bundle, the engine that answers for it, and its queue."""

import logging
from pathlib import Path

import msgspec

from packshot.bundle import Manifest, open_bundle
from packshot.cores import available_cores
from packshot.errors import DamagedFile, EngineRefused, NotFound
from packshot.golden import check_pixels
from packshot.store import current_version, model_names
from serving.engines.open import Opened, open_engine
from serving.latency import LatencyModel
from serving.metrics import Metrics
from serving.scheduler import Scheduler
from serving.settings import Settings

log = logging.getLogger("packshot.model")


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What answers requests."""

    folder: Path
    manifest: Manifest
    opened: Opened
    scheduler: Scheduler

    @property
    def engine(self) -> str:
        return self.opened.engine.name

    @property
    def metric_labels(self) -> tuple[str, str, str]:
        """Of `Metrics.engine_in_use`."""
        return (self.manifest.model, str(self.manifest.version), self.engine)


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle whose hashes, golden samples and engine were checked on this machine."""

    folder: Path
    manifest: Manifest
    opened: Opened


def choose_bundle(store: Path, name: str | None) -> Path:
    """Folder of the version to serve. Raises NotFound."""
    names = model_names(store)
    if name is None and len(names) != 1:
        found = ", ".join(names) or "none"
        raise NotFound(f"--model must name one of the models in {store}: {found}")
    chosen = name if name is not None else names[0]
    if chosen not in names:
        raise NotFound(f"no model {chosen!r} in {store}; there is {', '.join(names) or 'none'}")
    return store / chosen / str(current_version(store / chosen))


def verify(folder: Path, settings: Settings) -> Verified:
    """Loads and checks a bundle; takes seconds, in a thread.

    Raises NotFound, DamagedFile, AnswersDiffer or EngineRefused.
    """
    log.info("loading %s", folder)
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    if (manifest.model, str(manifest.version)) != (folder.parent.name, folder.name):
        raise DamagedFile(
            f"{folder} holds version {manifest.version} of {manifest.model!r}: put it in its place"
        )
    check_pixels(bundle.golden(), manifest.image)
    opened = open_engine(
        bundle,
        settings.engines,
        lanes=settings.lanes or available_cores(),
        max_batch=settings.max_batch,
    )
    _require(opened, settings.require)
    return Verified(folder=folder, manifest=manifest, opened=opened)


def _require(opened: Opened, name: str | None) -> None:
    """Raises EngineRefused if it is not this engine that runs here, having closed it."""
    if name in (None, opened.engine.name):
        return
    opened.engine.close()
    why = "; ".join(f"{r.engine}: {r.message}" for r in opened.refusals) or "it comes first"
    raise EngineRefused(
        "load_failed", f"--require is {name}, and {opened.engine.name} would serve ({why})"
    )


def start_model(verified: Verified, settings: Settings, metrics: Metrics) -> Model:
    """Puts a queue in front of the engine; called on the event loop."""
    manifest, opened = verified.manifest, verified.opened
    for refusal in opened.refusals:
        metrics.engine_refusals.labels(refusal.engine, refusal.reason).inc()
    scheduler = Scheduler(
        opened.engine,
        LatencyModel(opened.profile),
        max_queued_images=settings.max_queued_images,
        max_queued_bytes=settings.max_queued_bytes,
        metrics=metrics,
    )
    model = Model(folder=verified.folder, manifest=manifest, opened=opened, scheduler=scheduler)
    metrics.engine_in_use.labels(*model.metric_labels).set(1)
    return model
