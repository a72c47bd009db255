"""The command line of the exporters, parsed once into typed options.

python -m exporters --run runs/products                       a checkpoint to a new version
python -m exporters add-engine --model products ...           a new version with one engine more
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import msgspec

from exporters.calibration import FEWEST_IMAGES, MOST_IMAGES
from exporters.gates import GATES, Gate
from exporters.making import ENGINES
from exporters.plan_options import AMPERE_PLUS, PORTABLE, THIS, PlanOptions
from packshot.compiled_folder import DEFAULT_FOLDER
from packshot.errors import InvalidInput
from packshot.plan import Flavour, Profile

ADD_ENGINE = "add-engine"
DEFAULT_STORE = Path("models")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Of both verbs. Raises InvalidInput, naming option, value and range."""

    run: Path | None
    data: Path | None
    models: Path
    model: str
    engines: tuple[str, ...]
    require: tuple[str, ...]
    gates: dict[str, Gate]
    plan: PlanOptions
    calibration_images: int
    seed: int
    compiled_models: Path

    def __post_init__(self) -> None:
        if not self.model or "/" in self.model or self.model.startswith("."):
            raise InvalidInput(f"--model is {self.model!r}; it must be a plain folder name")
        for option, names in (("--engines", self.engines), ("--require", self.require)):
            if unknown := set(names) - set(ENGINES):
                raise InvalidInput(
                    f"{option} names {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}"
                )
        if missing := set(self.require) - set(self.engines):
            raise InvalidInput(
                f"--require names {', '.join(sorted(missing))}, which --engines does not"
            )
        if not FEWEST_IMAGES <= self.calibration_images <= MOST_IMAGES:
            raise InvalidInput(
                f"--calibration-images is {self.calibration_images}; it must be from "
                f"{FEWEST_IMAGES} to {MOST_IMAGES}"
            )
        if not 0 <= self.seed < 2**63:
            raise InvalidInput(f"--seed is {self.seed}; it must be from 0 to {2**63 - 1}")


class ExportOptions(Options, frozen=True, kw_only=True):
    """Of an export. `min_confidence` None: the checkpoint's."""

    run: Path
    build_logs: Path | None
    min_confidence: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if "fp32" not in self.engines:
            raise InvalidInput(
                f"--engines is {','.join(self.engines)}; fp32 must be among them: all others are "
                "made from it"
            )


class AddOptions(Options, frozen=True, kw_only=True):
    """Of adding engines. `version` None: the one that is served."""

    version: int | None
    build_logs: Path

    def __post_init__(self) -> None:
        super().__post_init__()
        if "fp32" in self.engines or not self.engines:
            raise InvalidInput(
                f"--engines is {','.join(self.engines)}; every version has fp32: name others"
            )


def parse_options(arguments: Sequence[str]) -> ExportOptions | AddOptions:
    """Raises InvalidInput for a value out of its range."""
    if arguments and arguments[0] == ADD_ENGINE:
        given = vars(_add_parser().parse_args(arguments[1:]))
        return AddOptions(**_typed(given))
    return ExportOptions(**_typed(vars(_export_parser().parse_args(arguments))))


def _typed(given: dict[str, object]) -> dict[str, object]:
    """The flat values of the flags as the records that they make up."""
    limits = {name: given.pop(name) for name in list(given) if name.startswith("gate_")}
    gates = {
        precision: Gate(
            min_agreement=limits[f"gate_{precision}_agreement"],
            max_accuracy_drop=limits[f"gate_{precision}_drop"],
            max_logit_difference=limits.get(f"gate_{precision}_logits"),
        )
        for precision in GATES
    }
    workspace = given.pop("workspace_mb")
    plan = PlanOptions(
        profiles=tuple(given.pop("profile") or PlanOptions().profiles),
        targets=given.pop("targets"),
        flavour=given.pop("tensorrt"),
        workspace_bytes=None if workspace is None else workspace * 1_000_000,
        timing_cache=given.pop("timing_cache"),
        version_compatible=given.pop("version_compatible"),
    )
    return {**given, "gates": gates, "plan": plan}


def _export_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "python -m exporters",
        "Export a checkpoint to a bundle, and prove that its answers stayed the same. "
        f"`python -m exporters {ADD_ENGINE} --help`: add an engine to a bundle, elsewhere.",
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/products"), help="folder of the training run"
    )
    _common(parser, engines=("fp32", "int8"))
    parser.add_argument(
        "--build-logs", type=Path, help="folder for what TensorRT says (default: the run's)"
    )
    parser.add_argument(
        "--min-confidence",
        type=_share,
        metavar="P",
        help="answers less probable than that abstain, unless a request says otherwise (default: "
        "what the training run chose for its --target-precision)",
    )
    return parser


