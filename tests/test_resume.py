"""Runs that are killed, gone on with, cut short, or shared by several processes."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from processes import ROOT, TIMEOUT, environment, program
from safetensors.torch import load_file
from test_data import fill, options
from test_schedule import Clock

from packshot.errors import DamagedFile, InvalidInput
from packshot.image import ImageSpec
from packshot.resizing import best_resizer
from trainer.batchnorm import reestimate_batchnorm
from trainer.checkpoint import STATE, read_record, save_record
from trainer.course import Course, Moment, Patience, TimeLimit
from trainer.data import load_split
from trainer.evaluate import predict, resized
from trainer.hardware import Hardware
from trainer.interrupt import Interrupt
from trainer.keeper import Keeper
from trainer.lock import locked
from trainer.log import Log
from trainer.loop import train
from trainer.model import Weights, new_network
from trainer.prepare import check_shares, view_of
from trainer.processes import Processes
from trainer.recipes import RECIPES, changed
from trainer.review import reviewed
from trainer.run import is_finished
from trainer.state import Progress, check_identity, read_state, save_state
from trainer.timing import new_plan
from trainer.training import Training

# Everything that has a state: average, mixing, views that are drawn, BatchNorm's statistics.
COMMAND = (
    "--arch", "resnet18", "--weights", "none", "--recipe", "small", "--batch-size", 4,
    "--epochs", 2, "--mixup", 0.3, "--cutmix", 0.3, "--learning-rate", 5e-4, "--workers", 1,
    "--yes",
)  # fmt: skip

# Sizes one after the other, and BatchNorm's statistics measured anew at the end.
IN_SIZES = (
    "--arch", "resnet18", "--weights", "none", "--recipe", "from-scratch", "--batch-size", 4,
    "--epochs", 2, "--workers", 1, "--yes",
)  # fmt: skip

# The trainer, which gets a signal as it begins its fifth step: in the middle of the second epoch.
SIGNALLED = """
import os, sys
from trainer.__main__ import main
from trainer.learner import Learner

class Signalled(Learner):
    def step(self, images, labels, learning_rate_share):
        if self.scalars().taken == 4 and learning_rate_share:  # 0 is to measure the time
            os.kill(os.getpid(), int(sys.argv[1]))
        return super().step(images, labels, learning_rate_share)

import trainer.training
trainer.training.Learner = Signalled
raise SystemExit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """12 images to train on: three steps an epoch."""
    folder = tmp_path_factory.mktemp("shop") / "shop"
    for part, count in (("train", 6), ("val", 2), ("test", 2)):
        for seed, label in enumerate(("mug", "shoe")):
            fill(folder / part / label, count, seed=10 * seed + len(part))
    return folder


@pytest.fixture(scope="module")
def finished(shop, tmp_path_factory) -> Path:
    """A run of COMMAND that nothing interrupted."""
    run = tmp_path_factory.mktemp("finished") / "run"
    done = program("trainer", "--data", shop, "--run", run, *COMMAND, "--resume")
    assert done.returncode == 0, done.stderr
    assert "there is no unfinished run" in done.stdout
    return run


def evaluations(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    found = [line for line in lines if line["event"] == "evaluation"]
    for line in found:
        del line["seconds"], line["moment"]["images_per_second"]
    return found


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / read_record(run).weights_file)


