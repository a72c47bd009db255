"""Proof: every engine is run by the server's own code, and passes its gate or stays out."""

from pathlib import Path

import msgspec

from exporters.gates import (
    Gate,
    HeldOut,
    caveat,
    check_gate,
    golden_tolerance,
    measure,
    summary,
)
from packshot.bundle import Attempt, EngineFile
from packshot.cores import available_cores
from packshot.errors import EngineReason, EngineRefused
from packshot.golden import GoldenSamples
from serving.engines import Engine
from serving.engines.compiled import CompiledModels
from serving.engines.gpu import Probe, probe_gpu
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.engines.openvino import PRECISIONS, OpenVinoEngine
from serving.engines.tensorrt import open_plan

NOT_HERE: tuple[EngineReason, ...] = (
    "no_driver", "no_gpu", "wrong_cpu", "no_runtime", "wrong_gpu",
)  # fmt: skip
"""Reasons that say of an engine that this machine is not the one it is for."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """The version in the making, and what its engines are held to."""

    folder: Path
    golden: GoldenSamples
    held_out: HeldOut
    temperature: float
    gates: dict[str, Gate]  # by precision
    compiled_folder: Path | None = None  # where a server on this machine looks first


def open_onnx(path: Path, name: str = "fp32", compiled: CompiledModels | None = None) -> Engine:
    """The server's engine of that name, one run at a time over all cores.

    `compiled`: keeps what the engine compiles, if it does.
    """
    if name in PRECISIONS:
        return OpenVinoEngine(path, name=name, lanes=available_cores(), compiled=compiled)
    return OnnxRuntimeEngine(path, name=name, lanes=available_cores())


def prove_onnx(
    work: Work,
    path: Path,
    *,
    precision: str,
    made_with: dict[str, str],
    attempts: tuple[Attempt, ...] = (),
    name: str = "",
) -> EngineFile:
    """The manifest's entry of an ONNX file in the folder. Raises AnswersDiffer if it fails.

    `name`: the server's engine to run it by, the precision's own unless given.
    """
    engine = open_onnx(path, name or precision)
    try:
        return _proved(
            work, path, engine, precision=precision, made_with=made_with, attempts=attempts
        )
    finally:
        engine.close()


def prove_plan(
    work: Work,
    path: Path,
    source: Path,
    *,
    precision: str,
    made_with: dict[str, str],
    max_batch: int,
    attempts: tuple[Attempt, ...] = (),
    probe: Probe = probe_gpu,
) -> EngineFile:
    """The manifest's entry of a plan. Raises AnswersDiffer if it fails, EngineRefused if damaged.

    Where the plan's GPU is not at hand, the ONNX file that it was built from is run in its place,
    on the CPU: that shows what the precision costs, not what the GPU makes of it. The server's
    check of the golden samples is then the first to see the plan itself.
    """
    shape = work.golden.pixels.shape[1:]
    try:
        engine: Engine = open_plan(path, max_batch=max_batch, image_shape=shape, probe=probe)
        elsewhere = False
    except EngineRefused as refused:
        if refused.reason not in NOT_HERE:
            raise
        print(f"{path.name} is not run here ({refused}): its ONNX source is, on the CPU")
        engine, elsewhere = open_onnx(source), True
    try:
        return _proved(
            work,
            path,
            engine,
            precision=precision,
            made_with=made_with,
            elsewhere=elsewhere,
            attempts=attempts,
        )
    finally:
        engine.close()


def _proved(
    work: Work,
    path: Path,
    engine: Engine,
    *,
    precision: str,
    made_with: dict[str, str],
    elsewhere: bool = False,
    attempts: tuple[Attempt, ...] = (),
) -> EngineFile:
    gate = work.gates[precision]
    measured = measure(engine, work.held_out, work.temperature)
    check_gate(f"{path.name} by {engine.name}", measured, gate)
    doubt = caveat(measured, gate)
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    print(f"{path.name} by {engine.name}: {size}; {summary(measured)}", flush=True)
    if doubt:
        print(f"  {doubt}", flush=True)
    return EngineFile(
        file=path.name,
        precision=precision,
        tolerance=golden_tolerance(engine, work.golden, gate, elsewhere=elsewhere),
        measured=measured,
        proved_by="source" if elsewhere else "engine",
        caveat=doubt,
        attempts=attempts,
        made_with=made_with,
    )