def _add_parser() -> argparse.ArgumentParser:
    parser = _parser(
        f"python -m exporters {ADD_ENGINE}",
        "Write the next version of a bundle with engines added, sharing what is unchanged. For a "
        "machine with the GPU that will serve; needs neither PyTorch nor the training run.",
    )
    parser.add_argument(
        "--run",
        type=Path,
        help="training run of that version, to judge by its held-out images and to calibrate INT8 "
        "with its training images (needs PyTorch)",
    )
    parser.add_argument("--version", type=int, help="version to start from (default: the served)")
    _common(parser, engines=("trt-fp16",))
    parser.add_argument(
        "--build-logs", type=Path, default=Path(), help="folder for what TensorRT says"
    )
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells a default where there is one and the help does not tell it in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, told = action.default, action.help or ""
        none = default is None or default is False or default == ""
        return told if none or "default:" in told else super()._get_help_string(action)


def _parser(name: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=name,
        description=text,
        formatter_class=_Formatter,
    )


def _common(parser: argparse.ArgumentParser, engines: tuple[str, ...]) -> None:
    add = parser.add_argument
    add("--data", type=Path, help="where the images are now, if not where they were in training")
    add("--models", type=Path, default=DEFAULT_STORE, help="bundle store to write to")
    add("--model", default="products", help="name of the model in the store")
    add(
        "--engines",
        type=_names,
        default=",".join(engines),
        metavar="NAME,...",
        help=f"what to make, of {', '.join(ENGINES)}; of two plans for a GPU the server takes the "
        "first",
    )
    add(
        "--require",
        type=_names,
        default="",
        metavar="NAME,...",
        help="write nothing, and fail, if one of these does not pass its gate",
    )
    add(
        "--calibration-images",
        type=int,
        default=64,
        help="training images of the run to calibrate INT8 with",
    )
    add("--seed", type=int, default=0, help="chooses the calibration images")
    add(
        "--compiled-models",
        type=Path,
        default=Path(os.environ.get("PACKSHOT_COMPILED_MODELS") or DEFAULT_FOLDER),
        metavar="FOLDER",
        help="keeps what OpenVINO compiled for this CPU, for a server's first start here",
    )
    _add_gates(parser)
    _add_plan(parser)


def _add_gates(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "gates", "What an engine must reach on held-out images, or it is left out."
    )
    for precision, gate in GATES.items():
        option = f"--gate-{precision}"
        group.add_argument(
            f"{option}-agreement", type=_share, default=gate.min_agreement, metavar="SHARE",
            help="least share of images with PyTorch's top-1",
        )  # fmt: skip
        group.add_argument(
            f"{option}-drop", type=_share, default=gate.max_accuracy_drop, metavar="SHARE",
            help="largest drop in accuracy",
        )  # fmt: skip
        if gate.max_logit_difference is not None:
            group.add_argument(
                f"{option}-logits", type=_difference, default=gate.max_logit_difference,
                metavar="X", help="largest |logit difference|",
            )  # fmt: skip


def _add_plan(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TensorRT", "How plans are built; see docs/tensorrt.md.")
    add = group.add_argument
    add("--tensorrt", choices=get_args(Flavour), help="default: the one that is installed")
    add(
        "--targets", type=_names, default=THIS, metavar="GPU,...",
        help=f"{THIS} (the GPU here), {AMPERE_PLUS}, {PORTABLE}, or compute capabilities like 8.6",
    )  # fmt: skip
    add(
        "--profile", type=_profile, action="append", metavar="MIN,OPT,MAX",
        help="batch sizes, may be given several times (default: 1,8,32)",
    )  # fmt: skip
    add("--workspace-mb", type=int, help="GPU memory that one layer may use")
    add("--timing-cache", type=Path, help="file of kernel timings, read and renewed")
    add("--version-compatible", action="store_true", help="the plan loads in later versions too")


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in text.split(",") if part))


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return value


def _difference(text: str) -> float:
    value = float(text)
    if not value >= 0:  # so that NaN is refused as well
        raise argparse.ArgumentTypeError(f"{text} is not a difference of 0 or more")
    return value


def _profile(text: str) -> Profile:
    try:
        least, best, most = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN,OPT,MAX images") from None
    return Profile(min_batch=least, opt_batch=best, max_batch=most)
