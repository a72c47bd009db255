"""The training loop against the bare step of its network, in turns, epoch by epoch; and memory.

The loop reads images from the pixel cache, augments them in its loader processes, learns (clipping,
AdamW, moving average) and counts. The bare step is forward and backward of the same network on a
batch that is ready. The loader alone is measured too, with the cache and without.

    python -m benchmarks.training --arch resnet50 --size 224
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from packshot.cores import available_cores
from packshot.image import ImageSpec
from trainer.architectures import ARCHITECTURES
from trainer.batches import TrainingViews, training_batches
from trainer.cache import PixelCache, open_cache
from trainer.command_line import parse_options as parse_trainer_options
from trainer.course import Course, Moment
from trainer.data import load_split
from trainer.evaluate import Evaluation
from trainer.interrupt import Interrupt
from trainer.keeper import Keeper
from trainer.loop import train
from trainer.model import PixelNetwork, Weights, new_network
from trainer.recipes import MEDIUM, changed
from trainer.sample import draw_catalogue
from trainer.training import Training

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        training = prepare(Path(folder), options)
        network = new_network(options.arch, len(training.split.labels), training.spec)
        schedule = training.schedule()
        per_epoch = schedule.steps // training.recipe.epochs
        keeper = InTurns(training, bare_steps(network, training, options.size, per_epoch))
        train(
            training, schedule, training.learner(network, schedule.steps), keeper, Course(),
            Interrupt(),
        )  # fmt: skip
        keeper.report()
        for name, cache in (("cached pixels", training.cache), ("files", None)):
            rate = loader_rate(training, cache, options.size)
            print(f"loader alone, from {name}: {rate:.0f} images/s")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    add = parser.add_argument
    add("--arch", default="resnet50", choices=ARCHITECTURES)
    add("--size", type=int, default=224, help="of the images, in pixels")
    add("--batch-size", type=int, default=16)
    add("--images", type=int, default=16, help="to train on, of each of eight classes")
    add("--epochs", type=int, default=8, help="turns")
    add("--workers", type=int, default=max(1, available_cores() - 1))
    return parser.parse_args()


def prepare(folder: Path, options: argparse.Namespace) -> Training:
    """A drawn catalogue with its pixels cached, and the recipe for medium data at one size."""
    draw_catalogue(folder / "data", counts={"train": options.images, "val": 2, "test": 2})
    asked = parse_trainer_options(
        [
            "--data", str(folder / "data"), "--run", str(folder / "run"), "--arch", options.arch,
            "--workers", str(options.workers), "--patience", "0",
        ]
    )  # fmt: skip
    split = load_split(asked, ImageSpec())
    return Training(
        split=split,
        recipe=changed(
            MEDIUM,
            epochs=options.epochs,
            batch_size=options.batch_size,
            stages=((options.size, 1.0),),
            patience=0,
        ),
        spec=ImageSpec(),
        options=asked,
        weights=Weights(pretrained=False, source="random"),
        cache=open_cache(folder / "cache", split, ImageSpec(), print),
    )


def bare_steps(
    network: PixelNetwork, training: Training, size: int, steps: int
) -> Callable[[], float]:
    """So many steps on a batch that is ready; the function returns images a second."""
    images = training.recipe.step_images
    batch = torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8)
    labels = torch.randint(0, len(training.split.labels), (images,))

    def run() -> float:
        network.train()
        started = time.perf_counter()
        for _ in range(steps):
            nn.functional.cross_entropy(network(batch)[0], labels).backward()
            network.zero_grad()
        return images * steps / (time.perf_counter() - started)

    return run


class InTurns(Keeper):
    """Keeps nothing; after each epoch of the loop the bare steps take their turn."""

    def __init__(self, training: Training, bare: Callable[[], float]) -> None:
        super().__init__(training, None)
        self._bare = bare
        self.rates: list[tuple[float, float]] = []
        self.megabytes: list[float] = []

    def consider(self, network: PixelNetwork, moment: Moment) -> Evaluation:
        evaluation = super().consider(network, moment)
        loop, bare = moment.images_per_second or 0.0, self._bare()
        self.rates.append((loop, bare))
        self.megabytes.append(resident_megabytes())
        print(
            f"epoch {moment.epoch}: loop {loop:.2f} images/s, bare step {bare:.2f}: "
            f"{loop / bare:.2f}; {self.megabytes[-1]:.0f} MB"
        )
        return evaluation

    def report(self) -> None:
        """Without the first epoch, in which memory is allocated and processes are started."""
        shares = [loop / bare for loop, bare in self.rates[1:]]
        growth = self.megabytes[-1] - self.megabytes[1]
        print(
            f"median of {len(shares)} epochs: {statistics.median(shares):.2f} of the bare step; "
            f"memory {growth:+.0f} MB from the second epoch to the last"
        )


def loader_rate(training: Training, cache: PixelCache | None, size: int) -> float:
    """Images a second that the loader processes make while nothing else runs."""
    schedule = training.schedule()
    views = TrainingViews(
        training.split, training.recipe, training.spec, training.options.seed, cache
    )
    steps = [step for step in schedule.after(0) if step.epoch == 1]
    batches: Iterable[object] = training_batches(views, steps, training.options.workers)
    started = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * training.recipe.step_images / (time.perf_counter() - started)


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * PAGE_BYTES / 1e6


if __name__ == "__main__":
    main()
