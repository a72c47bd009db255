"""A head fitted on the frozen backbone: the floor that training must beat, or the result itself."""

import copy
import time

import torch
from msgspec.structs import replace

from trainer.checkpoint import Checkpoint, save_checkpoint
from trainer.course import Moment
from trainer.features import features_of
from trainer.keeper import record_of
from trainer.log import say
from trainer.model import PixelNetwork
from trainer.probe import Floor, Probe, fit_probe, head_weights
from trainer.recipes import Recipe
from trainer.training import Training


def fit_head(network: PixelNetwork, training: Training) -> tuple[Probe | None, Training]:
    """A head on the frozen backbone's features, what it reaches told, and the run that knows it.

    The first of several processes fits it. The network takes it where the recipe starts from it.
    Raises InvalidInput or DamagedFile: see `features_of`.
    """
    recipe, processes = training.recipe, training.hardware.processes
    if not recipe.floor:
        return None, training
    network.to(training.hardware.device).to(memory_format=torch.channels_last)
    found: list[tuple[Probe, Floor]] = []

    def fit() -> bytes:
        found.append(measure_floor(network, training))
        return b"done"

    processes.from_first(fit)
    if not found:
        if recipe.fitted_head:
            processes.same_as_first(network.head.parameters())
        return None, training
    ((probe, floor),) = found
    describe_floor(floor, recipe)
    if recipe.fitted_head:
        put_head(network, probe)
        processes.same_as_first(network.head.parameters())
    return probe, replace(training, floor=floor)


def measure_floor(network: PixelNetwork, training: Training) -> tuple[Probe, Floor]:
    split, spec = training.split, training.spec
    started = time.monotonic()
    known = features_of(network, split, split.train + split.val, spec, training.options.cache)
    train, val = known.parted(len(split.train))
    weight = head_weights(training.recipe, split.train_counts)
    device = training.hardware.device
    probe = fit_probe(train, val, split.labels, weight, spec.crop, device)
    return probe, probe.floor(time.monotonic() - started)


def put_head(network: PixelNetwork, probe: Probe) -> None:
    network.head.load_state_dict({"weight": probe.weight, "bias": probe.bias})


def describe_floor(floor: Floor, recipe: Recipe) -> None:
    low, high = floor.interval
    aim = "; the floor that training must beat" if recipe.epochs else ""
    say(
        f"a head fitted on the frozen backbone's features: validation accuracy "
        f"{floor.accuracy:.1%} on {floor.images} images (95 % interval {low:.1%} to {high:.1%}), "
        f"macro-F1 {floor.macro_f1:.3f}, in {floor.seconds:.0f} s{aim}"
    )


def keep_head(network: PixelNetwork, training: Training, probe: Probe) -> Checkpoint:
    """Writes the fitted head on the backbone as it is: the checkpoint that training must beat.

    The network keeps the head that it has.
    """
    own = copy.deepcopy(network.head.state_dict())
    put_head(network, probe)
    before = Moment(epoch=0, step=0, size=training.spec.crop)
    record = record_of(training, before, probe.validation)
    kept = save_checkpoint(training.options.run, record, network, training.split)
    network.head.load_state_dict(own)
    return kept


def against_floor(kept: Checkpoint) -> str | None:
    """Whether training was worth it, if there was a floor to beat."""
    if kept.floor is None or not kept.recipe.epochs:
        return None
    if kept.epoch == 0:
        return (
            "training did not get above the floor: kept is the head fitted on the frozen backbone, "
            f"validation accuracy {kept.floor.accuracy:.1%}, macro-F1 {kept.floor.macro_f1:.3f}"
        )
    return (
        f"training got above the floor: validation accuracy {kept.validation.accuracy:.1%} against "
        f"{kept.floor.accuracy:.1%}, macro-F1 {kept.validation.macro_f1:.3f} against "
        f"{kept.floor.macro_f1:.3f}"
    )
