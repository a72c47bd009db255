"""Large matrix products on ONNX Runtime: the most arithmetic that a machine's CPU is seen to do."""

from collections.abc import Callable
from functools import partial

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SIZE = 3072
"""Rows and columns: large enough for every core, small enough to end in a third of a second."""

OPERATIONS = 2 * SIZE**3
"""Multiplications and additions of one product."""


def products(threads: int) -> dict[str, Callable[[], object]]:
    """A product to run, by the precision of its factors; the second is a constant, as weights are.

    INT8's are uint8 and int8, as in a quantised network.
    """
    random = np.random.default_rng(0)
    shape = (SIZE, SIZE)
    floats = [random.standard_normal(shape, np.float32) for _ in range(2)]
    unsigned = random.integers(0, 256, shape, np.uint8)
    signed = random.integers(-128, 128, shape, np.int8)
    return {
        "fp32": _product("MatMul", *floats, TensorProto.FLOAT, threads),
        "int8": _product("MatMulInteger", unsigned, signed, TensorProto.INT32, threads),
    }


def _product(
    operator: str, left: np.ndarray, right: np.ndarray, out: int, threads: int
) -> Callable[[], object]:
    of_left = helper.np_dtype_to_tensor_dtype(left.dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["out"])],
        "product",
        [helper.make_tensor_value_info("left", of_left, left.shape)],
        [helper.make_tensor_value_info("out", out, left.shape)],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return partial(session.run, None, {"left": left})
