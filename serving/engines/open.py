"""Opens the first engine of the order that runs here and answers as the trained network did."""

import logging
import time
from collections.abc import Sequence
from functools import partial

import msgspec
import numpy as np
import numpy.typing as npt

from packshot.bundle import Bundle
from packshot.errors import AnswersDiffer, EngineRefused
from packshot.golden import GoldenSamples, check_answers
from packshot.prediction import Logits
from serving.engines import Engine, Profile
from serving.engines.onnxruntime import OnnxRuntimeEngine

log = logging.getLogger("packshot.engines")


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why an engine of the order does not run here."""

    engine: str
    reason: str
    message: str


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """The engine in use, and those that were tried before it.

    `golden_difference`: the largest |logit difference| from PyTorch on the golden samples, of which
    `tolerance` is allowed.
    """

    engine: Engine
    profile: Profile
    golden_difference: float
    tolerance: float
    refusals: tuple[Refusal, ...]


def open_engine(bundle: Bundle, order: Sequence[str], *, lanes: int, max_batch: int) -> Opened:
    """Tries the engines in order. Raises EngineRefused, with every reason, if none can be used."""
    golden = bundle.golden()
    refusals: list[Refusal] = []
    for name in order:
        try:
            engine = _open(bundle, name, lanes)
            difference, profile = _prove_and_warm_up(engine, bundle, golden, max_batch)
        except EngineRefused as error:
            log.warning("engine %s refused (%s): %s", name, error.reason, error)
            refusals.append(Refusal(engine=name, reason=error.reason, message=str(error)))
        else:
            return Opened(
                engine=engine,
                profile=profile,
                golden_difference=difference,
                tolerance=bundle.manifest.engines[name].tolerance,
                refusals=tuple(refusals),
            )
    reasons = "; ".join(f"{r.engine}: {r.message}" for r in refusals)
    raise EngineRefused("load_failed", f"none of the engines {list(order)} can be used: {reasons}")


def _open(bundle: Bundle, name: str, lanes: int) -> Engine:
    if name not in ("fp32", "int8"):
        raise EngineRefused("unknown_engine", f"packshot has no engine {name!r}")
    if name not in bundle.manifest.engines:
        why = bundle.manifest.left_out.get(name, "it was not exported")
        raise EngineRefused("not_in_bundle", f"not in the bundle: {why}")
    return OnnxRuntimeEngine(bundle.engine_path(name), name=name, lanes=lanes)


def _prove_and_warm_up(
    engine: Engine, bundle: Bundle, golden: GoldenSamples, max_batch: int
) -> tuple[float, Profile]:
    try:
        difference = _prove(engine, bundle, golden)
        return difference, _warm_up(engine, golden, max_batch)
    except EngineRefused:
        engine.close()
        raise
    except Exception as error:  # an engine that opens may still be unable to run
        engine.close()
        log.exception("engine %s cannot run the golden samples", engine.name)
        message = "it cannot run the golden samples: the server's log has the error"
        raise EngineRefused("load_failed", message) from error


def _prove(engine: Engine, bundle: Bundle, golden: GoldenSamples) -> float:
    """On the very engine and hardware that will serve: labels fit, answers are PyTorch's."""
    manifest = bundle.manifest
    width = engine.run(golden.pixels[:1]).logits.shape[-1]
    if width != len(manifest.labels):
        raise EngineRefused(
            "answers_differ", f"{width} logits for {len(manifest.labels)} labels: export again"
        )
    tolerance = manifest.engines[engine.name].tolerance
    ways = (False, True) if engine.largest_alone else (False,)
    try:
        difference = max(
            check_answers(golden, partial(_logits, engine, alone), tolerance) for alone in ways
        )
    except AnswersDiffer as error:
        raise EngineRefused("answers_differ", str(error)) from error
    log.info(
        "engine %s answers %d golden samples as PyTorch did: |logit difference| up to %.2g of %.2g",
        engine.name, len(golden.encoded), difference, tolerance,
    )  # fmt: skip
    return difference


def _logits(engine: Engine, alone: bool, images: npt.NDArray[np.uint8]) -> Logits:
    return engine.run(images, alone=alone).logits


def _warm_up(engine: Engine, golden: GoldenSamples, max_batch: int) -> Profile:
    """Two runs of every batch size that will be used: the first of a size allocates its memory.

    The second is timed.
    """
    return Profile(
        lanes={size: _seconds(engine, golden, size) for size in range(1, max_batch + 1)},
        alone={
            size: _seconds(engine, golden, size, alone=True)
            for size in range(1, min(engine.largest_alone, max_batch) + 1)
        },
    )


def _seconds(engine: Engine, golden: GoldenSamples, size: int, *, alone: bool = False) -> float:
    images = np.resize(golden.pixels, (size, *golden.pixels.shape[1:]))
    engine.run(images, alone=alone)
    started = time.monotonic()
    engine.run(images, alone=alone)
    return time.monotonic() - started
