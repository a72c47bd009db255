"""The module `tensorrt` as far as a plan is built with it: a double that records what it is told.

It has the shape of the bindings of TensorRT 10 and 11, which are alike here. Its plan is the text
of its settings. A test holds its names against those of the real `tensorrt_rtx`.
"""

from enum import Enum
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import numpy as np
import onnx

VERSION = "10.16.1.11"
NEW_TIMINGS = b"timings of this GPU"


class ILogger:
    Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def log(self, severity, msg) -> None:
        raise NotImplementedError


class IProgressMonitor:
    pass


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.name = value.name
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        self.shape = tuple(-1 if one.dim_param else one.dim_value for one in kind.shape.dim)


class INetworkDefinition:
    """Empty until a parser fills it."""

    def __init__(self) -> None:
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]


class OnnxParser:
    num_errors = 0

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network

    def parse(self, model: bytes) -> bool:
        graph = onnx.load_model_from_string(model).graph
        self._network._inputs = [ITensor(value) for value in graph.input]
        self._network._outputs = [ITensor(value) for value in graph.output]
        return True


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple] = {}

    def set_shape(self, input, min, opt, max) -> None:  # noqa: A002 - TensorRT's names
        self._shapes[input] = (min, opt, max)


class IBuilderConfig:
    def __init__(self) -> None:
        self.hardware_compatibility_level = "NONE"
        self.progress_monitor: IProgressMonitor | None = None
        self._flags: set[str] = set()
        self._pools: dict[str, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._timings: ITimingCache | None = None

    def set_flag(self, flag: str) -> None:
        self._flags.add(flag)

    def set_memory_pool_limit(self, pool: str, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """As the real one: not if it was made on another GPU."""
        if cache.content not in (b"", NEW_TIMINGS):
            return False
        self._timings = cache
        return True


class Builder:
    """`fails`: what it logs as errors, before it builds nothing."""

    fails: tuple[str, ...] = ()

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.config: IBuilderConfig | None = None

    def create_network(self, flags: int) -> INetworkDefinition:
        assert flags == 1 << STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        self.config = IBuilderConfig()
        FakeTensorRT.last = self.config
        return self.config

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network, config) -> bytes | None:
        assert config is self.config
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Timing tactics", "Building engine", 1)
        assert monitor.step_complete("Timing tactics", 0)
        monitor.phase_finish("Timing tactics")
        assert monitor.step_complete("Building engine", 0)
        monitor.phase_finish("Building engine")
        self._logger.log(ILogger.Severity.VERBOSE, "timed a tactic")
        for message in self.fails:
            self._logger.log(ILogger.Severity.ERROR, message)
        if self.fails:
            return None
        if config._timings is not None:
            config._timings.content = NEW_TIMINGS
        return repr(sorted(config._flags)).encode()


STRONGLY_TYPED = 1  # TensorRT 10's number; 0 in 11


class FakeTensorRT:
    """To be put among `sys.modules` as "tensorrt". `last`: the configuration built with."""

    last: IBuilderConfig

    def __init__(self, version: str = VERSION, fails: tuple[str, ...] = ()) -> None:
        self.__version__ = version
        self.__spec__ = ModuleSpec("tensorrt", None)
        self.Builder = type("Builder", (Builder,), {"fails": fails})

    ILogger, IProgressMonitor, OnnxParser = ILogger, IProgressMonitor, OnnxParser
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=STRONGLY_TYPED)
    BuilderFlag = SimpleNamespace(VERSION_COMPATIBLE="VERSION_COMPATIBLE")
    MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")
    HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS")
    nptype = staticmethod(np.dtype)


RECORDED = {"config", "fails", "content"}
"""What the doubles have beyond TensorRT's own names."""
