"""The head fitted on frozen features: the right one, of features computed once, and the floor."""

import errno
import itertools
import json
import resource
import shlex
import shutil
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from processes import ROOT
from safetensors.torch import load_file, save_file
from test_data import SPEC, options, picture
from test_weights import SMALL, Small
from tiny import encoded

import trainer.run
from packshot.errors import DamagedFile, InvalidInput
from packshot.image import ImageSpec
from packshot.prediction import probabilities
from trainer.__main__ import main
from trainer.architectures import ARCHITECTURES
from trainer.batches import served_views
from trainer.checkpoint import load_checkpoint, load_split_of, read_record
from trainer.command_line import command_for, parse_options
from trainer.data import load_split
from trainer.evaluate import Views, predict, score
from trainer.features import Features, features_of, key
from trainer.interrupt import Interrupt
from trainer.model import PixelNetwork
from trainer.objective import class_weights
from trainer.probe import STRENGTHS, fit_probe, head_weights, standardisation
from trainer.recipes import MEDIUM, changed

CPU = torch.device("cpu")


def known(seed: int, images: int, classes: int = 3, width: int = 20, noise: float = 1.0):
    """Features around a centre for each class, at very different scales."""
    centres = np.random.default_rng(7).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    truth = np.arange(images) % classes
    rows = centres[truth] + noise * rng.normal(size=(images, width))
    return Features(rows=(5 + rows * np.logspace(-3, 1, width)).astype(np.float32), truth=truth)


def fitted(train, val, weight=None, classes=3):
    weight = torch.ones(classes) if weight is None else weight
    return fit_probe(train, val, tuple(map(str, range(classes))), weight, 224, CPU)


def answers(probe, rows) -> np.ndarray:
    return rows @ probe.weight.numpy().T + probe.bias.numpy()


@pytest.mark.parametrize("strength", [0.1, 0.001])
def test_the_head_is_where_the_gradient_of_the_regression_vanishes(monkeypatch, strength):
    monkeypatch.setattr("trainer.probe.STRENGTHS", (1.0, strength))  # the last is the better one
    monkeypatch.setattr("trainer.probe.ROWS", 40)
    train, weight = known(0, 90), torch.tensor([0.5, 1.0, 1.5])
    probe = fitted(train, known(1, 30), weight)
    shift, scale = (part.double().numpy() for part in standardisation(torch.tensor(train.rows)))
    images = (train.rows - shift) * scale
    assert (images**2).sum(axis=1).mean() == pytest.approx(1, rel=1e-3)
    error = probabilities(answers(probe, train.rows)) - np.eye(3)[train.truth]
    error *= weight.numpy()[train.truth][:, None] / len(images)
    assert probe.strength == strength
    penalty = strength * probe.weight.numpy() / scale
    assert np.abs(error.T @ images + penalty).max() < 2e-5
    assert np.abs(error.sum(axis=0)).max() < 2e-5
    assert np.abs(penalty).max() > 1e-3


def test_classes_that_can_be_told_apart_are_and_the_same_again():
    train, val = known(0, 60, noise=0.1), known(1, 30, noise=0.1)
    probe = fitted(train, val)
    assert probe.validation.accuracy == 1
    again = fitted(train, val)
    assert torch.equal(probe.weight, again.weight)
    assert torch.equal(probe.bias, again.bias)


@pytest.mark.parametrize("strengths", [(100.0, 0.01), (0.01, 100.0), (100.0, 0.01, 1000.0)])
def test_the_strength_is_the_best_on_validation(monkeypatch, strengths):
    monkeypatch.setattr("trainer.probe.STRENGTHS", strengths)
    train, val = known(0, 90, noise=0.1), known(1, 30, noise=0.1)
    more = np.flatnonzero(train.truth != 2)[:40]  # weights held near zero answer by the shares
    train = Features(rows=train.rows[more], truth=train.truth[more])
    probe = fitted(train, Features(rows=val.rows[val.truth < 2], truth=val.truth[val.truth < 2]))
    assert probe.strength == 0.01


@pytest.mark.parametrize(("weighting", "shares"), [("none", [0.75, 0.25]), ("inverse", [0.5, 0.5])])
def test_features_that_are_all_equal_leave_the_shares_of_the_classes(weighting, shares):
    truth = np.array([0, 0, 0, 1])
    rows = np.full((4, 6), 0.1, np.float32)
    weight = class_weights(weighting, [3, 1])
    probe = fitted(Features(rows=rows, truth=truth), known(1, 3, 2, 6), weight, classes=2)
    assert probe.weight.abs().max() == 0
    assert probabilities(answers(probe, rows))[0] == pytest.approx(shares, abs=1e-4)


