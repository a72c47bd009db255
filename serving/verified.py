"""A version of a model, verified and open: hashes, pixels, engine, golden samples.

What the server does before it serves, and what a batch job does before its first image.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packshot.bundle import Bundle, open_bundle
from packshot.golden import check_pixels
from serving.engines.open import EngineChoice, Opened, open_engine
from serving.supply import Supply


def open_version(supply: Supply, folder: Path, choice: EngineChoice) -> tuple[Bundle, Opened]:
    """Raises NotFound, DamagedFile, AnswersDiffer, EngineRefused, or InvalidInput where the package
    that resizes its images is not installed.
    """
    bundle = open_bundle(folder, engines=False)
    supply.check_place(folder, bundle.manifest)
    # Opening an engine leaves a core to the decoder; a small one may be timed beside it, and the
    # first requests then correct its times.
    with ThreadPoolExecutor(1) as beside:
        checked = beside.submit(check_pixels, bundle.golden(), bundle.manifest.image)
        opened = open_engine(bundle, choice)
        try:
            checked.result()
        except BaseException:
            opened.engine.close()
            raise
    return bundle, opened
