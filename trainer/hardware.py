"""What a training runs on: device, number format, processes; and what makes it repeatable."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import torch

from trainer.processes import Processes, join
from trainer.recipes import Options, Precision

CUBLAS_WORKSPACE = ":4096:8"  # one of the two that PyTorch's reproducibility notes name


class Hardware(NamedTuple):
    """`autocast`: what matrix products and convolutions are computed in; None for float32."""

    device: torch.device = torch.device("cpu")
    autocast: torch.dtype | None = None
    processes: Processes = Processes()
    compiled: bool = False

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"


def hardware_for(options: Options, environment: Mapping[str, str]) -> Hardware:
    """The hardware there is, as the options want it used. Raises InvalidInput."""
    if options.deterministic:
        # Read when cuBLAS is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
        torch.use_deterministic_algorithms(True)
    processes = join(environment)
    gpu = torch.cuda.is_available()
    torch.backends.cudnn.benchmark = gpu and not options.deterministic
    device = torch.device("cuda", processes.local_rank) if gpu else torch.device("cpu")
    return Hardware(device, autocast_type(options.precision, device), processes, options.compile)


def autocast_type(precision: Precision, device: torch.device) -> torch.dtype | None:
    """`auto`: bfloat16 where the GPU computes in it, else float16; float32 on a CPU."""
    named = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision != "auto":
        return named[precision]
    if device.type != "cuda":
        return None
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16
