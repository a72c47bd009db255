"""What a plan is to be: profiles, limits, and the GPUs that it is for."""

import re
from importlib.util import find_spec
from pathlib import Path

import msgspec

from packshot.bundle import PLAN_KEYS
from packshot.errors import EngineRefused, InvalidInput
from packshot.plan import Flavour, Profile, largest_batch
from serving.engines.gpu import Probe, probe_gpu
from serving.engines.tensorrt import INSTALL

THIS = "this"
"""Target: the GPU in this machine."""
AMPERE_PLUS = "ampere-plus"
"""Target, TensorRT only: this GPU's generation and every later one, from Ampere on; slower."""
PORTABLE = "portable"
"""Target, TensorRT-RTX only: its default, for most GPUs that it knows."""

PORTABLE_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0+")  # TensorRT-RTX, "CPU-Only AOT"
AMPERE = 8  # its compute capabilities' major number


class PlanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to build a plan. Raises InvalidInput for values that make no sense.

    `targets`: THIS, AMPERE_PLUS or PORTABLE alone, or compute capabilities ("8.6").
    `flavour`: None takes the one that is installed, TensorRT if both are.
    `workspace_bytes`: of GPU memory that a layer may use; None leaves it to TensorRT.
    `timing_cache`: a file of timings, read if it is there and renewed; TensorRT only.
    `version_compatible`: the plan also loads in later versions; TensorRT only.
    """

    profiles: tuple[Profile, ...] = (Profile(min_batch=1, opt_batch=8, max_batch=32),)
    targets: tuple[str, ...] = (THIS,)
    flavour: Flavour | None = None
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False

    def __post_init__(self) -> None:
        _check_profiles(self.profiles)
        _check_targets(self.targets)
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise InvalidInput(f"the workspace is {self.workspace_bytes} bytes; it must be above 0")


def _check_profiles(profiles: tuple[Profile, ...]) -> None:
    if not profiles:
        raise InvalidInput("a plan needs at least one profile")
    for one in profiles:
        if not 1 <= one.min_batch <= one.opt_batch <= one.max_batch:
            raise InvalidInput(
                f"a profile is {one.min_batch},{one.opt_batch},{one.max_batch} images; "
                "it must be min,opt,max in ascending order, from 1"
            )
    if not largest_batch(profiles):
        raise InvalidInput("no profile begins at 1 image: a server runs single images too")


def _check_targets(targets: tuple[str, ...]) -> None:
    a_word = len(targets) == 1 and targets[0] in (THIS, AMPERE_PLUS, PORTABLE)
    numbers = [one for one in targets if re.fullmatch(r"\d+\.\d", one)]
    if not a_word and (not numbers or len(numbers) < len(targets)):
        raise InvalidInput(
            f"the targets are {', '.join(targets) or 'none'}; they must be {THIS}, "
            f"{AMPERE_PLUS}, {PORTABLE}, or compute capabilities such as 8.6"
        )
    if len(set(targets)) < len(targets):
        raise InvalidInput(f"the targets {', '.join(targets)} name one twice")


def plan_key(
    precision: str, options: PlanOptions, flavour: Flavour, *, probe: Probe = probe_gpu
) -> str:
    """A plan's name in the manifest: "trt-fp16.sm90", "trt-int8.portable",
    "trt-fp16.rtx-sm86-sm120".

    Raises EngineRefused (no_driver, no_gpu) if the target is a GPU that is not there.
    """
    if options.targets[0] in (AMPERE_PLUS, PORTABLE):
        return f"{PLAN_KEYS}{precision}.{options.targets[0]}"
    asked = {probe().compute_capability if one == THIS else one for one in options.targets}
    # A plan of either flavour may lie beside that of the other: not under one name.
    rtx = "rtx-" if flavour == "tensorrt_rtx" else ""
    names = [f"sm{one.replace('.', '')}" for one in sorted(asked, key=lambda one: float(one))]
    return f"{PLAN_KEYS}{precision}.{rtx}{'-'.join(names)}"


def installed_flavour(asked: Flavour | None = None) -> Flavour:
    """The one that is asked for, else TensorRT, else TensorRT-RTX.

    Raises EngineRefused (no_runtime), naming the extra that is missing.
    """
    for flavour in INSTALL if asked is None else (asked,):
        if find_spec(flavour) is not None:
            return flavour
    if asked is not None:
        raise EngineRefused("no_runtime", f"{asked} is not installed: run {INSTALL[asked]}")
    raise EngineRefused(
        "no_runtime",
        f"no TensorRT is installed: run {INSTALL['tensorrt']} for servers' GPUs such as A100 "
        f"and H100, {INSTALL['tensorrt_rtx']} for RTX cards",
    )


def check_options(flavour: Flavour, options: PlanOptions) -> None:
    """Raises InvalidInput for what this flavour cannot do."""
    if flavour == "tensorrt":
        return
    if options.version_compatible:
        raise InvalidInput(
            "TensorRT-RTX has no version-compatible plans: export again after an update"
        )
    if options.timing_cache is not None:
        raise InvalidInput("TensorRT-RTX times nothing when it builds: it has no timing cache")


def capabilities_of(options: PlanOptions, flavour: Flavour, probe: Probe) -> tuple[str, ...]:
    """What the plan will be for. Raises InvalidInput for what this flavour cannot build for."""
    if flavour == "tensorrt":
        return _of_tensorrt(options.targets, probe().compute_capability)
    if options.targets == (AMPERE_PLUS,):
        raise InvalidInput(f"TensorRT-RTX has no target {AMPERE_PLUS}: use {PORTABLE}")
    if options.targets == (PORTABLE,):
        return PORTABLE_CAPABILITIES
    return tuple(probe().compute_capability if one == THIS else one for one in options.targets)


def _of_tensorrt(targets: tuple[str, ...], here: str) -> tuple[str, ...]:
    if targets in ((THIS,), (here,)):
        return (here,)
    if targets == (AMPERE_PLUS,) and int(here.split(".")[0]) >= AMPERE:
        return (f"{AMPERE}.0+",)
    raise InvalidInput(
        f"TensorRT builds for the GPU that it runs on, here of compute capability {here}, not for "
        f"{', '.join(targets)}: use {THIS}, {AMPERE_PLUS} on an Ampere GPU or a later one, or "
        f"TensorRT-RTX ({INSTALL['tensorrt_rtx']})"
    )
