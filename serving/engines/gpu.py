"""Is there a GPU? Asked of the driver itself, before TensorRT or CUDA's provider is touched.

TensorRT without a driver does not raise: it hands out an object whose next call ends the process.
No exception handler helps against that, so the question comes first, and needs no library of
NVIDIA's but the driver's own (CUDA Driver API, cuda.h).
"""

import ctypes
from collections.abc import Callable
from typing import Any

import msgspec

from packshot.errors import EngineRefused

DRIVER = "libcuda.so.1"
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
NAME_BYTES = 256


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """The first GPU that this process may use (CUDA_VISIBLE_DEVICES chooses)."""

    name: str
    compute_capability: str  # "9.0"
    driver_version: str  # the CUDA version that the driver knows: "13.0"

    @property
    def sm(self) -> str:
        """As compilers call it: "sm_90"."""
        return f"sm_{self.compute_capability.replace('.', '')}"


Probe = Callable[[], Gpu]


def probe_gpu(load: Callable[[str], Any] = ctypes.CDLL) -> Gpu:
    """Raises EngineRefused: no_driver if the driver is missing or does not work, no_gpu if it does.

    `load` opens a shared library.
    """
    try:
        driver = load(DRIVER)
    except OSError as error:
        raise EngineRefused("no_driver", f"no NVIDIA driver here: {error}") from error
    _start(driver)
    if _number(driver, "cuDeviceGetCount") == 0:
        raise EngineRefused("no_gpu", "the NVIDIA driver sees no GPU")
    device = _number(driver, "cuDeviceGet", 0)
    major, minor = (
        _number(driver, "cuDeviceGetAttribute", attribute, device)
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR)
    )
    name = ctypes.create_string_buffer(NAME_BYTES)
    _check("cuDeviceGetName", driver.cuDeviceGetName(name, NAME_BYTES, device))
    cuda = _number(driver, "cuDriverGetVersion")  # 13000 is CUDA 13.0
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major}.{minor}",
        driver_version=f"{cuda // 1000}.{cuda % 1000 // 10}",
    )


def _start(driver: Any) -> None:
    code = driver.cuInit(0)
    if code == NO_DEVICE:
        raise EngineRefused("no_gpu", "the NVIDIA driver is here, a GPU that it may use is not")
    _check("cuInit", code)


def _number(driver: Any, function: str, *arguments: int) -> int:
    """What a driver function writes to the int that its first argument points to."""
    value = ctypes.c_int()
    _check(function, getattr(driver, function)(ctypes.byref(value), *arguments))
    return value.value


def _check(function: str, code: int) -> None:
    if code != 0:
        raise EngineRefused(
            "no_driver", f"the NVIDIA driver does not work: {function} gives error {code}"
        )
