"""Opens the first engine of the order that runs here and answers as the trained network did."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec

from packshot.bundle import PLAN, PLAN_KEYS, SIDECAR, Bundle, EngineFile, Manifest, check_file
from packshot.errors import AnswersDiffer, DamagedFile, EngineReason, EngineRefused
from packshot.golden import GoldenSamples
from serving.engines import Engine, Profile
from serving.engines.compiled import CompiledModels
from serving.engines.onnxruntime import OnnxRuntimeEngine, open_cuda
from serving.engines.openvino import open_openvino
from serving.engines.prove import Proof, prove
from serving.engines.tensorrt import open_plan
from serving.freed_memory import give_back

log = logging.getLogger("packshot.engines")


class EngineChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which engines to try, in order, and how they run.

    `lanes`: of an engine on the CPU; one on a GPU knows its own number. `compiled_folder` keeps
    what was compiled for the next start.
    """

    order: tuple[str, ...]
    required: bool = False  # then nothing may take the place of the only one in the order
    lanes: int
    max_batch: int
    compiled_folder: Path | None = None


class Wanted(NamedTuple):
    """What an engine may ask about its file and its task."""

    name: str
    path: Path
    sha256: str
    sidecar_sha256: str | None  # a plan's
    image_shape: tuple[int, int, int]
    choice: EngineChoice

    def checked(self) -> Path:
        """The file, for who reads it now. Raises DamagedFile if it is not what was exported."""
        check_file(self.path, self.sha256)
        return self.path


class Kind(NamedTuple):
    """`entries`: of the manifest's engines the one whose file this runs, at its figures.

    The first that is there, if it was not left out. (PLAN,): any engine whose file is a TensorRT
    plan. Each is for certain GPUs; the first that fits is taken.
    """

    entries: tuple[str, ...]
    open: Callable[[Wanted], Engine]


def _open_on_cpu(wanted: Wanted) -> Engine:
    return OnnxRuntimeEngine(wanted.checked(), name=wanted.name, lanes=wanted.choice.lanes)


def _open_openvino(wanted: Wanted) -> Engine:
    lanes, folder = wanted.choice.lanes, wanted.choice.compiled_folder
    compiled = CompiledModels(folder, wanted.sha256) if folder else None
    return open_openvino(wanted.checked, name=wanted.name, lanes=lanes, compiled=compiled)


def _open_cuda(wanted: Wanted) -> Engine:
    return open_cuda(wanted.checked)


def _open_tensorrt(wanted: Wanted) -> Engine:
    """It checks the hashes itself: the sidecar's, and the plan's, which is in the sidecar."""
    return open_plan(
        wanted.path,
        max_batch=wanted.choice.max_batch,
        image_shape=wanted.image_shape,
        sidecar_sha256=wanted.sidecar_sha256,
    )


ENGINES = {
    "tensorrt": Kind((PLAN,), _open_tensorrt),
    "cuda": Kind(("fp32",), _open_cuda),
    # Exported on a CPU without VNNI, INT8 was not measured on OpenVINO: golden samples then decide.
    # bfloat16 rounds more than fp32's tolerance allows, and has none of its own then.
    "openvino-int8": Kind(("openvino-int8", "int8"), _open_openvino),
    "openvino-bf16": Kind(("openvino-bf16",), _open_openvino),
    "int8": Kind(("int8",), _open_on_cpu),
    "fp32": Kind(("fp32",), _open_on_cpu),
}
"""The engines that packshot knows, by name."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why an engine of the order does not run here."""

    engine: str
    reason: str
    message: str


class NoEngine(EngineRefused):
    """None of an order can be used; `refusals` says of each why not."""

    def __init__(self, reason: EngineReason, message: str, refusals: Sequence[Refusal]) -> None:
        super().__init__(reason, message)
        self.refusals = tuple(refusals)


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """The engine in use, and those that were tried before it.

    `file`: what it runs, with the figures that were measured of it. `golden_difference`: the
    largest |logit difference| from PyTorch on the golden samples, here and now.
    """

    engine: Engine
    file: EngineFile
    golden_difference: float
    profile: Profile
    refusals: tuple[Refusal, ...] = ()


def open_engine(
    bundle: Bundle,
    choice: EngineChoice,
    *,
    order: Sequence[str] | None = None,
    pass_over_damaged: bool = False,
) -> Opened:
    """Tries the engines in order. Raises NoEngine, with every reason, if none can be used.

    Raises DamagedFile if a file that would be used is not what was exported, unless such an engine
    is to be passed over for the next; AnswersDiffer if the golden samples have another number of
    logits than there are labels. `order`: in the place of the choice's.
    """
    order = choice.order if order is None else order
    golden = bundle.golden()
    _check_width(golden, bundle.manifest)
    refusals: list[Refusal] = []
    for name in order:
        try:
            opened = _open_proved(bundle, name, golden, choice)
        except (EngineRefused, DamagedFile) as error:
            if isinstance(error, DamagedFile) and not pass_over_damaged:
                raise
            reason = error.reason if isinstance(error, EngineRefused) else "damaged"
            log.warning("engine %s refused (%s): %s", name, reason, error)
            refusals.append(Refusal(engine=name, reason=reason, message=str(error)))
        else:
            give_back()  # compiling a network and proving it takes more than serving it
            return msgspec.structs.replace(opened, refusals=tuple(refusals))
    reasons = "; ".join(f"{r.engine}: {r.message}" for r in refusals)
    told = f"none of the engines {list(order)} can be used: {reasons}"
    if choice.required:
        told += "; by --require nothing may take its place"
    differ = any(refusal.reason == "answers_differ" for refusal in refusals)
    raise NoEngine("answers_differ" if differ else "load_failed", told, refusals)


