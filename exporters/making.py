"""Making: each engine's way from the fp32 model to a proved file of the version."""

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import msgspec

from exporters.int8_search import Search, Way, Ways, quantize_by
from exporters.plan_options import PlanOptions, installed_flavour, plan_key
from exporters.proof import NOT_HERE, Work, prove_onnx, prove_plan
from exporters.to_fp16 import convert_fp16
from exporters.to_int8 import CPU, TENSORRT, prepare
from exporters.to_tensorrt import build_plan, check_buildable
from packshot.bundle import CALIBRATION, PLAN, Attempt, EngineFile
from packshot.errors import EngineRefused, InvalidInput, NotFound, PackshotError
from packshot.image import Pixels
from packshot.plan import largest_batch, sidecar_path
from serving.engines.openvino import BF16, INT8, PRECISIONS, check_openvino

ENGINES = ("fp32", "int8", "openvino-int8", "openvino-bf16", "trt-fp16", "trt-int8")
"""What can be asked for."""

ALSO_BY_OPENVINO = {"fp32": BF16, "int8": INT8}
"""What runs an engine's file, and comes with it unasked where it can."""

FP32_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"


class Made(NamedTuple):
    """An engine and its name in the manifest."""

    key: str
    file: EngineFile


class Maker:
    """Makes engines for a version whose fp32 model is in its folder.

    They are made in `workshop`, and put into the folder when they are proved.

    `images`: gives those to calibrate with, uint8 [N, crop, crop, 3]. `ways`: to quantise, of
    an earlier export, used where there are no images. `logs`: the folder for TensorRT's messages.
    """

    def __init__(
        self,
        work: Work,
        workshop: Path,
        *,
        plan: PlanOptions,
        logs: Path,
        images: Callable[[], Pixels] | None = None,
        ways: Ways | None = None,
    ) -> None:
        self._work = work
        self._workshop = workshop
        self._plan = plan
        self._logs = logs
        self._images = images
        self._ways = ways or {}

    def make(self, engine: str) -> Made:
        """One of `ENGINES` but fp32.

        Raises AnswersDiffer, EngineRefused, InvalidInput, NotFound.
        """
        ways = {
            "int8": self._int8,
            INT8: self._openvino_int8,
            BF16: self._openvino_bf16,
            "trt-fp16": self._trt_fp16,
            "trt-int8": self._trt_int8,
        }
        return ways[engine]()

    @property
    def _fp32(self) -> Path:
        return self._work.folder / FP32_FILE

    @cached_property
    def _search(self) -> Search:
        if self._images is None:
            raise NotFound("there are no images to calibrate with: name the training run (--run)")
        return Search(self._work, self._fp32, self._images(), self._workshop)

    def _int8(self) -> Made:
        path = self._workshop / INT8_FILE
        way, attempts = self._search.run(path, CPU)
        made_with = {"onnxruntime": _onnxruntime(), **_calibrated(way)}
        file = prove_onnx(
            self._work, path, precision="int8", made_with=made_with, attempts=attempts
        )
        self._adopt(path)
        self._keep("int8", way)
        return Made("int8", file)

    def _openvino_int8(self) -> Made:
        path = self._work.folder / INT8_FILE
        if not path.exists():
            raise NotFound("there is no INT8 model to run: add int8 to --engines")
        return self._by_openvino(INT8, path, "int8")

    def _openvino_bf16(self) -> Made:
        return self._by_openvino(BF16, self._fp32, "bf16")

    def _by_openvino(self, name: str, path: Path, precision: str) -> Made:
        """Another runtime rounds otherwise, and may get a graph wrong."""
        made_with = {"openvino": check_openvino(name)}
        return Made(
            name, prove_onnx(self._work, path, precision=precision, made_with=made_with, name=name)
        )

    def _trt_fp16(self) -> Made:
        check_buildable(self._plan)
        source = self._workshop / "model.fp16.onnx"
        convert_fp16(self._fp32, source)
        return self._built("fp16", source, {})

    def _trt_int8(self) -> Made:
        check_buildable(self._plan)  # before minutes of calibration
        source = self._workshop / "model.trt-int8.onnx"
        way, attempts = self._quantized_for_tensorrt(source)
        made = self._built("int8", source, _calibrated(way), attempts)
        self._keep("trt-int8", way)
        return made

    def _quantized_for_tensorrt(self, source: Path) -> tuple[Way, tuple[Attempt, ...]]:
        if self._images is not None:
            return self._search.run(source, TENSORRT)
        way = self._ways.get("trt-int8") or self._ways.get("int8")
        if way is None:
            raise NotFound(
                "the version holds no calibration: export int8 first, or name the run (--run)"
            )
        prepared = self._workshop / "prepared.onnx"
        prepare(self._fp32, prepared)
        quantize_by(way, prepared, source, TENSORRT, self._work.golden.pixels)
        return way, ()

    def _built(
        self,
        precision: str,
        source: Path,
        made_with: dict[str, str],
        attempts: tuple[Attempt, ...] = (),
    ) -> Made:
        """A plan from the source, and the proof of it."""
        key = plan_key(precision, self._plan, installed_flavour(self._plan.flavour))
        path = self._workshop / f"model.{key}{PLAN}"
        sidecar = build_plan(source, path, self._plan, self._log(key))
        made_with = {sidecar.flavour: sidecar.version, **made_with}
        file = prove_plan(
            self._work,
            path,
            source,
            precision=precision,
            made_with=made_with,
            max_batch=largest_batch(self._plan.profiles),
            attempts=attempts,
        )
        self._adopt(sidecar_path(path))
        self._adopt(path)
        return Made(key, file)

    def _log(self, key: str) -> Path:
        """A file that can be written to. Raises InvalidInput."""
        path = self._logs / f"{key}.log"
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise InvalidInput(f"--build-logs: {path} cannot be written: {error}") from error
        return path

    def _adopt(self, path: Path) -> None:
        """Into the version's folder, in the place of what an earlier version shares."""
        target = self._work.folder / path.name
        target.unlink(missing_ok=True)  # never written through: the earlier version has it too
        shutil.move(path, target)

    def _keep(self, engine: str, way: Way) -> None:
        """So that a machine with another GPU can make INT8 engines without the images."""
        self._ways = {**self._ways, engine: way}
        path = self._workshop / CALIBRATION
        path.write_bytes(msgspec.json.encode(self._ways))
        self._adopt(path)


