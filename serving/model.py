"""A served model: one version of a bundle, the engine that answers for it, and its queue."""

import logging
from pathlib import Path

import msgspec

from packshot.bundle import Manifest, open_bundle
from packshot.cores import available_cores
from packshot.errors import NotFound
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

    manifest: Manifest
    opened: Opened
    scheduler: Scheduler

    @property
    def engine(self) -> str:
        return self.opened.engine.name


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle whose hashes, golden samples and engine were checked on this machine."""

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


def verify(settings: Settings) -> Verified:
    """Loads and checks a bundle; takes seconds, in a thread.

    Raises NotFound, DamagedFile, AnswersDiffer or EngineRefused.
    """
    folder = choose_bundle(settings.models, settings.model)
    log.info("loading %s", folder)
    bundle = open_bundle(folder)
    check_pixels(bundle.golden(), bundle.manifest.image)
    opened = open_engine(
        bundle,
        settings.engines,
        lanes=settings.lanes or available_cores(),
        max_batch=settings.max_batch,
    )
    return Verified(manifest=bundle.manifest, opened=opened)


def start_model(verified: Verified, settings: Settings, metrics: Metrics) -> Model:
    """Puts a queue in front of the engine; called on the event loop."""
    manifest, opened = verified.manifest, verified.opened
    for refusal in opened.refusals:
        metrics.engine_refusals.labels(refusal.engine, refusal.reason).inc()
    metrics.engine_in_use.labels(manifest.model, str(manifest.version), opened.engine.name).set(1)
    scheduler = Scheduler(
        opened.engine,
        LatencyModel(opened.profile),
        max_queued_images=settings.max_queued_images,
        max_queued_bytes=settings.max_queued_bytes,
        metrics=metrics,
    )
    return Model(manifest=manifest, opened=opened, scheduler=scheduler)
