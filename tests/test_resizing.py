"""The two resizers: hardly apart, the same on every CPU, never one in the place of the other."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import cykooz_resizer
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import environment, program
from test_data import fill, options, quiet, split_of
from test_image import photo
from tiny import encoded, tiny_bundle

from packshot import resizing
from packshot.cli import main
from packshot.errors import InvalidInput
from packshot.image import ImageSpec, load_pixels, view_box
from packshot.resizing import Resizer, best_resizer, resized
from trainer.augment import random_view
from trainer.cache import open_cache
from trainer.command_line import parse_options
from trainer.hardware import Hardware
from trainer.prepare import prepare, view_of
from trainer.recipes import FROM_SCRATCH, changed

FAST = ImageSpec(resizer="fast_image_resize")
PLAIN = changed(FROM_SCRATCH, colour_jitter=0.0)
SIDES = st.integers(1, 700)


def levels_apart(image: Image.Image, size: tuple[int, int], box: resizing.Box) -> int:
    one, other = (
        np.asarray(resized(image, size, box, resizer), np.int16)
        for resizer in ("pillow", "fast_image_resize")
    )
    return int(np.abs(one - other).max())


@settings(max_examples=150, deadline=None)
@given(width=SIDES, height=SIDES, size=st.tuples(SIDES, SIDES), data=st.data())
def test_the_two_are_at_most_two_levels_apart(width, height, size, data):
    hardest = np.random.default_rng(width * height).random((height, width, 3)) > 0.5
    image = Image.fromarray(hardest.astype(np.uint8) * 255)
    part = st.floats(0, 0.45)
    left, top = width * data.draw(part), height * data.draw(part)
    right, bottom = width * (1 - data.draw(part)), height * (1 - data.draw(part))
    assert levels_apart(image, size, (left, top, right, bottom)) <= 2  # one but in 1 of 10,000


def test_a_box_may_end_where_the_picture_does():
    """Sums of its parts are a trillionth more than some pictures have."""
    beyond = 0
    for width in range(1, 400):
        spec = ImageSpec(crop=224, resize_short_side=224)
        left, top, right, bottom = view_box((width, 300), spec)
        beyond += left + (right - left) > width or top + (bottom - top) > 300
        picture = Image.new("RGB", (width, 300))
        assert levels_apart(picture, (4, 4), (left, top, right, bottom)) <= 1
    assert beyond


def test_a_picture_larger_than_pillows_blocks_of_memory():
    noise = np.random.default_rng(0).integers(0, 256, (2500, 3000, 3), np.uint8)
    assert levels_apart(Image.fromarray(noise), (224, 224), (0.5, 3.25, 2999.5, 2400.0)) <= 1


@pytest.mark.parametrize("name", ["none", "sse4_1", "avx2"])
def test_the_fast_one_is_the_same_by_all_vector_instructions_or_none(name):
    picture, box = photo((801, 603)), (10.5, 0.0, 790.25, 603.0)
    plain = cykooz_resizer.Resizer()
    plain.cpu_extensions = cykooz_resizer.CpuExtensions[name]
    view = Image.new("RGB", (224, 224))
    options = cykooz_resizer.ResizeOptions(
        resize_alg=cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear),
        crop_box=cykooz_resizer.CropBox(10.5, 0.0, 779.75, 603.0),
    )
    plain.resize_pil(picture, view, options)
    assert view == resized(picture, (224, 224), box, "fast_image_resize")


def test_threads_do_not_wait_for_each_other_or_mix():
    contents = [encoded(photo((300 + 10 * i, 280), seed=i), "JPEG") for i in range(4)] * 25
    alone = [load_pixels(content, FAST) for content in contents[:4]] * 25
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda content: load_pixels(content, FAST), contents))
    assert all(map(np.array_equal, alone, together))


@pytest.fixture
def fast_store(tmp_path):
    tiny_bundle(tmp_path, image=FAST)
    return tmp_path


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    resizing._fast.cache_clear()
    yield
    resizing._fast.cache_clear()


def test_where_it_is_not_installed_training_goes_by_pillow(not_installed, tmp_path):
    assert best_resizer() == "pillow"
    assert view_of(options(tmp_path), ImageSpec()).resizer == "pillow"
    with pytest.raises(InvalidInput, match="fast_image_resize, which is not installed here: pip"):
        load_pixels(encoded(photo((300, 300)), "PNG"), FAST)
    fast = msgspec.structs.replace(options(tmp_path), resizer="fast_image_resize")
    with pytest.raises(InvalidInput, match="pip install cykooz-resizer, which has no wheel"):
        prepare(fast, Hardware())


def test_where_it_is_not_installed_a_bundle_is_verified_but_for_its_pixels(
    fast_store, not_installed, capsys
):
    assert main(["models", "verify", "colours", "1", "--models", str(fast_store)]) == 0
    assert (
        "sound; engines were not run, golden images not decoded: cykooz" in capsys.readouterr().out
    )
    assert main(["models", "release", "colours", "1", "--models", str(fast_store)]) == 0


def test_training_goes_by_the_fast_one_unless_told_otherwise(tmp_path):
    assert view_of(options(tmp_path), ImageSpec()).resizer == "fast_image_resize"
    asked = parse_options(["--data", str(tmp_path), "--resizer", "pillow"])
    assert view_of(asked, ImageSpec()).resizer == "pillow"


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_all_that_training_and_serving_see_goes_by_the_specs_resizer(fit, tmp_path):
    """Of noise the two differ somewhere."""
    fill(tmp_path / "shop" / "mug", 10)
    fill(tmp_path / "shop" / "shoe", 10, seed=1)
    pixels = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    noise, file = Image.fromarray(pixels), tmp_path / "shop" / "mug" / "noise.png"
    file.write_bytes(encoded(noise, "PNG"))
    split = split_of(tmp_path / "shop", val_share=0.1, test_share=0.1)
    example = next(one for one in split.examples if one.file.endswith("noise.png"))
    split = msgspec.structs.replace(split, train=(example,))

    def seen(resizer: Resizer) -> tuple[np.ndarray, ...]:
        spec = ImageSpec(resizer=resizer, fit=fit)
        return (
            load_pixels(file.read_bytes(), spec),
            random_view(noise, 224, PLAIN, spec, np.random.default_rng(0)),
            open_cache(tmp_path / "cache", split, spec, quiet)[example],
        )

    for one, other in zip(*map(seen, get_args(Resizer)), strict=True):
        assert 0 < np.abs(one.astype(int) - other.astype(int)).max() <= 2


def test_a_server_without_it_says_so_and_does_not_start(fast_store: Path, tmp_path: Path):
    (tmp_path / "cykooz_resizer.py").write_text("raise ImportError('not here')")
    started = program(
        "serving", "--models", fast_store, "--check",
        env=environment(PYTHONPATH=str(tmp_path)),
    )  # fmt: skip
    assert (started.returncode, "Traceback" in started.stderr) == (1, False)
    assert "fast_image_resize, which is not installed here: pip install" in started.stderr