class Outcome(NamedTuple):
    """What passed, by key; why others did not, by the name they were asked for; and what was not
    tried, because this machine is not one for it.
    """

    made: dict[str, EngineFile]
    left_out: dict[str, str]
    not_here: list[str]


def make_all(maker: Maker, engines: Sequence[str], required: Collection[str]) -> Outcome:
    """fp32 is made already. Raises what kept out a required engine."""
    made: dict[str, EngineFile] = {}
    left_out: dict[str, str] = {}
    not_here: list[str] = []
    for name in _with_openvino(engines):
        if name == "fp32":
            continue
        try:
            if name == INT8 and "int8" in left_out:
                raise EngineRefused("not_in_bundle", f"int8 is left out: {left_out['int8']}")
            key, file = maker.make(name)
            made[key] = file
        except OSError:  # a full disk is no fault of the engine
            raise
        except Exception as error:
            # What is proved already stands, whatever went wrong on the way to a faster engine.
            if name in required and isinstance(error, PackshotError):
                raise
            if name in required:
                raise EngineRefused("failed", f"{name} cannot be made: {error}") from error
            if name in PRECISIONS and _not_here(error):
                print(f"{name} is not measured here: {error}", flush=True)
                not_here.append(name)
                continue
            left_out[name] = str(error)
            print(f"WARNING: {name} is left out: {error}", flush=True)
    return Outcome(made, left_out, not_here)


def _with_openvino(engines: Sequence[str]) -> Iterator[str]:
    """Each of OpenVINO's next after the engine whose file it runs, where that is asked for."""
    along = {ALSO_BY_OPENVINO[name] for name in engines if name in ALSO_BY_OPENVINO}
    for name in engines:
        if name not in along:
            yield name
        if name in ALSO_BY_OPENVINO:
            yield ALSO_BY_OPENVINO[name]


def _not_here(error: Exception) -> bool:
    return isinstance(error, EngineRefused) and error.reason in NOT_HERE


def _calibrated(way: Way) -> dict[str, str]:
    return {"calibration": f"{way}; {way.calibration.images} training images"}


def _onnxruntime() -> str:
    """Either distribution brings the package."""
    import onnxruntime

    return str(onnxruntime.__version__)
