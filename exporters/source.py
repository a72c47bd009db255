"""What is exported: the trained network, with the data that its exports are checked on."""

from itertools import islice, zip_longest
from pathlib import Path

import msgspec
import numpy as np

from exporters.calibration import FEWEST_IMAGES
from exporters.gates import HeldOut
from packshot.errors import InvalidInput
from packshot.golden import GoldenSamples, make_golden
from packshot.image import Pixels
from trainer.batches import served_views
from trainer.checkpoint import Checkpoint, load_checkpoint, load_split_of, read_record
from trainer.data import Example, Split
from trainer.evaluate import predict
from trainer.finish import finish_killed
from trainer.lock import locked
from trainer.model import PixelNetwork

GOLDEN_IMAGES = 16


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run."""

    checkpoint: Checkpoint
    network: PixelNetwork
    split: Split
    held_out: HeldOut


def load_source(run: Path, data: Path | None) -> Source:
    """`data`: where the images are now, if not where they were. Raises NotFound or DamagedFile."""
    if not read_record(run).finished:
        print(f"the run in {run} was cut short: measuring its checkpoint first", flush=True)
        with locked(run):  # or it is still being trained
            finish_killed(run, data)
    checkpoint, network = load_checkpoint(run)
    if checkpoint.interrupted_at is not None:
        print(
            f"WARNING: training was interrupted at epoch {checkpoint.interrupted_at} of "
            f"{checkpoint.recipe.epochs}, and what is exported is the best until then: to go on, "
            "train with --resume (make train TRAIN=--resume)",
            flush=True,
        )
    split = load_split_of(run, checkpoint, data)
    print(f"computing PyTorch's answers on {len(split.held_out)} held-out images", flush=True)
    images = served_views(split, split.held_out, checkpoint.image)
    held_out = HeldOut(
        images=images,
        truth=np.array([example.label for example in split.held_out], np.int64),
        logits=predict(network, images),
    )
    return Source(checkpoint=checkpoint, network=network, split=split, held_out=held_out)


def golden_samples(source: Source) -> GoldenSamples:
    """A few held-out images with PyTorch's answers."""
    return make_golden(
        [source.split.read(example) for example in golden_examples(source.split)],
        source.checkpoint.image,
        lambda images: predict(source.network, images),
    )


def golden_examples(split: Split) -> list[Example]:
    """The smallest file of every class, then the second smallest of every class, and so on."""
    by_class: dict[int, list[Example]] = {}
    for example in sorted(
        split.held_out, key=lambda one: Path(split.folder, one.file).stat().st_size
    ):
        by_class.setdefault(example.label, []).append(example)
    turns = zip_longest(*(by_class[label] for label in sorted(by_class)))
    in_turn = (example for turn in turns for example in turn if example is not None)
    return list(islice(in_turn, GOLDEN_IMAGES))


def calibration_images(source: Source, count: int, seed: int) -> Pixels:
    """Random training images as the server would see them, uint8 [N, crop, crop, 3].

    Raises InvalidInput if there are too few to calibrate with.
    """
    train = source.split.train
    if len(train) < FEWEST_IMAGES:
        raise InvalidInput(
            f"{len(train)} training images are too few to calibrate INT8 with; it takes at least "
            f"{FEWEST_IMAGES}"
        )
    if len(train) < count:
        print(f"calibrating with all {len(train)} training images: there are no {count}")
    chosen = np.random.default_rng(seed).choice(len(train), min(count, len(train)), replace=False)
    return served_views(source.split, [train[i] for i in chosen], source.checkpoint.image)
