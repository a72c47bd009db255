"""The golden samples on an engine: what is run, what is found, what is timed."""

from collections import Counter

import msgspec
import numpy as np
import pytest
from fakes import FakeEngine, image_of
from tiny import colour_network, overwrite, tiny_bundle

from packshot.bundle import open_bundle
from packshot.errors import AnswersDiffer, DamagedFile
from packshot.golden import GoldenSamples
from serving.engines import Answer, Images
from serving.engines.open import EngineChoice, open_engine
from serving.engines.prove import every_size, one_after_the_other, prove


def choice(*order: str) -> EngineChoice:
    return EngineChoice(order=order, lanes=1, max_batch=2)


def samples(number: int) -> GoldenSamples:
    """What FakeEngine answers right."""
    pixels = np.stack([image_of(value) for value in range(number)])
    return GoldenSamples(
        encoded=(b"",) * number, pixels=pixels, logits=pixels[:, 0, 0].astype(np.float32)
    )


@pytest.mark.parametrize(
    ("max_batch", "number", "batches"),
    [
        (8, 16, [8, 8, 4, 2, 1]),
        (6, 40, [6, 6, 4, 2, 1, 6, 6, 6, 3]),
        (1, 3, [1, 1, 1]),
        (4, 2, [4, 4, 2, 1]),
    ],
)
def test_on_a_cpu_the_largest_warms_up_and_doubling_sizes_hold_every_sample(
    max_batch, number, batches
):
    engine = FakeEngine()
    proof = prove(engine, samples(number), tolerance=0.0, max_batch=max_batch)
    assert engine.batches == batches
    assert proof.golden_difference == 0.0
    assert [*proof.profile.lanes] == [*range(1, max_batch + 1)]
    assert proof.profile.alone == {}


def test_where_images_run_one_by_one_a_batch_takes_as_long_as_its_images():
    engine = FakeEngine(lanes=2, one_by_one=True)
    proof = prove(engine, samples(5), tolerance=0.0, max_batch=3)
    assert engine.batches == [1] * 5
    assert [*proof.profile.lanes] == [1, 2, 3]
    assert one_after_the_other([0.2, 0.1, 0.2, 0.2, 9.0], 3) == pytest.approx(
        {1: 0.2, 2: 0.4, 3: 0.6}
    )


def test_a_device_runs_every_size_and_is_timed_at_the_second_run():
    engine = FakeEngine(lanes=2, lanes_share=True)
    proof = prove(engine, samples(2), tolerance=0.0, max_batch=3)
    assert engine.batches == [3, 3, 2, 2, 1, 1]
    assert [*proof.profile.lanes] == [1, 2, 3]


def test_runs_over_all_cores_are_proved_too_and_no_larger_than_they_will_be():
    engine = FakeEngine(lanes=4, largest_alone=2)
    proof = prove(engine, samples(4), tolerance=0.0, max_batch=8)
    runs = Counter(zip(engine.alone, engine.batches, strict=True))
    in_lanes = {(False, 8): 4 + 1} | {(False, size): 1 for size in (4, 2, 1)}
    assert runs == in_lanes | {(True, 2): 1 + 1, (True, 1): 1}
    assert [*proof.profile.alone] == [1, 2]


@pytest.mark.parametrize(("lanes", "times"), [(2, 1), (4, 1), (5, 2), (32, 8)])
def test_each_of_many_lanes_has_a_batch_to_be_timed_with(lanes, times):
    engine = FakeEngine(lanes=lanes)
    proof = prove(engine, samples(16), tolerance=0.0, max_batch=8)
    assert Counter(engine.batches) == {8: lanes + times, 4: times, 2: times, 1: times}
    assert [*proof.profile.lanes] == [*range(1, 9)]


class TakingTurns(FakeEngine):
    """A device whose two workers take turns; one of them answers wrong."""

    def __init__(self, wrong: int) -> None:
        super().__init__(lanes=2, lanes_share=True)
        self._wrong = wrong

    def run(self, images: Images, *, alone: bool = False) -> Answer:
        worker = len(self.batches) % self.lanes
        answer = super().run(images, alone=alone)
        return answer._replace(logits=answer.logits + 0.5) if worker == self._wrong else answer


@pytest.mark.parametrize("wrong", range(2))
def test_each_worker_of_a_device_is_proved(wrong):
    with pytest.raises(AnswersDiffer, match=r"differ by 0\.5"):
        prove(TakingTurns(wrong), samples(4), tolerance=0.4, max_batch=3)


@pytest.mark.parametrize("wrong", range(5))
def test_one_wrong_answer_is_found_wherever_it_is(wrong):
    golden = samples(5)
    logits = golden.logits.copy()
    logits[wrong] += 0.5
    golden = msgspec.structs.replace(golden, logits=logits)
    assert prove(FakeEngine(), golden, tolerance=0.6, max_batch=2).golden_difference == 0.5
    with pytest.raises(AnswersDiffer, match=r"differ by 0\.5"):
        prove(FakeEngine(), golden, tolerance=0.4, max_batch=2)


def test_between_the_sizes_that_were_timed_time_grows_evenly():
    assert every_size([4, 1, 1], [5.0, 9.0, 2.0]) == {1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}


def test_an_engines_file_is_checked_before_it_is_opened_and_others_are_not(tmp_path):
    folder = tiny_bundle(tmp_path, int8=colour_network())
    overwrite(folder / "model.onnx", b"another")
    bundle = open_bundle(folder, engines=False)
    opened = open_engine(bundle, choice("int8", "fp32"))
    assert opened.engine.name == "int8"
    opened.engine.close()
    with pytest.raises(DamagedFile, match=r"model\.onnx has sha256"):
        open_engine(bundle, choice("fp32"))
    (folder / "model.onnx").unlink()
    with pytest.raises(DamagedFile, match=r"model\.onnx is missing"):
        open_engine(bundle, choice("fp32"))
    with pytest.raises(DamagedFile):
        open_bundle(folder)


def test_a_damaged_engine_is_passed_over_where_that_is_asked_for(tmp_path):
    folder = tiny_bundle(tmp_path, int8=colour_network())
    overwrite(folder / "model.int8.onnx", b"another")
    bundle = open_bundle(folder, engines=False)
    both = choice("int8", "fp32")
    with pytest.raises(DamagedFile, match=r"model\.int8\.onnx has sha256"):
        open_engine(bundle, both)
    opened = open_engine(bundle, both, pass_over_damaged=True)
    (refusal,) = opened.refusals
    assert (opened.engine.name, refusal.engine, refusal.reason) == ("fp32", "int8", "damaged")
    opened.engine.close()


def test_samples_of_another_width_than_the_labels_open_no_engine(tmp_path):
    bundle = open_bundle(tiny_bundle(tmp_path))
    manifest = msgspec.structs.replace(bundle.manifest, labels=("red", "green"))
    bundle = msgspec.structs.replace(bundle, manifest=manifest)
    with pytest.raises(AnswersDiffer, match="3 logits for 2 labels"):
        open_engine(bundle, choice("fp32"))
