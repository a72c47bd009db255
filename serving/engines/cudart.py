"""The CUDA runtime with every error code looked at, and memory that NumPy and the GPU share."""

import ctypes
import logging
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

log = logging.getLogger("packshot.engines")


class CudaFailed(Exception):
    """A call to the GPU failed: the message has the call and the reason."""


class Buffer(NamedTuple):
    """A tensor for the largest batch, twice: pinned on the host as an array, and on the device."""

    host: npt.NDArray[Any]  # [max_batch, ...]
    device: int  # address

    def bytes_of(self, batch: int) -> int:
        return self.host[:batch].nbytes


class Cuda:
    """`cuda.bindings.runtime`, whose functions return (error code, value), as calls that raise.

    What the methods make is freed by the ExitStack that they are given.
    """

    def __init__(self, api: Any) -> None:
        self.api = api

    def call(self, function: str, *arguments: Any) -> Any:
        """The function's value, if it has one. Raises CudaFailed."""
        code, *values = getattr(self.api, function)(*arguments)
        if int(code) != 0:
            self.api.cudaGetLastError()  # or the next call, TensorRT's even, would report it again
            _, text = self.api.cudaGetErrorString(code)
            raise CudaFailed(f"{function}: {text.decode()} ({code.name})")
        return values[0] if values else None

    def release(self, function: str, handle: Any) -> None:
        """Frees. A failure is only logged, so that closing goes on: a GPU that died fails all."""
        try:
            self.call(function, handle)
        except CudaFailed as error:
            log.warning("while closing: %s", error)

    def stream(self, stack: ExitStack) -> Any:
        """Non-blocking: it does not wait for the default stream, which others may use."""
        stream = self.call("cudaStreamCreateWithFlags", self.api.cudaStreamNonBlocking)
        stack.callback(self.release, "cudaStreamDestroy", stream)
        return stream

    def buffer(self, stack: ExitStack, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Raises CudaFailed if there is not enough memory."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        # Pinned, so that a copy runs beside the computing of another stream.
        address = self.call("cudaHostAlloc", size, self.api.cudaHostAllocDefault)
        stack.callback(self.release, "cudaFreeHost", address)
        device = self.call("cudaMalloc", size)
        stack.callback(self.release, "cudaFree", device)
        memory = (ctypes.c_uint8 * size).from_address(address)
        return Buffer(np.ctypeslib.as_array(memory).view(dtype).reshape(shape), device)

    def upload(self, buffer: Buffer, batch: int, stream: Any) -> None:
        """Copies the first `batch` rows to the device, once the stream comes to it."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        size, host = buffer.bytes_of(batch), buffer.host.ctypes.data
        self.call("cudaMemcpyAsync", buffer.device, host, size, kind, stream)

    def download(self, buffer: Buffer, batch: int, stream: Any) -> None:
        """Copies the first `batch` rows from the device, once the stream comes to it."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        size, host = buffer.bytes_of(batch), buffer.host.ctypes.data
        self.call("cudaMemcpyAsync", host, buffer.device, size, kind, stream)