@pytest.mark.parametrize(
    ("command", "number", "status", "steps"),
    [
        (COMMAND, signal.SIGKILL, -signal.SIGKILL, 4),
        (IN_SIZES, signal.SIGTERM, 128 + signal.SIGTERM, 5),
    ],
)
def test_a_run_ended_in_mid_epoch_ends_as_if_it_had_not_been(
    shop, finished, tmp_path, command, number, status, steps
):
    whole, run = finished, tmp_path / "run"
    if command is not COMMAND:
        whole = tmp_path / "whole"
        uninterrupted = program("trainer", "--data", shop, "--run", whole, *command)
        assert uninterrupted.returncode == 0, uninterrupted.stderr
    assert not (whole / STATE).exists()
    arguments = [*map(str, ("--data", shop, "--run", run, *command)), "--save-minutes", "0"]
    script = [sys.executable, "-c", SIGNALLED, str(int(number))]
    ended = subprocess.run([*script, *arguments], cwd=ROOT, env=environment(), check=False)
    assert ended.returncode == status
    assert read_state(run).progress.step == steps
    assert [one["moment"]["step"] for one in evaluations(run)] == [3]

    done = program("trainer", *arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert f"going on after step {steps} of 6" in done.stdout
    assert evaluations(run) == evaluations(whole)
    assert read_record(run).weights_sha256 == read_record(whole).weights_sha256
    assert not (run / STATE).exists()


def test_an_interrupted_run_whose_state_is_gone_has_not_finished(shop, finished, tmp_path):
    asked = training(shop, tmp_path, FEW_PIXELS)
    record = msgspec.structs.replace(
        read_record(finished),
        **{name: getattr(asked.identity, name) for name in ("recipe", "weights", "seed", "image")},
    )
    save_record(tmp_path, record)
    assert is_finished(asked)
    save_record(tmp_path, msgspec.structs.replace(record, interrupted_at=1))
    assert not is_finished(asked)


def test_a_run_goes_on_with_the_resizer_that_it_began_with(shop, finished, tmp_path):
    """What is installed, or the default, may be another by then."""
    run = tmp_path / "run"
    goes_on = options(shop, run=run, resume=True)
    assert view_of(goes_on, ImageSpec()).resizer == best_resizer() == "fast_image_resize"
    began = training(shop, run, FEW_PIXELS)
    learner = began.learner(new_network("resnet18", len(began.split.labels), began.spec), 1)
    run.mkdir()
    progress = Progress(
        identity=began.identity, step=0, steps=1, losses=(), standing=None, patience=Patience(),
        scalars=learner.scalars(),
    )  # fmt: skip
    save_state(run, progress, learner)
    assert view_of(goes_on, ImageSpec()).resizer == "pillow"
    asked = msgspec.structs.replace(goes_on, resizer="fast_image_resize")
    assert view_of(asked, ImageSpec()).resizer == "fast_image_resize"
    (run / STATE).write_bytes(b"?")
    with pytest.raises(DamagedFile, match="train anew without --resume"):
        view_of(goes_on, ImageSpec())
    (run / STATE).unlink()
    save_record(run, msgspec.structs.replace(read_record(finished), image=ImageSpec()))
    assert view_of(goes_on, ImageSpec()).resizer == "pillow"


def test_a_run_that_has_finished_is_not_begun_again(shop, finished):
    command = ("--data", shop, "--run", finished, *COMMAND, "--resume")
    written = (finished / "checkpoint.json").read_bytes()
    again = program("trainer", *command)
    assert again.returncode == 0, again.stderr
    assert "has finished: there is nothing left to do" in again.stdout
    other = program("trainer", *command, "--seed", 7)
    assert other.returncode == 1
    assert "--resume: seed is 7 now and was 0 when the run" in other.stderr
    assert (finished / "checkpoint.json").read_bytes() == written


def training(shop: Path, run: Path, recipe, **asked: object) -> Training:
    wanted = options(shop, run=run, **asked)
    return Training(
        split=reviewed(load_split(wanted, ImageSpec()), ImageSpec()),
        recipe=recipe,
        spec=ImageSpec(),
        options=wanted,
        weights=Weights(pretrained=False, source="random"),
    )


class Asked:
    """An interrupt that comes when the run has taken so many steps."""

    def __init__(self, course: Course, step: int) -> None:
        self._course, self._step = course, step

    @property
    def signal(self) -> int | None:
        return signal.SIGTERM if self._course.step >= self._step else None


NEVER = 10**9
FEW_PIXELS = changed(
    RECIPES["small"],
    epochs=6,
    batch_size=4,
    stages=((32, 1.0),),
    frozen_batchnorm=False,
    floor=False,
)


def trained(asked: Training, course: Course, interrupted_at: int = NEVER) -> Keeper:
    """Runs the loop on a ResNet-18 from where the course stands."""
    torch.manual_seed(0)
    network = new_network("resnet18", 2, ImageSpec())
    schedule = asked.schedule()
    log = Log(asked.options.run / "log.jsonl")
    keeper = Keeper(asked, log)
    interrupt: Interrupt = Asked(course, interrupted_at)
    train(asked, schedule, asked.learner(network, schedule.steps), keeper, course, interrupt)
    log.close()
    return keeper


def test_an_interrupt_saves_the_state_of_the_very_step(shop, tmp_path):
    asked = training(shop, tmp_path, FEW_PIXELS)
    keeper = trained(asked, Course(), interrupted_at=5)
    assert keeper.best.step == 3
    state = read_state(tmp_path)
    assert (state.progress.step, state.progress.steps) == (5, 18)
    assert len(state.progress.losses) == 2
    check_identity(state.progress.identity, asked.identity, tmp_path)
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:-100])
    with pytest.raises(DamagedFile, match="remove it, or train anew without --resume"):
        read_state(tmp_path)


