"""What runs a TensorRT engine's batches, one at a time: a context, a stream, memory and graphs."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from packshot.bundle import EMBEDDING, INPUT, LOGITS
from packshot.plan import PlanSidecar, profile_for
from serving.engines import Answer, Images
from serving.engines.cudart import Cuda, CudaFailed

# Of a graph's answers from those of the same kernels launched one by one.
MAX_DIFFERENCE = 1e-3


class Worker:
    """Used by one thread at a time. Several share the weights of one engine."""

    def __init__(self, engine: Any, cuda: Cuda, sidecar: PlanSidecar, *, max_batch: int) -> None:
        """Raises CudaFailed, and frees what it took, if the GPU's memory does not suffice."""
        self._cuda = cuda
        self._batch = 0  # the size that the context is set to
        self._graphs: dict[int, Any] = {}
        with ExitStack() as stack:  # undone in reverse: graphs, context, memory, stream
            self._stream = cuda.stream(stack)
            self._buffers = {
                tensor.name: cuda.buffer(stack, (max_batch, *tensor.shape[1:]), tensor.dtype)
                for tensor in sidecar.inputs + sidecar.outputs
            }
            self._context = engine.create_execution_context()
            _require(self._context is not None, "create_execution_context")
            stack.callback(self._drop_context)
            self._set_up_context(profile_for(sidecar, max_batch))
            stack.callback(self.drop_graphs)
            self._stack = stack.pop_all()

    def run(self, images: Images) -> Answer:
        """As Engine.run, for at most `max_batch` images. Raises CudaFailed."""
        batch = len(images)
        np.stack(list(images), out=self._buffers[INPUT].host[:batch])
        if batch in self._graphs:
            self._cuda.call("cudaGraphLaunch", self._graphs[batch], self._stream)
        else:
            self._enqueue(batch)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        # Copies: the next run writes to these buffers while this answer is still being read.
        logits, embedding = (
            self._buffers[name].host[:batch].copy() for name in (LOGITS, EMBEDDING)
        )
        return Answer(logits, embedding)

    def capture_graphs(self, sizes: Sequence[int], images: Images) -> None:
        """Records a run of each size, to be launched by one call from then on.

        `images`: as many as the largest size, no two alike. Raises CudaFailed if a run cannot be
        recorded, or answers otherwise when replayed; `drop_graphs` then makes the worker usable.
        """
        expected = {}
        for batch in sizes:
            expected[batch] = self.run(images[-batch:])  # first runs may do what graphs cannot hold
            self._graphs[batch] = self._capture(batch)
        # Checked when all are there: NVIDIA does not promise that a graph stays right once its
        # context was set to another shape, though it is common practice.
        for batch, answer in expected.items():
            for replayed, computed in zip(self.run(images[-batch:]), answer, strict=True):
                if not np.allclose(replayed, computed, rtol=MAX_DIFFERENCE, atol=MAX_DIFFERENCE):
                    raise CudaFailed(f"the graph for {batch} images answers differently")

    def drop_graphs(self) -> None:
        while self._graphs:
            self._cuda.release("cudaGraphExecDestroy", self._graphs.popitem()[1])

    def close(self) -> None:
        self._stack.close()

    def _set_up_context(self, profile: int) -> None:
        stream = int(self._stream)
        chosen = self._context.set_optimization_profile_async(profile, stream)
        _require(chosen, "set_optimization_profile_async")
        self._cuda.call("cudaStreamSynchronize", self._stream)
        for name, buffer in self._buffers.items():
            _require(self._context.set_tensor_address(name, buffer.device), "set_tensor_address")

    def _enqueue(self, batch: int) -> None:
        """Copy there, compute, copy back: what a graph records."""
        if batch != self._batch:  # TensorRT plans anew for a shape: not for the one it has
            shape = (batch, *self._buffers[INPUT].host.shape[1:])
            _require(self._context.set_input_shape(INPUT, shape), "set_input_shape")
            self._batch = batch
        self._cuda.upload(self._buffers[INPUT], batch, self._stream)
        _require(self._context.execute_async_v3(int(self._stream)), "execute_async_v3")
        for name in (LOGITS, EMBEDDING):
            self._cuda.download(self._buffers[name], batch, self._stream)

    def _capture(self, batch: int) -> Any:
        call = self._cuda.call
        # Of this thread's calls only: another engine may be at work beside.
        mode = self._cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        graph = None
        call("cudaStreamBeginCapture", self._stream, mode)
        try:
            try:
                self._enqueue(batch)
            finally:  # or the stream would record for ever
                graph = call("cudaStreamEndCapture", self._stream)
            return call("cudaGraphInstantiate", graph, 0)
        finally:
            if graph is not None:
                self._cuda.release("cudaGraphDestroy", graph)

    def _drop_context(self) -> None:
        self._context = None


def _require(succeeded: bool, function: str) -> None:
    """TensorRT answers False or None and says why in its own log."""
    if not succeeded:
        raise CudaFailed(f"TensorRT's {function} failed: its messages are on standard error")