def test_a_feature_that_only_varies_by_rounding_is_left_out():
    train, val = known(0, 60), known(1, 30)
    for one in (train, val):
        one.rows[:, 4] = 0
    train.rows[0, 4] = 1e-9
    val.rows[:, 4] = 3
    probe = fitted(train, val)
    assert probe.weight[:, 4].abs().max() == 0
    assert probe.validation.accuracy > 0.5


def test_one_image_of_a_class_and_one_to_validate_on_are_enough():
    train = known(0, 31, noise=0.1)
    train = Features(rows=train.rows[9:], truth=np.where(np.arange(22) == 0, 2, np.arange(22) % 2))
    val = Features(rows=train.rows[:1].copy(), truth=train.truth[:1])
    probe = fitted(train, val, class_weights("inverse", np.bincount(train.truth).tolist()))
    assert (probe.validation.images, probe.validation.accuracy) == (1, 1.0)
    assert probe.validation.interval[0] < 0.5
    assert torch.isfinite(probe.weight).all()


def test_a_balanced_sampler_gives_each_class_the_same_say():
    counts = [30, 10]
    for changes, how in (({}, "none"), ({"class_weights": "sqrt"}, "sqrt"),
                         ({"sampler": "balanced"}, "inverse")):  # fmt: skip
        found = head_weights(changed(MEDIUM, **changes), counts)
        assert torch.equal(found, class_weights(how, counts)), how


@pytest.fixture
def shop(tmp_path):
    """Light and dark pictures, 12 of each; the first of the dark ones twice."""
    for label, shade in (("dark", 40), ("light", 215)):
        (tmp_path / "shop" / label).mkdir(parents=True)
        for number in range(12):
            tint = Image.new("RGB", (160, 120), (shade, shade, 128))
            blotched = Image.blend(picture(number, seed=shade), tint, 0.7)
            (tmp_path / "shop" / label / f"{number}.jpg").write_bytes(encoded(blotched, "JPEG"))
    shutil.copy(tmp_path / "shop" / "dark" / "0.jpg", tmp_path / "shop" / "dark" / "same.jpg")
    return tmp_path / "shop"


def split_of(shop):
    return load_split(options(shop), SPEC)


def small_network(seed=0):
    torch.manual_seed(seed)
    network = PixelNetwork(SMALL, 2, SPEC)
    network.backbone.bn1.running_mean.uniform_()
    return network


def test_features_are_the_embeddings_of_what_the_server_sees(shop, monkeypatch):
    monkeypatch.setattr("trainer.features.BATCH", 4)
    split, network = split_of(shop), small_network().train()
    network.backbone.bn1.momentum = 1.0  # statistics of a batch would show
    found = features_of(network, split, split.examples, SPEC)
    with torch.inference_mode():
        views = torch.from_numpy(served_views(split, split.examples, SPEC))
        expected = network.eval()(views)[1].numpy()
    assert found.rows == pytest.approx(expected, abs=1e-5)
    assert found.truth.tolist() == [example.label for example in split.examples]
    first, rest = found.parted(5)
    assert (len(first.rows), len(rest.truth)) == (5, len(split.examples) - 5)
    assert np.shares_memory(first.rows, found.rows)


def test_what_was_computed_once_is_not_computed_again(shop, tmp_path):
    split, network, cache = split_of(shop), small_network(), tmp_path / "cache"
    some, others = split.examples[:9], split.examples[9:]
    first = features_of(network, split, some, SPEC, cache)
    for example in some:
        Path(split.folder, example.file).unlink()
    again = features_of(network, split, split.examples[::-1], SPEC, cache)  # the others are read
    assert np.array_equal(again.rows[::-1][:9], first.rows)
    for example in others:
        Path(split.folder, example.file).unlink(missing_ok=True)
    every = features_of(network, split, split.examples, SPEC, cache)
    assert np.array_equal(every.rows, again.rows[::-1])
    for changed_network, spec in ((small_network(1), SPEC), (network, ImageSpec(crop=223))):
        with pytest.raises(DamagedFile, match="cannot be read any more"):
            features_of(changed_network, split, split.examples, spec, cache)