def test_only_the_same_run_is_gone_on_with(shop, tmp_path):
    one = training(shop, tmp_path, FEW_PIXELS).identity
    other = training(shop, tmp_path, changed(FEW_PIXELS, epochs=7)).identity
    with pytest.raises(InvalidInput, match=r"recipe\.epochs is 7 now and was 6"):
        check_identity(one, other, tmp_path)
    padded = msgspec.structs.replace(one, image=ImageSpec(fit="pad"))
    with pytest.raises(InvalidInput, match=r"image\.fit is 'crop' now and was 'pad'"):
        check_identity(padded, one, tmp_path)
    with pytest.raises(InvalidInput, match="data is 'other' now and was"):
        check_identity(one, msgspec.structs.replace(one, data="other"), tmp_path)


def test_it_stops_early_when_nothing_is_gained(shop, tmp_path, capsys):
    still = changed(FEW_PIXELS, learning_rate=1e-12, patience=2)
    keeper = trained(training(shop, tmp_path, still), Course())
    assert "stopping early: no progress in 2 evaluations" in capsys.readouterr().out
    assert [one["moment"]["epoch"] for one in evaluations(tmp_path)] == [1, 2, 3]
    assert keeper.best is not None
    endless = trained(training(shop, tmp_path, changed(still, patience=0)), Course())
    assert [one["moment"]["epoch"] for one in evaluations(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert endless.best is not None


class Ticking(Clock):
    """A second passes each time that it is looked at."""

    def __call__(self) -> float:
        self.seconds += 1
        return self.seconds


def test_it_ends_in_time_with_what_it_has(shop, tmp_path, capsys):
    clock = Ticking()
    limit = TimeLimit(seconds=20, started=clock.seconds, clock=clock)
    asked = training(shop, tmp_path, FEW_PIXELS, max_minutes=0.5)
    keeper = trained(asked, Course(limit=limit))
    assert "--max-minutes 0.5 are over: ending here" in capsys.readouterr().out
    steps = [one["moment"]["step"] for one in evaluations(tmp_path)]
    assert steps[-1] < 18
    assert keeper.best.step in steps
    rates = [one["moment"]["learning_rate"] for one in evaluations(tmp_path)]
    assert rates[-1] == pytest.approx(FEW_PIXELS.learning_rate * 0.01)


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine; `--`, or torchrun takes --run for an option of its own."""
    command = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1")
    trainer = ("--nproc-per-node", "2", "-m", "--", "trainer", *map(str, arguments))
    return subprocess.run(
        [sys.executable, *command, *trainer],
        cwd=ROOT, text=True, capture_output=True, timeout=600, env=environment(), check=False,
    )  # fmt: skip


def test_two_processes_train_what_one_does(shop, tmp_path):
    """With BatchNorm's statistics frozen, as they are in small batches; else each has its own."""
    torch.manual_seed(1)
    weights = tmp_path / "weights.pth"
    torch.save(new_network("resnet18", 1000, ImageSpec()).backbone.state_dict(), weights)
    command = (
        "--data", shop, "--arch", "resnet18", "--weights", weights, "--recipe", "large",
        "--batch-size", 4, "--epochs", 2, "--workers", 0, "--accumulate", 2,
        "--cache", tmp_path / "cache",
    )  # fmt: skip
    alone = program("trainer", *command, "--run", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    shared = torchrun(*command, "--run", tmp_path / "two")
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count("accuracy") == alone.stdout.count("accuracy")
    one, two = (final_weights(tmp_path / name) for name in ("one", "two"))
    begun = torch.load(weights)
    # Adam takes a whole step for the smallest of gradients too, whose sign is a matter of rounding.
    moved = sum((one[f"backbone.{n}"] - value).abs().sum() for n, value in begun.items())
    apart = sum((one[f"backbone.{n}"] - two[f"backbone.{n}"]).abs().sum() for n in begun)
    assert moved > 100
    assert apart < 0.01 * moved
    for one, two in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        assert one["moment"]["train_loss"] == pytest.approx(two["moment"]["train_loss"], abs=1e-4)
        assert one["validation"]["loss"] == pytest.approx(two["validation"]["loss"], abs=1e-4)


def test_an_error_of_the_first_process_ends_all_of_them(tmp_path):
    done = torchrun("--data", tmp_path / "nowhere", "--run", tmp_path / "run", "--weights", "none")
    assert done.returncode != 0
    assert "nowhere" in done.stderr
    assert "the first process gave up" in done.stderr


def test_a_batch_that_cannot_be_shared_out_is_refused():
    two = Hardware(processes=Processes(count=2))
    check_shares(FEW_PIXELS, two)
    with pytest.raises(InvalidInput, match="--batch-size is 5, of all processes together: it must"):
        check_shares(changed(FEW_PIXELS, batch_size=5), two)


def test_a_limit_that_leaves_no_time_is_told_before_anything_is_written(shop, tmp_path):
    asked = training(shop, tmp_path, FEW_PIXELS, max_minutes=10)
    network = new_network("resnet18", 2, ImageSpec())
    began = time.monotonic()
    assert new_plan(asked, network, began + 1e6).steps == 18
    with pytest.raises(InvalidInput, match=r"--max-minutes 10 leaves 0\.0 minutes, not enough"):
        new_plan(asked, network, began - 600)
    with_head = training(shop, tmp_path, changed(FEW_PIXELS, floor=True), max_minutes=10)
    assert new_plan(with_head, network, began - 600).steps == 0


def test_one_program_at_a_time_works_on_a_run(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(InvalidInput, match="another program is at work"),
        locked(tmp_path, patience_seconds=0),
    ):
        pass
    with locked(tmp_path):
        pass


def test_a_lock_that_is_about_to_be_let_go_is_waited_for(tmp_path, monkeypatch):
    """As that of a killed run, whose loader processes notice a little later."""
    refused, pause = threading.Event(), time.sleep

    def seen(seconds: float) -> None:
        refused.set()
        pause(seconds)

    monkeypatch.setattr(time, "sleep", seen)

    def take() -> None:
        with locked(tmp_path):
            pass

    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path):
            waiting = pool.submit(take)
            assert refused.wait(TIMEOUT)
        waiting.result(TIMEOUT)


class Noting(Keeper):
    """Notes what is kept."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.kept: list[int] = []

    def _keep(self, network, moment, evaluation) -> None:
        super()._keep(network, moment, evaluation)
        self.kept.append(moment.size)


def test_what_is_kept_has_to_be_better_at_the_largest_size(shop, tmp_path, capsys):
    asked = training(shop, tmp_path, FEW_PIXELS)
    network = new_network("resnet18", 2, ImageSpec())
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias[:] = torch.tensor([3.0, 0.0])  # right for half of the images
    keeper = Noting(asked, None)
    keeper.consider(network, Moment(epoch=6, step=18, size=32))
    assert capsys.readouterr().out.endswith("%  kept\n")
    keeper.consider(network, Moment(epoch=6, step=18, size=64))
    assert capsys.readouterr().out.endswith("%  kept (first at 64 px)\n")
    with torch.no_grad():
        network.head.bias[:] = torch.tensor([9.0, 0.0])  # as right, and surer where it is wrong
    keeper.consider(network, Moment(epoch=6, step=18, size=64))
    assert keeper.kept == [32, 64]
    gone_on = Noting(asked, None, keeper.best, keeper.standing)
    gone_on.consider(network, Moment(epoch=6, step=18, size=64))
    assert gone_on.kept == []


def test_statistics_are_measured_anew_only_where_they_are_not_frozen(shop):
    network = new_network("resnet18", 2, ImageSpec())
    network.freeze(2, batchnorm=False)
    views = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert reestimate_batchnorm(network, views)
    after = network.state_dict()
    assert torch.equal(after["backbone.bn1.running_mean"], before["backbone.bn1.running_mean"])
    name = "backbone.layer3.0.bn1.running_mean"
    assert not torch.equal(after[name], before[name])
    network.freeze(2, batchnorm=True)
    assert not reestimate_batchnorm(network, views)
    assert torch.equal(network.state_dict()[name], after[name])


def test_a_share_without_images_has_answers_without_rows():
    network = new_network("resnet18", 2, ImageSpec())
    none = np.empty((0, 224, 224, 3), np.uint8)
    assert predict(network, resized(none, 64)).shape == (0, 2)
