"""Before the first step: data, weights, recipe and network, with what is worth knowing of them."""

import sys
from pathlib import Path

import msgspec
import torch

from packshot.errors import InvalidInput
from packshot.image import ImageSpec
from packshot.resizing import best_resizer, check_installed
from trainer.architectures import architecture
from trainer.budget import budget_warnings, check_from_scratch
from trainer.cache import open_cache, read_inspected, write_inspected
from trainer.checkpoint import RECORD, read_record
from trainer.data import Split, load_split
from trainer.hardware import Hardware
from trainer.log import say
from trainer.model import PixelNetwork, Weights, new_network
from trainer.recipe_page import augmentation_of
from trainer.recipes import AUTO, Options, Recipe, named_recipe, recipe_for, size_class
from trainer.review import reviewed
from trainer.state import resizer_of
from trainer.training import Training
from trainer.weights import RANDOM, Start, WeightsUnavailable, check_weights, fill, read_weights

FRAME = "=" * 78
FALLBACK_WARNING = (
    "WARNING: training from RANDOM weights instead, {recipe}.\n"
    "It will do for the drawn sample catalogue; it will NOT do for photographs.\n"
    "The checkpoint and the report say so."
)


def prepare(options: Options, hardware: Hardware) -> tuple[Training, PixelNetwork]:
    """Data, weights, recipe and cache; the first of several processes goes ahead."""
    processes = hardware.processes
    spec = view_of(options, ImageSpec())
    check_installed(spec.resizer)
    content = processes.from_first(lambda: msgspec.json.encode(prepare_data(options, spec)))
    split = msgspec.json.decode(content, type=Split)
    network, recipe, start = prepare_network(options, hardware, split)
    split = weighed_up(options, split, recipe, start)
    cache, folder = None, options.cache
    if folder is not None and recipe.epochs:
        cache = processes.in_turn(lambda: open_cache(folder, split, start.spec, say))
    training = Training(
        split=split,
        recipe=recipe,
        spec=start.spec,
        options=options,
        weights=start.weights,
        hardware=hardware,
        cache=cache,
    )
    return training, network


def prepare_data(options: Options, spec: ImageSpec) -> Split:
    """The split, with what is worth knowing about it told before anything is trained on it."""
    known = read_inspected(options.cache, spec) if options.cache else {}
    split = reviewed(load_split(options, spec, known), spec)
    if options.cache:
        write_inspected(options.cache, spec, known)
    describe(split, options.data)
    for text in split.warnings:
        say(f"WARNING: {text}")
    return split


def view_of(options: Options, spec: ImageSpec) -> ImageSpec:
    """`spec` with `--fit`, `--draft-short-side` and `--resizer`.

    Where one is not given it is that of the run that `--weights` names, or the default; the
    resizer's is what is installed, which may be another now than when a run began that goes on.
    """
    record, default = Path(options.weights) / RECORD, ImageSpec(resizer=best_resizer())
    earlier = read_record(record.parent).image if record.is_file() else default
    begun_with = resizer_of(options.run) if options.resume else None
    return msgspec.structs.replace(
        spec,
        fit=options.fit or earlier.fit,
        draft_short_side=options.draft_short_side or earlier.draft_short_side,
        resizer=options.resizer or begun_with or earlier.resizer,
    )


def describe(split: Split, folder: Path) -> None:
    counts = f"{len(split.train)} train, {len(split.val)} validation, {len(split.test)} test images"
    print(f"{folder}: {len(split.labels)} classes, {counts}, fingerprint {split.fingerprint[:12]}")


def check(options: Options) -> None:
    """What can be known before the data is scanned. Raises InvalidInput or NotFound."""
    architecture(options.arch)
    check_weights(options.arch, options.weights)
    check_apart(options.data, options.run)
    with torch.device("meta"):
        new_network(options.arch, 2, ImageSpec())  # its package may be missing