def _check_width(golden: GoldenSamples, manifest: Manifest) -> None:
    """Each engine is then held to the width of the samples."""
    width, labels = golden.logits.shape[-1], len(manifest.labels)
    if width != labels:
        raise AnswersDiffer(f"golden samples of {width} logits for {labels} labels: export again")


def _open_proved(bundle: Bundle, name: str, golden: GoldenSamples, choice: EngineChoice) -> Opened:
    """With the first of its files that fits. Raises EngineRefused, telling of each file."""
    refused: dict[str, EngineRefused] = {}
    for file in _files_of(bundle.manifest, name):
        try:
            engine = _open(bundle, name, file, choice)
            proof = _prove(engine, golden, file, choice.max_batch)
        except EngineRefused as error:
            refused[file.file] = _of_unmeasured(name, bundle.manifest, error)
        else:
            for other, why in refused.items():
                log.info("%s is passed over for %s: %s", other, file.file, why)
            return Opened(
                engine=engine,
                file=file,
                golden_difference=proof.golden_difference,
                profile=proof.profile,
            )
    raise _as_one(refused)


def _of_unmeasured(name: str, manifest: Manifest, error: EngineRefused) -> EngineRefused:
    """What runs another engine's file need not fit it, and nobody said that it does."""
    if error.reason != "answers_differ" or len(ENGINES[name].entries) == 1:
        return error
    if name in manifest.engines:
        return error
    told = f"it was not measured when the bundle was exported, and {error}: export again for it"
    return EngineRefused("not_in_bundle", told)


def _files_of(manifest: Manifest, name: str) -> list[EngineFile]:
    """Asked before the hardware: a GPU or a driver would not help against a missing file."""
    if name not in ENGINES:
        raise EngineRefused("unknown_engine", f"packshot has no engine {name!r}")
    entries = ENGINES[name].entries
    if entries == (PLAN,):
        files = [file for file in manifest.engines.values() if file.file.endswith(PLAN)]
        left_out = [
            f"{key}: {why}" for key, why in manifest.left_out.items() if key.startswith(PLAN_KEYS)
        ]
    else:
        found = next((e for e in entries if e in {**manifest.engines, **manifest.left_out}), "")
        files = [manifest.engines[found]] if found in manifest.engines else []
        left_out = [manifest.left_out[found]] if found in manifest.left_out else []
    if not files:
        why = "; ".join(left_out) or "it was not exported"
        raise EngineRefused("not_in_bundle", f"not in the bundle: {why}")
    return files


def _as_one(refused: dict[str, EngineRefused]) -> EngineRefused:
    """With the reason of the file that came furthest: a plan for another GPU tells the least."""
    furthest = max(refused.values(), key=lambda error: get_args(EngineReason).index(error.reason))
    messages = {str(error) for error in refused.values()}
    if len(messages) == 1:  # also where each met the same obstacle: no driver
        return furthest
    told = "; ".join(f"{file}: {error}" for file, error in refused.items())
    return EngineRefused(furthest.reason, told)


def _open(bundle: Bundle, name: str, file: EngineFile, choice: EngineChoice) -> Engine:
    return ENGINES[name].open(
        Wanted(
            name=name,
            path=bundle.folder / file.file,
            sha256=bundle.manifest.files[file.file],
            sidecar_sha256=bundle.manifest.files.get(file.file + SIDECAR),
            image_shape=bundle.manifest.image.shape,
            choice=choice,
        )
    )


def _prove(engine: Engine, golden: GoldenSamples, file: EngineFile, max_batch: int) -> Proof:
    """Raises EngineRefused, the engine closed, if it cannot run or answers otherwise."""
    try:
        proof = prove(engine, golden, tolerance=file.tolerance, max_batch=max_batch)
    except AnswersDiffer as error:
        engine.close()
        raise EngineRefused("answers_differ", str(error)) from error
    except Exception as error:  # an engine that opens may still be unable to run
        engine.close()
        log.exception("engine %s cannot run the golden samples", engine.name)
        message = "it cannot run the golden samples: the server's log has the error"
        raise EngineRefused("load_failed", message) from error
    log.info(
        "engine %s answers %d golden samples as PyTorch did: |logit difference| up to %.2g of %.2g",
        engine.name, len(golden.encoded), proof.golden_difference, file.tolerance,
    )  # fmt: skip
    return proof
