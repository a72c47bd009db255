"""A version of a model, verified and open: hashes, pixels, engine, golden samples.

What the server does before it serves, and what a batch job does before its first image.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from packshot.bundle import Bundle, open_bundle
from packshot.errors import EngineRefused
from packshot.golden import check_pixels
from serving.engines.open import Opened, open_engine
from serving.freed_memory import give_back
from serving.supply import Supply


class EngineChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which engines to try, in order, and how they run.

    `compiled_folder` keeps what was compiled for the next start.
    """

    order: tuple[str, ...]
    required: bool = False  # then nothing may take the place of the only one in the order
    lanes: int
    max_batch: int
    compiled_folder: Path | None = None


def open_version(supply: Supply, folder: Path, choice: EngineChoice) -> tuple[Bundle, Opened]:
    """Raises NotFound, DamagedFile, AnswersDiffer or EngineRefused."""
    bundle = open_bundle(folder, engines=False)
    supply.check_place(folder, bundle.manifest)
    # Opening an engine leaves a core to the decoder; a small one may be timed beside it, and the
    # first requests then correct its times.
    with ThreadPoolExecutor(1) as beside:
        checked = beside.submit(check_pixels, bundle.golden(), bundle.manifest.image)
        opened = open_chosen(bundle, choice, choice.order)
        try:
            checked.result()
        except BaseException:
            opened.engine.close()
            raise
    return bundle, opened


def open_chosen(
    bundle: Bundle, choice: EngineChoice, order: Sequence[str], *, pass_over_damaged: bool = False
) -> Opened:
    """The first engine of `order` that runs here, as `open_engine`."""
    try:
        opened = open_engine(
            bundle, order, lanes=choice.lanes, max_batch=choice.max_batch,
            pass_over_damaged=pass_over_damaged, compiled_folder=choice.compiled_folder,
        )  # fmt: skip
        give_back()  # compiling a network and proving it takes more than serving it
        return opened
    except EngineRefused as error:
        if choice.required:
            message = f"{error}; by --require nothing may take its place"
            raise EngineRefused(error.reason, message) from error
        raise
