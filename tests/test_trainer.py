"""The trainer's parts on real networks, and its ways to stop."""

import json
import os
import re
import signal
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch
from processes import ROOT, TIMEOUT, environment, program
from torchvision.transforms.v2.functional import normalize

from packshot.errors import DamagedFile, InvalidInput, NotFound
from packshot.image import ImageSpec
from packshot.intervals import share_interval
from packshot.prediction import probabilities
from trainer.batchnorm import reestimate_batchnorm
from trainer.calibrate import fit_temperature
from trainer.checkpoint import load_checkpoint, load_split_of, read_record
from trainer.command_line import parse_fetching, parse_options
from trainer.evaluate import score
from trainer.model import new_network
from trainer.sample import draw_catalogue

SPEC = ImageSpec()


def test_resnet50_has_its_25_6_million_parameters():
    network = new_network("resnet50", 1000, SPEC)
    assert sum(p.numel() for p in network.parameters()) == 25_557_032


def test_the_network_normalises_by_itself():
    network = new_network("resnet18", 5, SPEC).eval()
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    normal = normalize(pixels.permute(0, 3, 1, 2) / 255, SPEC.mean, SPEC.std)
    with torch.inference_mode():
        logits, embedding = network(pixels)
        assert torch.allclose(embedding, network.backbone(normal), atol=1e-4)
    assert logits.shape == (2, 5)
    assert embedding.shape == (2, network.embedding_width)


def test_unknown_architecture_is_named():
    with pytest.raises(InvalidInput, match="'resnet51'; it must be one of resnet18"):
        new_network("resnet51", 2, SPEC)


def test_scores_by_hand():
    logits = np.array([[2, 1], [0, 1], [3, 0], [1, 0]], np.float32)
    result = score(logits, np.array([0, 1, 1, 0]), ("a", "b"), 224)
    assert result.accuracy == 0.75
    assert result.confusion == ((2, 0), (1, 1))
    assert result.classes[0].precision == pytest.approx(2 / 3)
    assert result.classes[1].recall == 0.5
    assert result.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert result.loss == pytest.approx(
        -np.log(probabilities(logits)[[0, 1, 2, 3], [0, 1, 1, 0]]).mean()
    )


def test_share_interval_of_textbook():
    low, high = share_interval(81, 263)
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert share_interval(10, 10)[1] == 1.0


def test_temperature_is_found_again():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4000, 5)).astype(np.float32)
    truth = np.array([rng.choice(5, p=p) for p in probabilities(logits, 2.0)])
    assert fit_temperature(logits, truth) == pytest.approx(2.0, rel=0.1)


def test_batchnorm_statistics_are_those_of_the_images_given():
    network = new_network("resnet18", 2, SPEC)
    views = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
    reestimate_batchnorm(network, views)
    with torch.inference_mode():
        normal = (torch.from_numpy(views).float() - network.mean) / network.std
        seen = network.backbone.conv1(normal.permute(0, 3, 1, 2))
    mean = network.backbone.bn1.running_mean
    assert torch.allclose(mean, seen.mean(dim=(0, 2, 3)), atol=1e-4)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "small"
    draw_catalogue(folder, counts={"train": 6, "val": 2, "test": 2})
    return folder


def test_without_weights_the_trainer_stops_and_says_how_to_go_on(catalogue, hub):
    run = hub / "run"
    done = program("trainer", "--data", catalogue, "--run", run, "--arch", "resnet18")
    assert done.returncode == 1
    assert "Three ways out" in done.stderr
    assert list(run.iterdir()) == []


def test_wrong_options_stop_before_any_work(catalogue, tmp_path):
    done = program("trainer", "--data", catalogue, "--run", tmp_path / "run", "--epochs", 99)
    assert done.returncode == 1
    assert done.stderr.strip() == "trainer: --epochs is 99; it must be from 1 to 30"


def test_help_tells_the_default_of_every_option_that_has_one(capsys):
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    told = " ".join(capsys.readouterr().out.split("options:")[1].split())
    usual = parse_options(["--data", "photos"])
    for name in ("run", "val_share", "test_share", "max_damaged_share", "arch", "weights",
                 "without_weights", "recipe", "precision", "workers", "seed"):  # fmt: skip
        option = re.search(rf"--{name.replace('_', '-')} .*?\(default: ([^)]*)\)", told)
        assert option[1] == str(getattr(usual, name)), name


def test_weights_without_a_verb_names_it(capsys):
    with pytest.raises(SystemExit):
        parse_fetching([])
    assert "the following arguments are required: fetch" in capsys.readouterr().err


def test_temperature_stays_finite_without_a_single_error():
    logits = np.array([[3.0, 0.0], [0.0, 3.0]] * 20, np.float32)
    temperature = fit_temperature(logits, np.array([0, 1] * 20))
    assert probabilities(logits, temperature).max() == pytest.approx(1 - 1 / 42, abs=1e-3)


def test_an_interrupt_of_the_whole_group_keeps_the_last_checkpoint(catalogue, tmp_path):
    """By SIGINT; test_resume.py has SIGTERM."""
    number = signal.SIGINT
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint.json").write_text("of an earlier run")
    command = [sys.executable, "-m", "trainer", "--data", catalogue, "--run", run]
    command += ["--arch", "resnet18", "--weights", "none", "--epochs", 30, "--batch-size", 8]
    training = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment(), start_new_session=True,
    )  # fmt: skip
    for line in training.stdout:
        if "kept" in line:
            os.killpg(training.pid, number)
            break
    output, errors = training.communicate(timeout=TIMEOUT)
    assert training.returncode == 128 + number, errors
    record, network = load_checkpoint(run)
    assert (
        f"interrupted: the checkpoint is that of epoch {record.epoch}; the same command with "
        "--resume (make train TRAIN=--resume) goes on"
    ) in errors
    assert "accuracy" in output
    assert f"unfinished: training was interrupted at epoch {record.interrupted_at} of 30" in output
    assert record.epoch <= record.interrupted_at < 30
    assert record.test.image_size == SPEC.crop
    assert not network.training
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["start", "end"]
    assert events[-1]["interrupted"] is True
    assert (run / "unfinished" / "checkpoint.json").read_text() == "of an earlier run"
    with pytest.raises(ProcessLookupError):
        os.killpg(training.pid, 0)
    assert len(load_split_of(run, record).held_out) == 32
    check_that_damage_is_found(run, record)


def check_that_damage_is_found(run, record) -> None:
    weights = run / record.weights_file
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match=record.weights_file):
        load_checkpoint(run)
    weights.unlink()
    with pytest.raises(NotFound, match=record.weights_file):
        load_checkpoint(run)
    (run / "checkpoint.json").write_bytes(msgspec.json.encode(record)[:-1])
    with pytest.raises(DamagedFile, match=r"checkpoint\.json"):
        read_record(run)
