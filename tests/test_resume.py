"""Runs that are killed, gone on with, cut short, or shared by several processes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from processes import ROOT, environment, program
from safetensors.torch import load_file
from test_data import fill, options
from test_schedule import Clock

from packshot.errors import DamagedFile, InvalidInput
from packshot.image import ImageSpec
from trainer.checkpoint import read_record
from trainer.course import Course, Moment, TimeLimit
from trainer.data import load_split
from trainer.interrupt import Interrupt
from trainer.keeper import Keeper
from trainer.log import Log
from trainer.loop import train
from trainer.model import Weights, new_network
from trainer.recipes import RECIPES, changed
from trainer.review import reviewed
from trainer.state import STATE, check_identity, read_state
from trainer.training import Training

# Everything that has a state: average, mixing, views that are drawn, BatchNorm's statistics.
COMMAND = (
    "--arch", "resnet18", "--weights", "none", "--recipe", "small", "--batch-size", 4,
    "--epochs", 2, "--mixup", 0.3, "--cutmix", 0.3, "--learning-rate", 5e-4, "--workers", 1,
    "--yes",
)  # fmt: skip

# The trainer, killed as it begins its fifth step: in the middle of the second epoch.
KILLED = """
import os, signal, sys
from trainer.__main__ import main
from trainer.learner import Learner

class Killed(Learner):
    def step(self, *arguments):
        if self.scalars().taken == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(*arguments)

import trainer.training
trainer.training.Learner = Killed
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """12 images to train on: three steps an epoch."""
    folder = tmp_path_factory.mktemp("shop") / "shop"
    for part, count in (("train", 6), ("val", 2), ("test", 2)):
        for seed, label in enumerate(("mug", "shoe")):
            fill(folder / part / label, count, seed=10 * seed + len(part))
    return folder


def evaluations(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    found = [line for line in lines if line["event"] == "evaluation"]
    for line in found:
        del line["seconds"], line["moment"]["images_per_second"]
    return found


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / read_record(run).weights_file)


@pytest.fixture(scope="module")
def uninterrupted(shop) -> Path:
    run = shop.parent / "uninterrupted"
    done = program("trainer", "--data", shop, "--run", run, *COMMAND)
    assert done.returncode == 0, done.stderr
    assert not (run / STATE).exists()
    return run


def test_a_run_killed_in_mid_epoch_ends_as_if_it_had_not_been(shop, uninterrupted, tmp_path):
    run = tmp_path / "run"
    arguments = [*map(str, ("--data", shop, "--run", run, *COMMAND)), "--save-minutes", "0"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=ROOT, env=environment(), check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert read_state(run).progress.step == 4
    assert [one["moment"]["step"] for one in evaluations(run)] == [3]

    done = program("trainer", *arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert "going on after step 4 of 6" in done.stdout
    assert evaluations(run) == evaluations(uninterrupted)
    assert read_record(run).weights_sha256 == read_record(uninterrupted).weights_sha256
    assert not (run / STATE).exists()

    again = program("trainer", *arguments, "--resume")
    assert again.returncode == 0, again.stderr
    assert "has finished: there is nothing left to do" in again.stdout
    other = program("trainer", *arguments, "--resume", "--seed", 7)
    assert other.returncode == 1
    assert "--resume: seed is 7 now and was 0 when the run" in other.stderr


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
    RECIPES["small"], epochs=6, batch_size=4, stages=((32, 1.0),), frozen_batchnorm=False
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


def test_limits_of_time_shorten_the_plan(shop, tmp_path):
    run = tmp_path / "run"
    done = program(
        "trainer", "--data", shop, "--run", run, *COMMAND, "--max-minutes", 1000, "--eval-steps", 2
    )
    assert done.returncode == 0, done.stderr
    assert "fit;" not in done.stdout  # a thousand minutes are enough for all of them
    refused = program("trainer", "--data", shop, "--run", run, *COMMAND, "--max-minutes", 0.05)
    assert "--max-minutes is 0.05; it must be from 0.1" in refused.stderr


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine; `--`, or torchrun takes --run for an option of its own."""
    command = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1")
    trainer = ("--nproc-per-node", "2", "-m", "--", "trainer", *map(str, arguments))
    return subprocess.run(
        [sys.executable, *command, *trainer],
        cwd=ROOT, text=True, capture_output=True, timeout=600, env=environment(), check=False,
    )  # fmt: skip


def test_two_processes_train_what_one_does(shop, tmp_path):
    """With BatchNorm's statistics frozen; they are each process's own on a CPU otherwise."""
    torch.manual_seed(1)
    weights = tmp_path / "weights.pth"
    torch.save(new_network("resnet18", 1000, ImageSpec()).backbone.state_dict(), weights)
    command = (
        "--data", shop, "--arch", "resnet18", "--weights", weights, "--recipe", "tiny",
        "--batch-size", 4, "--epochs", 2, "--workers", 0, "--accumulate", 2,
        "--cache", tmp_path / "cache",
    )  # fmt: skip
    alone = program("trainer", *command, "--run", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    shared = torchrun(*command, "--run", tmp_path / "two")
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count("accuracy") == alone.stdout.count("accuracy")
    one, two = (final_weights(tmp_path / name) for name in ("one", "two"))
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=2e-5), name
    for one, two in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        assert one["moment"]["train_loss"] == pytest.approx(two["moment"]["train_loss"], abs=1e-4)
        assert one["validation"]["loss"] == pytest.approx(two["validation"]["loss"], abs=1e-4)


def test_an_error_of_the_first_process_ends_all_of_them(tmp_path):
    done = torchrun("--data", tmp_path / "nowhere", "--run", tmp_path / "run", "--weights", "none")
    assert done.returncode != 0
    assert "nowhere" in done.stderr
    assert "the first process gave up" in done.stderr


def test_a_batch_that_cannot_be_shared_out_is_refused(shop, tmp_path):
    done = torchrun(
        "--data", shop, "--run", tmp_path, "--arch", "resnet18", "--weights", "none",
        "--batch-size", 5, "--yes",
    )  # fmt: skip
    assert done.returncode != 0
    assert "--batch-size is 5, of all processes together: it must be a multiple" in done.stderr


class Worsening(Keeper):
    """Notes what is kept."""

    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)
        self.kept: list[int] = []

    def _keep(self, network, moment, evaluation) -> None:
        super()._keep(network, moment, evaluation)
        self.kept.append(moment.step)


def test_the_better_of_two_evaluations_of_a_step_is_kept(shop, tmp_path):
    """BatchNorm's statistics are measured anew after the last step: for better or worse."""
    asked = training(shop, tmp_path, FEW_PIXELS)
    network = new_network("resnet18", 2, ImageSpec())
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias[:] = torch.tensor([3.0, 0.0])  # right for half of the images
    keeper = Worsening(asked, None)
    last = Moment(epoch=6, step=18, size=32)
    keeper.consider(network, last)
    with torch.no_grad():
        network.head.bias[:] = torch.tensor([9.0, 0.0])  # as right, and surer where it is wrong
    keeper.consider(network, last)
    assert keeper.kept == [18]
    gone_on = Worsening(asked, None, keeper.best, gone_on_after=16)
    gone_on.consider(network, last)
    gone_on.consider(network, last)
    assert gone_on.kept == [18]  # its own best comes by once more, and once only
