"""A finished run: its figures for programs, and its report for people."""

import re
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest
import torch
from test_data import fill, split_of

from exporters.source import load_source
from packshot.errors import DamagedFile, NotFound
from packshot.image import ImageSpec
from packshot.prediction import probabilities
from trainer.__main__ import main
from trainer.batches import served_views
from trainer.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_split_of,
    read_record,
    save_checkpoint,
    save_record,
)
from trainer.conclude import conclude, judgement
from trainer.contact_sheet import SHOWN, thumbnail
from trainer.evaluate import Evaluation, predict
from trainer.finish import finish
from trainer.log import Log
from trainer.metrics import METRICS, read_metrics
from trainer.model import Weights, new_network
from trainer.recipes import FROM_SCRATCH, RECIPES, changed
from trainer.review import reviewed

SPEC = ImageSpec()
LABELS = ('<img src=x onerror="a()">', "b & c", "d'e", "f", "g", "h")
BEFORE = Evaluation(
    images=1, image_size=64, loss=1.0, accuracy=0.5, interval=(0.0, 1.0), macro_f1=0.5, classes=(),
    confusion=(),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six classes, of names that HTML must not take for its own."""
    folder = tmp_path_factory.mktemp("report") / "data"
    for i, label in enumerate(LABELS):
        for j, (part, count) in enumerate({"train": 4, "val": 3, "test": 2}.items()):
            fill(folder / part / label, count, seed=10 * i + j)
    return folder


def unfinished(run, data, **asked):
    """A run whose training has ended, and its log."""
    torch.manual_seed(0)
    run.mkdir()
    split = reviewed(split_of(data), SPEC)
    record = Checkpoint(
        architecture="resnet18", labels=split.labels, image=SPEC, recipe=FROM_SCRATCH,
        weights=Weights(pretrained=False, source="random"), seed=0, epoch=2, step=6,
        validation=BEFORE, data_fingerprint=split.fingerprint, versions={},
    )  # fmt: skip
    network = new_network("resnet18", len(LABELS), SPEC)
    learn_validation(network, split)
    save_checkpoint(run, record, network, split)
    log = Log(run / "log.jsonl")
    log.write("start", options=asked)
    for step, size in enumerate((64, 64, 224), start=1):
        moment = {"epoch": step, "step": step, "size": size, "train_loss": 2 / step}
        validation = {"loss": 1.0, "accuracy": 0.5, "macro_f1": 0.4}
        log.write("evaluation", moment=moment, validation=validation)
    log.close()
    return run


SURELY_KNOWN = 10


def learn_validation(network, split) -> None:
    """A head that gives the first validation images surely right answers, the others wrong ones.

    Of all other images it knows nothing: the rest of the network has random weights.
    """
    with torch.inference_mode():
        views = torch.from_numpy(served_views(split, split.val, SPEC))
        _, embedding = network.eval()(views)
    logits = torch.zeros(len(split.val), len(LABELS), dtype=torch.float64)
    for i, example in enumerate(split.val):
        right = i < SURELY_KNOWN
        logits[i, example.label if right else (example.label + 1) % len(LABELS)] = 6 if right else 2
    weight = torch.linalg.pinv(embedding.double()) @ logits
    with torch.no_grad():
        network.head.weight.copy_(weight.T)
        network.head.bias.zero_()


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    run = unfinished(tmp_path_factory.mktemp("runs") / "run", data, target_precision=0.7)
    finish(run)
    return run


@pytest.fixture(scope="module")
def metrics(run):
    return read_metrics(run)


def test_the_metrics_are_those_of_the_kept_network_at_the_size_served(run, metrics):
    record, network = load_checkpoint(run)
    split = load_split_of(run, record)
    logits = predict(network, served_views(split, split.test, SPEC))
    truth = np.array([example.label for example in split.test])
    right = logits.argmax(axis=1) == truth
    assert (metrics.test.images, metrics.validation.images, metrics.train.images) == (12, 18, 24)
    assert metrics.test.accuracy == right.mean()
    assert metrics.test.top5 >= metrics.test.accuracy
    assert metrics.test == record.test
    assert record.finished
    assert metrics.measured_on == "test"
    assert metrics.calibration.temperature == record.temperature
    assert metrics.calibration.after.images == metrics.coverage[-1].answered == 12
    confidence = probabilities(logits, record.temperature).max(axis=1)
    assert metrics.coverage[0].threshold == pytest.approx(confidence.max(), rel=1e-4)
    assert metrics.mistakes.images > 0
    assert metrics.data["images"] == {"train": 24, "val": 18, "test": 12}
    assert any("images are few" in text for text in metrics.data["warnings"])


def test_the_threshold_chosen_is_in_the_checkpoint(run, metrics):
    record, _ = load_checkpoint(run)
    chosen = metrics.abstaining
    assert (chosen.target, chosen.reached) == (0.7, True)
    assert (chosen.validation.answered, chosen.validation.precision) == (SURELY_KNOWN, 1.0)
    assert chosen.test.images == 12
    assert 0 < metrics.min_confidence == chosen.threshold == record.min_confidence


def test_a_network_that_knows_nothing_is_diagnosed_and_told(run, metrics, capsys):
    assert "poor final accuracy" in [finding.problem for finding in metrics.diagnosis]
    record, _ = load_checkpoint(run)
    conclude(record, run)
    told = capsys.readouterr().out
    assert "poor final accuracy: " in told
    assert "calibration error " in told
    assert "a precision of 70.0%" in told


class Page(HTMLParser):
    """What a browser would make of a page: its elements' attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(run):
    return Page((run / "report.html").read_text())


def test_the_report_needs_nothing_but_itself(page):
    loaded = [value for _, name, value in page.attributes if name in ("src", "href", "srcset")]
    assert loaded
    assert all(value.startswith("data:image/jpeg;base64,") for value in loaded)
    assert not re.search(r"url\(|@import", page.text)


def test_names_are_text_in_the_report_whatever_they_hold(page):
    assert {name for _, name, _ in page.attributes if name.startswith("on")} == set()
    for label in LABELS:
        assert label in page.text
    named = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert any(LABELS[0] in value for value in named)


def test_the_report_tells_all_that_was_measured(page, metrics):
    for text in (
        f"{metrics.test.top5:.1%}among the first five",
        f"{metrics.train.accuracy:.1%}on 24 images trained on",
        f"{metrics.calibration.after.error:.1%}calibration error",
        f"Most confident mistakes: {metrics.mistakes.images}",
        f"Likely label errors: {metrics.likely_label_errors.images or 'none'}",
        "Poor final accuracy.",
        "a precision of 70.0%",
        "share of the images answered",
        "64 px",
    ):
        assert text in page.text, text
    assert "images/s" not in page.text, "older logs do not have it"
    for one in metrics.mistakes.listed[:SHOWN]:
        assert one.file in page.text


def test_a_report_full_of_thumbnails_stays_under_a_megabyte():
    noise = np.random.default_rng(0).integers(0, 256, SPEC.shape, np.uint8)
    worst = len(thumbnail(noise)) * 2 * SHOWN * 4 / 3  # base64
    assert worst < 900_000


def test_without_a_target_or_test_images_nothing_abstains_and_validation_counts(tmp_path, data):
    run = unfinished(tmp_path / "run", data)
    record, network = load_checkpoint(run)
    split = msgspec.structs.replace(load_split_of(run, record), test=())
    save_checkpoint(run, record, network, split)
    kept = finish(run)
    metrics = read_metrics(run)
    assert (kept.test, kept.min_confidence, metrics.abstaining) == (None, 0.0, None)
    assert (metrics.measured_on, metrics.calibration.after.images) == ("val", 18)
    report = (run / "report.html").read_text()
    assert "No precision was asked for (--target-precision)" in report
    assert "Probabilities, on validation images (there are no test images)" in report


def test_a_run_that_was_killed_is_measured_and_told_to_be_unfinished(tmp_path, data, capsys):
    run = unfinished(tmp_path / "run", data)
    save_record(run, msgspec.structs.replace(read_record(run), recipe=RECIPES["xray"]))
    for measured in ("measuring its checkpoint first\n", ""):
        source = load_source(run, None)
        told = capsys.readouterr().out
        assert told.startswith(measured and f"the run in {run} was cut short: {measured}")
        assert "WARNING: training was interrupted at epoch 3 of 12, and what is exported" in told
        assert "train with --resume" in told
    assert source.checkpoint.interrupted_at == 3
    (finding,) = read_metrics(run).diagnosis
    assert finding.evidence == ("training was interrupted at epoch 3 of 12",)
    assert list(judgement(source.checkpoint, 0.5)) == []
    assert "that recipe xray usually gives" not in (run / "report.html").read_text()
    (sentence,) = judgement(finish(run), 0.5)  # once it has been gone on with
    assert "that recipe xray usually gives" in sentence
    assert "that recipe xray usually gives" in (run / "report.html").read_text()


def test_a_run_that_was_killed_in_its_last_report_has_finished(tmp_path, data, capsys):
    run = unfinished(tmp_path / "run", data)
    record = msgspec.structs.replace(read_record(run), recipe=changed(FROM_SCRATCH, epochs=3))
    save_record(run, record)
    assert load_source(run, None).checkpoint.interrupted_at is None
    assert "WARNING" not in capsys.readouterr().out


def test_metrics_that_are_lost_or_damaged_are_named(tmp_path):
    with pytest.raises(NotFound, match=r"metrics\.json is missing"):
        read_metrics(tmp_path)
    (tmp_path / METRICS).write_text("{")
    with pytest.raises(DamagedFile, match=r"metrics\.json"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("value", ["0.49", "1", "nan"])
def test_a_precision_out_of_range_is_refused(tmp_path, capsys, value):
    assert main(["--data", str(tmp_path), "--target-precision", value]) == 1
    assert f"--target-precision is {value}; it must be from 0.5 to 0.999" in capsys.readouterr().err
