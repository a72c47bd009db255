"""The gates: answers of the server's own engines on held-out images, against PyTorch's."""

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from packshot.bundle import Measured
from packshot.cores import available_cores
from packshot.errors import AnswersDiffer
from packshot.golden import GoldenSamples
from packshot.image import Pixels
from packshot.prediction import Logits
from serving.engines import Engine
from serving.engines.onnxruntime import OnnxRuntimeEngine

BATCH = 8


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine of one precision must reach on the held-out images."""

    min_agreement: float
    max_accuracy_drop: float
    max_logit_difference: float | None = None


GATES = {
    "fp32": Gate(min_agreement=1.0, max_accuracy_drop=0.0, max_logit_difference=1e-3),
    "int8": Gate(min_agreement=0.97, max_accuracy_drop=0.005),
}


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """Images uint8 [N, crop, crop, 3] that were not trained on, their labels, PyTorch's logits."""

    images: Pixels
    truth: npt.NDArray[np.int64]
    logits: Logits


def measure(engine: Engine, held_out: HeldOut) -> Measured:
    """Runs the engine on the held-out images."""
    logits = run_in_batches(engine, held_out.images)
    difference = np.abs(logits - held_out.logits)
    answers, expected = logits.argmax(axis=1), held_out.logits.argmax(axis=1)
    return Measured(
        images=len(held_out.truth),
        agreement=float((answers == expected).mean()),
        accuracy=float((answers == held_out.truth).mean()),
        pytorch_accuracy=float((expected == held_out.truth).mean()),
        max_logit_difference=float(difference.max()),
        mean_logit_difference=float(difference.mean()),
    )


def check_gate(precision: str, measured: Measured, gate: Gate) -> None:
    """Raises AnswersDiffer, with the numbers, if the engine does not pass."""
    faults = []
    limit = gate.max_logit_difference
    if limit is not None and not measured.max_logit_difference <= limit:
        faults.append(
            f"largest |logit difference| {measured.max_logit_difference:.3g}, at most {limit:g}"
        )
    if measured.agreement < gate.min_agreement:
        faults.append(
            f"top-1 agreement {measured.agreement:.2%}, at least {gate.min_agreement:.2%}"
        )
    drop = measured.pytorch_accuracy - measured.accuracy
    if drop > gate.max_accuracy_drop:
        faults.append(f"accuracy drop {drop:.2%}, at most {gate.max_accuracy_drop:.2%}")
    if faults:
        raise AnswersDiffer(
            f"{precision} does not answer as PyTorch does on {measured.images} held-out images: "
            + "; ".join(faults)
        )


def golden_tolerance(engine: Engine, golden: GoldenSamples, gate: Gate) -> float:
    """The largest |logit difference| that a server may see on the golden samples.

    fp32 keeps its gate. A quantised engine gets twice what it shows here: another CPU rounds
    differently, but one that saturates (no VNNI) is off by far more.
    """
    if gate.max_logit_difference is not None:
        return gate.max_logit_difference
    logits = run_in_batches(engine, golden.pixels)
    return 2 * float(np.abs(logits - golden.logits).max())


def open_onnx(path: Path, name: str) -> Engine:
    """The server's engine, one run at a time over all cores."""
    return OnnxRuntimeEngine(path, name=name, lanes=available_cores())


def run_in_batches(engine: Engine, images: Pixels) -> Logits:
    starts = range(0, len(images), BATCH)
    chunks = [engine.run(images[i : i + BATCH], alone=True).logits for i in starts]
    return np.concatenate(chunks)