def test_every_weight_is_in_the_key_and_the_head_is_not():
    network = small_network()
    before = key(network, SPEC)
    network.head.weight.data += 1
    assert key(network, SPEC) == before
    network.backbone.bn1.running_var[0] += 1e-6
    assert key(network, SPEC) != before


def test_a_pass_that_was_interrupted_is_taken_up_where_it_was(shop, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.features.BATCH", 4)
    monkeypatch.setattr("trainer.features.PER_FILE", 8)
    split, network, decoded = split_of(shop), small_network(), []

    def views(split, examples, spec):
        decoded.append(len(examples))
        return served_views(split, examples, spec)

    passes = itertools.count(1)

    def interrupted(*_):
        if next(passes) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("trainer.features.served_views", views)
    hook = network.backbone.register_forward_pre_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        features_of(network, split, split.examples, SPEC, tmp_path / "cache")
    hook.remove()
    decoded.clear()
    features_of(network, split, split.examples, SPEC, tmp_path / "cache")
    assert decoded == [4, 4, 4, 4]  # of 24 different images the first 8 are kept


def test_damage_to_kept_features_is_told(shop, tmp_path):
    split, network = split_of(shop), small_network()
    features_of(network, split, split.examples, SPEC, tmp_path)
    (file,) = tmp_path.glob("features-*/*.safetensors")
    content = file.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(DamagedFile, match=rf"{file.name} is not what was written: remove it"):
            features_of(network, split, split.examples, SPEC, tmp_path)


def test_a_disk_that_is_full_is_named_with_a_remedy(shop, tmp_path):
    split, network = split_of(shop), small_network()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # stands in for a full disk
    try:
        with pytest.raises(InvalidInput, match="train without one") as caught:
            features_of(network, split, split.examples, SPEC, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []


def test_weights_whose_features_are_not_finite_are_refused(shop, tmp_path):
    split, network = split_of(shop), small_network()
    network.backbone.conv1.weight.data[3, 0, 0, 0] = float("nan")
    with pytest.raises(InvalidInput, match=r"features of dark/.+\.jpg are not finite: --weights"):
        features_of(network, split, split.examples, SPEC, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def asked(shop, tmp_path, monkeypatch):
    """What asks for a run on the shop, from weights of a network that takes no time."""
    monkeypatch.setitem(ARCHITECTURES, "small", SMALL)
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    save_file(Small().state_dict(), tmp_path / "mine.safetensors")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield [
        "--data", shop, "--run", tmp_path / "run", "--arch", "small", "--workers", 0,
        "--weights", tmp_path / "mine.safetensors",
    ]  # fmt: skip
    for number, handler in handlers.items():
        signal.signal(number, handler)


def trained(asked, *more) -> int:
    return main([str(word) for word in (*asked, *more)])


def test_a_head_alone_is_finished_and_reported_like_any_run(asked, tmp_path, capsys):
    run = tmp_path / "run"
    assert trained(asked, "--recipe", "head-only", "--cache", tmp_path / "cache") == 0
    output = capsys.readouterr().out
    record, network = load_checkpoint(run)
    assert (record.recipe.name, record.epoch, record.finished) == ("head-only", 0, True)
    assert record.validation.accuracy == record.floor.accuracy == record.test.accuracy == 1
    assert record.validation.loss == pytest.approx(record.floor.loss, abs=1e-4)
    assert record.floor.strength in STRENGTHS
    given = load_file(tmp_path / "mine.safetensors")
    assert torch.equal(network.backbone.conv1.weight, given["conv1.weight"])
    assert "recipe head-only: features computed once, a head fitted on them" in output
    assert f"{record.floor.images} images (95 % interval" in output
    assert "training got" not in output
    assert "floor that training must beat" not in output
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    events = [json.loads(line)["event"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert events == ["start", "data", "floor", "end"]
    assert [path.name[:8] for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [
        "features"  # no training images, which are kept for training only
    ]
    command = shlex.split(output.splitlines()[-1])
    assert command[:3] == ["python", "-m", "trainer"]
    further = parse_options(command[3:])
    assert further.recipe == "last-stage"
    first = parse_options([str(word) for word in (*asked, "--cache", tmp_path / "cache")])
    assert msgspec.structs.replace(further, recipe="auto") == first


def test_training_starts_from_the_fitted_head_or_a_random_one(asked, tmp_path, monkeypatch):
    heads = []

    def looked_at(training, schedule, learner, keeper, course, interrupt):
        head = learner.network.head.weight.clone()
        heads.append((head, load_checkpoint(training.options.run)[1]))
        assert torch.equal(learner.candidate.head.weight, head)

    monkeypatch.setattr("trainer.run.train", looked_at)
    for name in ("last-stage", "medium"):
        assert trained(asked, "--recipe", name) == 0
    (fitted_head, kept), (random_head, other) = heads
    assert torch.equal(fitted_head, kept.head.weight)
    assert not torch.equal(random_head, other.head.weight)
    assert torch.equal(other.head.weight, kept.head.weight)


def test_training_that_stays_below_the_floor_leaves_the_head_and_says_so(asked, tmp_path, capsys):
    assert trained(asked, "--recipe", "manual", "--learning-rate", 1e-5) == 0
    output = capsys.readouterr().out
    record, network = load_checkpoint(tmp_path / "run")
    assert (record.epoch, record.recipe.epochs) == (0, 1)
    assert "; the floor that training must beat" in output
    assert "epoch   1" in output
    assert "training did not get above the floor: kept is the head fitted" in output
    split = load_split_of(tmp_path / "run", record)
    views = Views.of(split, split.val, SPEC)
    again = score(predict(network, views.images), views.truth, split.labels, 224)
    assert again.accuracy == record.floor.accuracy
    report = (tmp_path / "run" / "report.html").read_text()
    assert "epoch 0 of 1" in report


def test_training_that_gets_above_the_floor_says_by_how_much(asked, tmp_path, capsys):
    assert trained(asked, "--recipe", "last-stage") == 0
    capsys.readouterr()
    record = read_record(tmp_path / "run")
    better = msgspec.structs.replace(
        record, epoch=2, floor=msgspec.structs.replace(record.floor, accuracy=0.5, macro_f1=0.25)
    )
    trainer.run.conclude(better, tmp_path / "run")
    sentence = "training got above the floor: validation accuracy 100.0% against 50.0%, macro-F1 1"
    assert sentence in capsys.readouterr().out


def test_without_a_floor_nothing_is_said_of_one(asked, tmp_path, capsys):
    assert trained(asked, "--recipe", "large", "--epochs", 1) == 0
    assert read_record(tmp_path / "run").floor is None
    assert "the floor" not in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about what happens without a GPU")
def test_who_asks_for_epochs_on_a_cpu_gets_them_with_a_warning(asked, tmp_path, capsys):
    assert trained(asked, "--epochs", 1) == 0
    output = capsys.readouterr().out
    assert "WARNING: without a GPU, training the whole network is slow: without --epochs" in output
    assert read_record(tmp_path / "run").recipe.name == "tiny"
    assert trained(asked) == 0
    assert "is slow" not in capsys.readouterr().out
    assert read_record(tmp_path / "run").recipe.name == "head-only"


def test_an_interrupt_while_features_are_computed_leaves_the_earlier_run(
    asked, tmp_path, capsys, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    assert trained(asked, "--recipe", "head-only") == 0
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    monkeypatch.setattr(Small, "forward", interrupted)
    assert trained(asked, "--recipe", "head-only") == 130
    assert "interrupted before training: nothing was written" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


class Interrupted(Interrupt):
    """By a signal that came as soon as it was listened to."""

    def __init__(self) -> None:
        super().__init__()
        self.signal = signal.SIGTERM


def test_an_interrupt_before_the_first_epoch_leaves_the_fitted_head(
    asked, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("trainer.run.Interrupt", Interrupted)
    assert trained(asked, "--recipe", "medium") == 128 + signal.SIGTERM
    assert "the checkpoint is the fitted head, without training" in capsys.readouterr().err
    record = read_record(tmp_path / "run")
    assert (record.epoch, record.finished, record.test.accuracy) == (0, True, 1)


def test_the_command_for_options_is_read_back_as_them(tmp_path):
    given = ["--data", str(tmp_path / "my shop"), "--class-weights", "sqrt", "--no-flip", "--yes"]
    wanted = parse_options(given)
    command = command_for(wanted)
    assert f"'{tmp_path}/my shop'" in command
    assert parse_options(shlex.split(command)[3:]) == wanted
    assert "--workers" not in command
