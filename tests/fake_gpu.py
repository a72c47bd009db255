"""A GPU in ordinary memory: a driver, a CUDA runtime and a TensorRT that really copy and compute.

Device memory is malloc'ed, copies are memmove, a captured graph is the list of the calls made
while its stream recorded. The network is the tiny one of `tiny`, computed by NumPy from the very
addresses that the engine was given.
"""

import ctypes
import threading
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace

import numpy as np
from tiny import reference

from packshot.bundle import EMBEDDING, INPUT, LOGITS
from packshot.plan import BATCH, PlanSidecar, Profile, Tensor

VERSION = "10.16.1.11"
SHAPE = (224, 224, 3)
TENSORS = {INPUT: (BATCH, *SHAPE), LOGITS: (BATCH, 3), EMBEDDING: (BATCH, 3)}
DTYPES = {INPUT: "uint8", LOGITS: "float32", EMBEDDING: "float32"}


def sidecar(**changes: object) -> PlanSidecar:
    """What describes PLAN, but for the changes."""
    inputs, *outputs = (
        Tensor(name=name, dtype=DTYPES[name], shape=shape) for name, shape in TENSORS.items()
    )
    fields = {
        "sha256": "", "flavour": "tensorrt", "version": VERSION, "compute_capabilities": ("9.0",),
        "profiles": (Profile(min_batch=1, opt_batch=8, max_batch=32),), "inputs": (inputs,),
        "outputs": tuple(outputs), "source_sha256": "0" * 64,
    }  # fmt: skip
    return PlanSidecar(**fields | changes)


class FakeDriver:
    """libcuda.so.1, with one H100 unless told otherwise."""

    def __init__(self, *, devices: int = 1, init: int = 0, capability: tuple[int, int] = (9, 0)):
        self._devices, self._init, self._capability = devices, init, capability

    def __call__(self, _name: str) -> "FakeDriver":
        return self

    def cuInit(self, _flags: int) -> int:
        return self._init

    def cuDriverGetVersion(self, version) -> int:
        return self._write(version, 13000)

    def cuDeviceGetCount(self, count) -> int:
        return self._write(count, self._devices)

    def cuDeviceGet(self, device, index: int) -> int:
        return self._write(device, index)

    def cuDeviceGetAttribute(self, value, attribute: int, _device: int) -> int:
        return self._write(value, dict(zip((75, 76), self._capability, strict=True))[attribute])

    def cuDeviceGetName(self, name, size: int, _device: int) -> int:
        name.value = b"NVIDIA H100"[: size - 1]
        return 0

    def _write(self, pointer, number: int) -> int:
        pointer._obj.value = number
        return 0


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureUnsupported = 900


