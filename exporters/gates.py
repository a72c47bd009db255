"""The gates: answers of the server's own engines on held-out images, against PyTorch's."""

import msgspec
import numpy as np
import numpy.typing as npt

from packshot.bundle import Measured
from packshot.errors import AnswersDiffer
from packshot.golden import GoldenSamples
from packshot.image import Pixels
from packshot.intervals import paired_drop_interval, share_interval
from packshot.prediction import Logits, probabilities
from serving.engines import Engine

BATCH = 8

# What a GPU may add to the rounding that a CPU shows when it runs a plan's source: sums in another
# order and, in fp16, of fewer bits.
UNSEEN_ROUNDING = 0.01


# Of a difference of two shares: 0.99 - 0.985 is 0.0050000000000000044, and still half a point.
ROUNDING = 1e-9


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine of one precision must reach on the held-out images."""

    min_agreement: float
    max_accuracy_drop: float
    max_logit_difference: float | None = None


GATES = {
    "fp32": Gate(min_agreement=1.0, max_accuracy_drop=0.0, max_logit_difference=1e-3),
    "fp16": Gate(min_agreement=0.995, max_accuracy_drop=0.001),
    "bf16": Gate(min_agreement=0.995, max_accuracy_drop=0.001),
    "int8": Gate(min_agreement=0.97, max_accuracy_drop=0.005),
}
"""By precision; the defaults of the options."""


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """Images uint8 [N, crop, crop, 3] that were not trained on, with PyTorch's logits.

    `truth`: their labels, int64 [N], where they are known.
    """

    images: Pixels
    logits: Logits
    truth: npt.NDArray[np.int64] | None = None


def measure(engine: Engine, held_out: HeldOut, temperature: float = 1.0) -> Measured:
    """Runs the engine on the held-out images."""
    logits = run_in_batches(engine, held_out.images)
    difference = np.abs(logits - held_out.logits)
    answers, expected = logits.argmax(axis=1), held_out.logits.argmax(axis=1)
    same, total = int((answers == expected).sum()), len(answers)
    accuracies = _accuracies(answers, expected, held_out.truth)
    return Measured(
        images=total,
        agreement=same / total,
        agreement_interval=share_interval(same, total),
        accuracy=accuracies[0],
        pytorch_accuracy=accuracies[1],
        accuracy_drop_interval=accuracies[2],
        max_logit_difference=float(difference.max()),
        mean_logit_difference=float(difference.mean()),
        kl_divergence=kl_divergence(held_out.logits, logits, temperature),
    )


def _accuracies(
    answers: npt.NDArray[np.int64],
    expected: npt.NDArray[np.int64],
    truth: npt.NDArray[np.int64] | None,
) -> tuple[float | None, float | None, tuple[float, float] | None]:
    """The engine's, PyTorch's, and the interval of the drop from the second to the first."""
    if truth is None:
        return None, None, None
    right, expected_right = answers == truth, expected == truth
    lost, won = int((expected_right & ~right).sum()), int((right & ~expected_right).sum())
    drop = paired_drop_interval(lost, won, len(truth))
    return float(right.mean()), float(expected_right.mean()), drop


def kl_divergence(reference: Logits, logits: Logits, temperature: float) -> float:
    """Kullback-Leibler divergence of the probabilities [N, classes], mean over images, in nats."""
    p, q = probabilities(reference, temperature), probabilities(logits, temperature)
    smallest = np.finfo(np.float64).tiny
    terms = p * (np.log(np.maximum(p, smallest)) - np.log(np.maximum(q, smallest)))
    return float(terms.sum(axis=1).mean())


def check_gate(name: str, measured: Measured, gate: Gate) -> None:
    """Raises AnswersDiffer, with the numbers, if the engine does not pass."""
    if found := faults(measured, gate):
        raise AnswersDiffer(
            f"{name} does not answer as PyTorch does on {measured.images} held-out images: "
            + "; ".join(found)
        )


def faults(measured: Measured, gate: Gate) -> list[str]:
    """What of the gate is not met, with the numbers. A figure that is not a number meets none."""
    found = []
    limit = gate.max_logit_difference
    if limit is not None and not measured.max_logit_difference <= limit:
        found.append(
            f"largest |logit difference| {measured.max_logit_difference:.3g}, at most {limit:g}"
        )
    if not measured.agreement >= gate.min_agreement:
        found.append(f"top-1 agreement {measured.agreement:.2%}, at least {gate.min_agreement:.2%}")
    drop = accuracy_drop(measured)
    if drop is not None and not drop <= gate.max_accuracy_drop + ROUNDING:
        found.append(f"accuracy drop {drop:.2%}, at most {gate.max_accuracy_drop:.2%}")
    if not np.isfinite([measured.max_logit_difference, measured.kl_divergence]).all():
        found.append("logits that are not finite numbers")
    return found


def accuracy_drop(measured: Measured) -> float | None:
    if measured.accuracy is None or measured.pytorch_accuracy is None:
        return None
    return measured.pytorch_accuracy - measured.accuracy


def caveat(measured: Measured, gate: Gate) -> str:
    """What a gate that was passed cannot tell for so few images; "" if it can tell all."""
    doubts = []
    low = measured.agreement_interval[0]
    # Of full agreement no number of images is proof: the limit on logits is what counts there.
    if low < gate.min_agreement < 1:
        doubts.append(f"agreement may be as low as {low:.1%} (asked: {gate.min_agreement:.1%})")
    interval = measured.accuracy_drop_interval
    if interval is not None and interval[1] > gate.max_accuracy_drop > 0:
        doubts.append(
            f"the drop in accuracy as large as {interval[1]:.1%} "
            f"(asked: {gate.max_accuracy_drop:.1%})"
        )
    if not doubts:
        return ""
    return f"with {measured.images} images, at 95 %: " + ", ".join(doubts)


def golden_tolerance(
    engine: Engine, golden: GoldenSamples, gate: Gate, *, elsewhere: bool = False
) -> float:
    """The largest |logit difference| that a server may see on the golden samples.

    fp32 keeps its gate. Another engine gets twice what it shows here: other hardware rounds
    differently, but an engine that saturates (INT8 without VNNI) is off by far more. `elsewhere`:
    the engine is not what will be served, but the source of a plan for hardware that is not here.
    """
    if gate.max_logit_difference is not None:
        return gate.max_logit_difference
    logits = run_in_batches(engine, golden.pixels)
    unseen = UNSEEN_ROUNDING * float(np.ptp(golden.logits)) if elsewhere else 0.0
    return 2 * float(np.abs(logits - golden.logits).max()) + unseen


def run_in_batches(engine: Engine, images: Pixels) -> Logits:
    starts = range(0, len(images), BATCH)
    chunks = [engine.run(images[i : i + BATCH], alone=True).logits for i in starts]
    return np.concatenate(chunks)


def summary(measured: Measured) -> str:
    """One line for the terminal."""
    low, high = measured.agreement_interval
    text = (
        f"on {measured.images} held-out images top-1 agreement {measured.agreement:.2%} "
        f"({low:.1%} to {high:.1%})"
    )
    if measured.accuracy is not None:
        text += f", accuracy {measured.accuracy:.2%} (PyTorch {measured.pytorch_accuracy:.2%})"
    return text + (
        f", |logit difference| up to {measured.max_logit_difference:.2g}, mean "
        f"{measured.mean_logit_difference:.2g}, KL {measured.kl_divergence:.2g}"
    )
