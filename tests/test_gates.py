"""What an engine must reach, with the numbers and with what they cannot tell."""

import msgspec
import numpy as np
import pytest
from tiny import colour_network, reference

from exporters.gates import (
    GATES,
    Gate,
    HeldOut,
    accuracy_drop,
    caveat,
    check_gate,
    faults,
    golden_tolerance,
    kl_divergence,
    measure,
)
from exporters.proof import open_onnx
from packshot.errors import AnswersDiffer
from packshot.golden import GoldenSamples
from packshot.intervals import paired_drop_interval, share_interval

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 224, 224, 3), np.uint8)
LOGITS = reference(IMAGES)
TRUTH = LOGITS.argmax(axis=1)


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(colour_network())
    engine = open_onnx(path)
    yield engine
    engine.close()


def held_out(logits=LOGITS, truth=TRUTH) -> HeldOut:
    return HeldOut(images=IMAGES, truth=truth, logits=logits)


def turned(count: int) -> np.ndarray:
    """PyTorch's logits, had it preferred another class on the first images."""
    logits = LOGITS.copy()
    logits[:count] = -logits[:count]
    return logits


def test_an_engine_that_answers_alike_passes(engine):
    measured = measure(engine, held_out())
    assert (measured.agreement, measured.accuracy, measured.pytorch_accuracy) == (1.0, 1.0, 1.0)
    assert measured.agreement_interval == share_interval(40, 40)
    assert measured.kl_divergence == pytest.approx(0, abs=1e-6)
    for gate in GATES.values():
        check_gate("engine", measured, gate)


def test_fp32_is_held_to_its_logits_and_int8_is_not(engine):
    off = measure(engine, held_out(LOGITS + np.float32(0.01)))
    assert off.agreement == 1.0
    with pytest.raises(AnswersDiffer, match=r"fp32.*40 held-out.*logit difference\| 0\.01"):
        check_gate("fp32", off, GATES["fp32"])
    check_gate("int8", off, GATES["int8"])


def test_other_answers_and_lost_accuracy_are_named_with_their_numbers(engine):
    logits = turned(2)
    changed = measure(engine, held_out(logits, truth=logits.argmax(axis=1)))
    assert accuracy_drop(changed) == pytest.approx(0.05)
    assert faults(changed, GATES["int8"]) == [
        "top-1 agreement 95.00%, at least 97.00%",
        "accuracy drop 5.00%, at most 0.50%",
    ]
    assert faults(changed, Gate(min_agreement=0.9, max_accuracy_drop=0.1)) == []


def test_a_drop_of_exactly_the_limit_passes(engine):
    measured = measure(engine, held_out())
    for total, right in ((200, 198), (200, 191), (1000, 989), (2000, 1971)):
        lost = round(total * 0.005)
        at_limit, beyond = (
            msgspec.structs.replace(
                measured, pytorch_accuracy=right / total, accuracy=(right - gone) / total
            )
            for gone in (lost, lost + 1)
        )
        assert faults(at_limit, GATES["int8"]) == [], total
        assert len(faults(beyond, GATES["int8"])) == 1


def test_without_labels_only_agreement_counts(engine):
    measured = measure(engine, held_out(turned(2), truth=None))
    assert (measured.accuracy, measured.pytorch_accuracy) == (None, None)
    assert measured.accuracy_drop_interval is None
    assert faults(measured, GATES["int8"]) == ["top-1 agreement 95.00%, at least 97.00%"]
    assert faults(measured, Gate(min_agreement=0.9, max_accuracy_drop=0.0)) == []


def test_an_engine_that_gives_nan_passes_no_gate(engine):
    measured = measure(engine, held_out())
    broken = msgspec.structs.replace(measured, max_logit_difference=float("nan"))
    assert faults(broken, GATES["fp32"])
    assert faults(broken, GATES["int8"]) == ["logits that are not finite numbers"]


def test_few_images_leave_doubts_that_are_said(engine):
    measured = measure(engine, held_out())
    assert caveat(measured, GATES["int8"]) == (
        "with 40 images, at 95 %: agreement may be as low as 91.2% (asked: 97.0%), the drop in "
        "accuracy as large as 4.7% (asked: 0.5%)"
    )
    assert caveat(measured, Gate(min_agreement=0.9, max_accuracy_drop=0.05)) == ""
    assert caveat(measured, GATES["fp32"]) == ""


def test_kl_divergence_by_hand():
    reference_ = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32))
    other = np.log(np.array([[0.25, 0.75], [0.9, 0.1]], np.float32))
    by_hand = 0.5 * (0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    assert kl_divergence(reference_, other, 1.0) == pytest.approx(by_hand, rel=1e-5)
    assert kl_divergence(reference_, other, 10.0) < 0.02 * by_hand
    assert kl_divergence(reference_, reference_, 1.0) == 0.0


def test_intervals_of_textbooks():
    # Wilson: Newcombe, Statistics in Medicine 17 (1998), table I.
    assert share_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert share_interval(10, 10)[1] == 1.0
    # Agresti and Min (2005) by hand: half an image added to each of four outcomes.
    low, high = paired_drop_interval(lost=6, won=2, total=98)
    half = 1.96 * (9 / 100 - 0.04**2) ** 0.5 / 10
    assert (low, high) == pytest.approx((0.04 - half, 0.04 + half))
    low, high = paired_drop_interval(lost=0, won=0, total=100)
    assert low == -high < 0


def test_the_tolerance_for_golden_samples(engine):
    pixels = IMAGES[:4]
    golden = GoldenSamples(encoded=(), pixels=pixels, logits=LOGITS[:4] + np.float32(0.25))
    assert golden_tolerance(engine, golden, GATES["fp32"]) == 1e-3
    here = golden_tolerance(engine, golden, GATES["int8"])
    assert here == pytest.approx(0.5, rel=1e-3)
    elsewhere = golden_tolerance(engine, golden, GATES["int8"], elsewhere=True)
    assert elsewhere == pytest.approx(here + 0.01 * np.ptp(golden.logits))