def check_apart(data: Path, run: Path) -> None:
    """Raises InvalidInput where one of the folders holds the other."""
    photographs, results = data.resolve(), run.resolve()
    if results.is_relative_to(photographs):
        raise InvalidInput(
            f"--run {run} is inside --data {data}, where each folder is a class: name one elsewhere"
        )
    if photographs.is_relative_to(results):
        raise InvalidInput(
            f"--data {data} is inside --run {run}, which is for what runs leave: name a folder of "
            "its own for the run"
        )


def prepare_network(
    options: Options, hardware: Hardware, split: Split
) -> tuple[PixelNetwork, Recipe, Start]:
    """The network, how it will be trained, and what it starts from. Raises WeightsUnavailable."""
    kind = architecture(options.arch)
    images = len(split.examples)
    start = hardware.processes.in_turn(lambda: starting_point(options, images, gpu=hardware.gpu))
    start = start._replace(spec=view_of(options, start.spec))
    recipe = recipe_for(
        options, kind, images=images, pretrained=start.weights.pretrained, gpu=hardware.gpu
    )
    check_shares(recipe, hardware)
    describe_recipe(options, recipe, start, images, gpu=hardware.gpu)
    network = new_network(options.arch, len(split.labels), start.spec)
    fill(network, kind, start)
    return network, recipe, start


def check_shares(recipe: Recipe, hardware: Hardware) -> None:
    """Raises InvalidInput if a batch cannot be shared out evenly."""
    count = hardware.processes.count
    if recipe.batch_size % count:
        raise InvalidInput(
            f"--batch-size is {recipe.batch_size}, of all processes together: it must be a multiple"
            f" of their number, {count}"
        )


def weighed_up(options: Options, split: Split, recipe: Recipe, start: Start) -> Split:
    """The split with warnings of what such a run can reach.

    Raises InvalidInput for one from random weights that can reach nothing, unless `--yes`.
    """
    if not recipe.epochs:
        return split
    images, stages = len(split.train), len(architecture(options.arch).stages)
    found: list[str] = []
    if start.weights.pretrained:
        learns = recipe.frozen_stages < stages
        found += budget_warnings(recipe, images, backbone_learns=learns)
    elif not options.yes:
        check_from_scratch(recipe, images)
    for text in found:
        say(f"WARNING: {text}")
    return msgspec.structs.replace(split, warnings=(*split.warnings, *found))


def starting_point(options: Options, images: int, *, gpu: bool) -> Start:
    preferred = named_recipe(options, images, gpu=gpu).imagenet
    try:
        return read_weights(options.arch, options.weights, preferred, options.weights_sha256)
    except WeightsUnavailable as error:
        if options.without_weights == "stop":
            raise
        recipe = "with a recipe made for that"
        if options.recipe != AUTO:
            recipe = f"and recipe {options.recipe} is not made for that"
        warning = FALLBACK_WARNING.format(recipe=recipe)
        print(f"{FRAME}\n{error}\n\n{warning}\n{FRAME}", file=sys.stderr, flush=True)
        source = "random (the ImageNet weights could not be had)"
        return RANDOM._replace(weights=Weights(pretrained=False, source=source))


def describe_recipe(
    options: Options, recipe: Recipe, start: Start, images: int, *, gpu: bool
) -> None:
    if not recipe.epochs:
        print(
            f"recipe {recipe.name}: features computed once, a head fitted on them, no training; "
            f"weights: {start.weights.source}"
        )
        sys.stdout.flush()
        return
    print(
        f"recipe {recipe.name}: epochs {recipe.epochs}, batch size {recipe.batch_size}, learning "
        f"rate {recipe.learning_rate:g} (head x{recipe.head_learning_rate_factor:g}), "
        f"augmentation {augmentation_of(recipe)}; weights: {start.weights.source}"
    )
    if recipe.frozen_batchnorm:
        print("BatchNorm's statistics stay those of the weights: batches or data are too small")
    if options.recipe == AUTO and start.weights.pretrained and not gpu:
        print(
            f"WARNING: without a GPU, training the whole network is slow: without "
            f"{', '.join(options.about_loop)} a head is fitted instead, in seconds to minutes"
        )
    size = size_class(images)
    if options.recipe == AUTO and start.weights.pretrained and size.hint:
        print(f"hint, for {images} images: {size.hint}")
    sys.stdout.flush()