class Stream:
    """Does nothing until it is waited for, or records for a graph what it is given."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.queued: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None

    def __int__(self) -> int:
        return self.number

    def do(self, work: Callable[[], None]) -> None:
        (self.queued if self.recording is None else self.recording).append(work)

    def synchronize(self) -> None:
        assert self.recording is None
        queued, self.queued = self.queued, []
        for work in queued:
            work()


class FakeCudart:
    """cuda.bindings.runtime. `alive`: what was made and not freed. `fail`: function -> error."""

    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.alive: dict[object, object] = {}
        self.log: list[str] = []
        self.fail: dict[str, Error] = {}
        self.streams: dict[int, Stream] = {}
        self._lock = threading.Lock()

    def __getattribute__(self, name: str) -> object:
        if name.startswith("cuda") and name in object.__getattribute__(self, "fail"):
            return lambda *_: (self.fail[name], None)
        return object.__getattribute__(self, name)

    def _made(self, kind: str, thing: object) -> None:
        with self._lock:
            self.alive[kind, thing] = thing
            self.log.append(f"make {kind}")

    def _freed(self, kind: str, thing: object) -> tuple[Error]:
        with self._lock:
            del self.alive[kind, thing]
            self.log.append(f"free {kind}")
        return (Error.cudaSuccess,)

    def _allocate(self, kind: str, size: int) -> tuple[Error, int]:
        memory = ctypes.create_string_buffer(size)
        address = ctypes.addressof(memory)
        self._made(kind, address)
        self.alive[kind, address] = memory
        return Error.cudaSuccess, address

    def cudaMalloc(self, size: int):
        return self._allocate("device", size)

    def cudaFree(self, address: int):
        return self._freed("device", address)

    def cudaHostAlloc(self, size: int, _flags: int):
        return self._allocate("pinned", size)

    def cudaFreeHost(self, address: int):
        return self._freed("pinned", address)

    def cudaStreamCreateWithFlags(self, _flags: int):
        stream = Stream(len(self.streams) + 1)
        self.streams[stream.number] = stream
        self._made("stream", stream)
        return Error.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: Stream):
        return self._freed("stream", stream)

    def cudaStreamSynchronize(self, stream: Stream):
        stream.synchronize()
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, _kind: int, stream: Stream):
        stream.do(lambda: ctypes.memmove(to, source, size))
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Stream, _mode: int):
        stream.recording = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Stream):
        graph, stream.recording = tuple(stream.recording), None
        self._made("graph", graph)
        return Error.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: tuple, _flags: int):
        executable = (*graph, lambda: None)  # a thing of its own
        self._made("executable", executable)
        return Error.cudaSuccess, executable

    def cudaGraphDestroy(self, graph: tuple):
        return self._freed("graph", graph)

    def cudaGraphExecDestroy(self, executable: tuple):
        return self._freed("executable", executable)

    def cudaGraphLaunch(self, executable: tuple, stream: Stream):
        for work in executable:
            stream.do(work)
        self.log.append("launch")
        return (Error.cudaSuccess,)

    def cudaGetLastError(self):
        return (Error.cudaSuccess,)

    def cudaGetErrorString(self, code: Error):
        return Error.cudaSuccess, {2: b"out of memory"}.get(code, b"not permitted")


class FakeTensorRT:
    """The module `tensorrt`: takes any plan, unless `loads` is false.

    `contexts`: those made, each with the batch sizes that it was set to and that it computed.
    `meet`: a barrier that every run passes, to have two at the same time.
    """

    WARNING = None

    def __init__(self, cudart: FakeCudart, *, version: str = VERSION, loads: bool = True) -> None:
        self.__version__ = version
        self.engine_host_code_allowed = False
        self._cudart, self._loads = cudart, loads
        self.contexts: list[FakeContext] = []
        self.tensors = dict(TENSORS)
        self.meet: threading.Barrier | None = None

    def Logger(self, _severity: object) -> object:
        return object()

    Logger.WARNING = 2

    def Runtime(self, _logger: object) -> "FakeTensorRT":
        return self

    def deserialize_cuda_engine(self, _plan: bytes) -> "FakeTensorRT | None":
        return self if self._loads else None

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name]

    def get_tensor_dtype(self, name: str) -> str:
        return DTYPES[name]

    def nptype(self, dtype: str) -> type:
        return np.dtype(dtype).type

    def create_execution_context(self) -> "FakeContext":
        self.contexts.append(FakeContext(self, self._cudart))
        return self.contexts[-1]


class FakeContext:
    def __init__(self, trt: FakeTensorRT, cudart: FakeCudart) -> None:
        self._trt, self._cudart = trt, cudart
        self._addresses: dict[str, int] = {}
        self.batch = 0
        self.shapes_set: list[int] = []
        self.enqueued: list[int] = []

    def set_optimization_profile_async(self, index: int, _stream: int) -> bool:
        return index == 0

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._trt.tensors

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        self.shapes_set.append(self.batch)
        return name == INPUT

    def execute_async_v3(self, stream: int) -> bool:
        self.enqueued.append(self.batch)
        batch = self.batch  # a graph keeps the shape that it was captured with
        self._cudart.streams[stream].do(lambda: self._compute(batch))
        return True

    def _compute(self, batch: int) -> None:
        if self._trt.meet is not None:
            self._trt.meet.wait(timeout=30)
        logits = reference(self._array(INPUT, batch))
        self._array(LOGITS, batch)[:] = logits
        self._array(EMBEDDING, batch)[:] = logits * np.float32(25.5)

    def _array(self, name: str, batch: int) -> np.ndarray:
        shape, dtype = (batch, *TENSORS[name][1:]), np.dtype(DTYPES[name])
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_uint8 * size).from_address(self._addresses[name])
        return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
