"""The log of a run, gone on with, and its scalars as TensorBoard reads them."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from trainer.history import read_history, stages, target_precision, throughput
from trainer.log import Log, read_lines

VALIDATION = {"images": 8, "image_size": 64, "loss": 0.5, "accuracy": 0.75, "macro_f1": 0.7}


def evaluated(log: Log, step: int, **more: object) -> None:
    moment = {"epoch": step, "step": step, "size": 64, "train_loss": 1.5, **more}
    log.write("evaluation", moment=moment, validation=VALIDATION)


def event_files(folder):
    return sorted(folder.glob("events.out.tfevents.*"))


def events(path) -> list[Event]:
    """The records of an event file: length, its checksum, content, its checksum."""
    content, found, at = path.read_bytes(), [], 0
    while at < len(content):
        length, of_length = struct.unpack_from("<QI", content, at)
        assert of_length == masked_crc32c(content[at : at + 8])
        record = content[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", content, at + 12 + length) == (masked_crc32c(record),)
        found.append(Event.FromString(record))
        at += 12 + length + 4
    return found


def scalars(path) -> dict[int, dict[str, float]]:
    return {
        event.step: {value.tag: value.simple_value for value in event.summary.value}
        for event in events(path)
        if event.summary.value
    }


def test_an_evaluation_is_in_the_event_file_while_the_run_goes_on(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.write("start", labels=["a", "b"])
    evaluated(log, 3, learning_rate=0.25, images_per_second=40.0)
    (file,) = event_files(tmp_path)
    assert events(file)[0].file_version == "brain.Event:2"
    assert scalars(file) == {
        3: {
            "loss/train": 1.5, "loss/validation": 0.5, "validation/accuracy": 0.75,
            "validation/macro_f1": pytest.approx(0.7), "training/learning_rate": 0.25,
            "training/images_per_second": 40.0, "training/image_size": 64.0,
        }
    }  # fmt: skip
    log.close()


def test_what_was_not_measured_is_left_out(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    evaluated(log, 3, train_loss=None, images_per_second=None)
    log.close()
    (file,) = event_files(tmp_path)
    assert set(scalars(file)[3]) == {
        "loss/validation", "validation/accuracy", "validation/macro_f1", "training/image_size",
    }  # fmt: skip


def test_a_new_log_takes_the_place_of_an_old_one(tmp_path):
    for step in (1, 2):
        log = Log(tmp_path / "log.jsonl")
        evaluated(log, step)
        log.close()
    assert [line["moment"]["step"] for line in read_lines(tmp_path / "log.jsonl")] == [2]
    (file,) = event_files(tmp_path)
    assert list(scalars(file)) == [2]


@pytest.fixture
def begun(tmp_path):
    """A log with evaluations after steps 1, 2 and 3, whose writer was killed in the next line."""
    path = tmp_path / "log.jsonl"
    log = Log(path)
    log.write("start", options={"target_precision": 0.9})
    for step in (1, 2, 3):
        evaluated(log, step)
    log.write("data", warnings=[])
    log.close()
    lines = read_lines(path)
    lines[-1]["seconds"] = 1000.0
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text + '{"event": "evaluation", "sec')
    return path


def test_a_log_is_gone_on_with_after_a_step(begun):
    log = Log(begun, after_step=2)
    evaluated(log, 3)
    log.close()
    lines = read_lines(begun)
    told = [line.get("moment", {}).get("step") or line["event"] for line in lines]
    assert told == ["start", 1, 2, "data", 3]
    assert lines[-1]["seconds"] >= 1000.0
    assert begun.read_text().count("\n") == 5


def test_tensorboard_is_told_which_steps_come_again(begun):
    Log(begun, after_step=2).close()
    before, after = event_files(begun.parent)
    assert list(scalars(before)) == [1, 2, 3]
    start = events(after)[1]
    assert (start.step, start.session_log.status) == (3, SessionLog.START)


def test_a_lost_log_begins_anew(tmp_path):
    log = Log(tmp_path / "log.jsonl", after_step=2)
    evaluated(log, 3)
    log.close()
    assert [line["moment"]["step"] for line in read_lines(tmp_path / "log.jsonl")] == [3]


def test_the_course_is_read_from_the_log_with_or_without_newer_fields(begun):
    log = Log(begun, after_step=3)
    for step, rate in ((4, 10.0), (5, 30.0), (6, 50.0)):
        evaluated(log, step, size=128, learning_rate=0.1, images_per_second=rate)
    log.close()
    history = read_history(begun)
    assert [one.step for one in history] == [1, 2, 3, 4, 5, 6]
    assert (history[0].images_per_second, history[0].learning_rate) == (None, None)
    assert (history[0].loss, history[0].accuracy, history[0].macro_f1) == (0.5, 0.75, 0.7)
    assert [len(stage) for stage in stages(history)] == [3, 3]
    assert throughput(history) == {128: 30.0}


def test_the_precision_asked_for_is_read_from_the_log(begun, tmp_path):
    assert target_precision(begun) == 0.9
    log = Log(begun, after_step=2)
    log.write("resume", options={"target_precision": 0.8})
    log.close()
    assert target_precision(begun) == 0.8
    (tmp_path / "older.jsonl").write_text('{"event": "start", "seconds": 0, "options": {}}\n')
    assert target_precision(tmp_path / "older.jsonl") is None
