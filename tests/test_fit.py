"""`--fit pad` from the option to the server: long pictures are seen whole, everywhere alike."""

import msgspec
import numpy as np
import pytest
from PIL import Image
from processes import serving
from test_data import fill, options, quiet, split_of
from test_weights import save_run
from tiny import PURE, encoded, overwrite, reference, tiny_bundle

from packshot import Client
from packshot.bundle import MANIFEST, open_bundle, read_manifest
from packshot.image import ImageSpec, load_pixels
from packshot.triton import export_triton
from trainer.augment import random_view, training_view
from trainer.batches import TrainingViews, served_views
from trainer.cache import SIDE, open_cache
from trainer.command_line import parse_options
from trainer.hardware import Hardware
from trainer.model import new_network
from trainer.prepare import prepare_network, view_of
from trainer.recipes import FROM_SCRATCH, changed
from trainer.review import reviewed
from trainer.square import square_view
from trainer.verify import LIMITS

CROP, PAD = ImageSpec(), ImageSpec(fit="pad")
LONG = (400, 100)
PLAIN = changed(FROM_SCRATCH, colour_jitter=0.0)


def belt(size: tuple[int, int] = LONG) -> Image.Image:
    """Green, and red at both ends: what a crop of the centre does not show."""
    image = Image.new("RGB", size, PURE["green"])
    for left in (0, size[0] - size[1]):
        image.paste(PURE["red"], (left, 0, left + size[1], size[1]))
    return image


@pytest.fixture
def belts(tmp_path):
    """A folder in which a fifth of the images is too long for a crop."""
    for seed, label in enumerate(("belt", "mug")):
        fill(tmp_path / "shop" / label, 20, seed=seed)
    for number in range(10):
        image = Image.new("RGB", LONG, (25 * number, 10, 10))
        image.paste((200, 20 * number, 90), (0, 0, 10 + 30 * number, 60))
        (tmp_path / "shop" / "belt" / f"long-{number}.png").write_bytes(encoded(image, "PNG"))
    return tmp_path / "shop"


def test_the_server_sees_the_whole_picture_if_the_bundle_says_so(tmp_path):
    tiny_bundle(tmp_path, "cropped")
    tiny_bundle(tmp_path, "padded", image=PAD)
    content = encoded(belt(), "PNG")
    with serving("--models", tmp_path) as server:
        for model, spec in (("cropped", CROP), ("padded", PAD)):
            with Client(server.target, model=model) as client:
                (result,) = client.classify([content], include_logits=True)
            expected = reference(load_pixels(content, spec)[np.newaxis])[0]
            assert np.abs(np.array(result.logits) - expected).max() < 1e-3, model
    seen = [reference(load_pixels(content, spec)[np.newaxis])[0] for spec in (CROP, PAD)]
    assert np.abs(seen[0] - seen[1]).max() > 1


def test_a_bundle_of_before_there_was_a_choice_crops(tmp_path):
    folder = tiny_bundle(tmp_path)
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes())
    for name in ("fit", "padding", "resizer"):
        del manifest["image"][name]
    overwrite(folder / MANIFEST, msgspec.json.encode(manifest))
    assert read_manifest(folder).image == CROP
    assert open_bundle(folder).manifest.image.fit == "crop"


def test_the_readme_for_triton_says_what_the_client_must_do(tmp_path):
    said = []
    for spec in (CROP, PAD):
        folder = tiny_bundle(tmp_path / spec.fit, image=spec)
        written = export_triton(open_bundle(folder), tmp_path / f"triton-{spec.fit}")
        said.append((written / "README.md").read_text())
    assert f"In words: {CROP.geometry}." in said[0]
    assert f"In words: {PAD.geometry}." in said[1]
    assert '"fit": "pad"' in said[1]


def test_the_option_goes_into_the_view_that_training_uses(belts):
    for fit, expected in ((None, "crop"), ("crop", "crop"), ("pad", "pad")):
        asked = options(belts, fit=fit)
        wanted = ImageSpec(fit=expected, resizer="fast_image_resize")
        assert view_of(asked, ImageSpec()) == wanted
        _, _, start = prepare_network(asked, Hardware(), split_of(belts))
        assert start.spec == wanted
    assert parse_options(["--data", "x", "--fit", "pad"]).fit == "pad"
    assert parse_options(["--data", "x"]).fit is None


def test_an_earlier_run_brings_its_view_unless_another_is_asked_for(tmp_path):
    image = ImageSpec(fit="pad", resize_short_side=240)
    save_run(tmp_path / "earlier", new_network("resnet18", 4, image), image)
    earlier = options(tmp_path, weights=str(tmp_path / "earlier"))
    assert view_of(earlier, ImageSpec()).fit == "pad"
    assert view_of(msgspec.structs.replace(earlier, fit="crop"), ImageSpec()).fit == "crop"
    cheaper = msgspec.structs.replace(earlier, draft_short_side=256)
    assert view_of(cheaper, ImageSpec()) == ImageSpec(fit="pad", draft_short_side=256)
    faster = msgspec.structs.replace(earlier, resizer="fast_image_resize")
    assert view_of(faster, ImageSpec()).resizer == "fast_image_resize"


def test_the_warning_about_crops_names_the_remedy_which_silences_it(belts):
    def cut(spec):
        return [text for text in reviewed(split_of(belts), spec).warnings if "long" in text]

    (warning,) = cut(CROP)
    assert "10 of 50 images are so long that the centre crop shows less" in warning
    assert "show images whole (--fit pad)" in warning
    assert cut(PAD) == []


def test_evaluation_and_cache_hold_the_whole_picture(belts, tmp_path):
    split = split_of(belts, val_share=0.02, test_share=0.02)
    said = []
    crop, pad = (open_cache(tmp_path / "cache", split, spec, said.append) for spec in (CROP, PAD))
    assert ["MB, into" in text for text in said] == [True, True], "each has a file of its own"
    long = next(e for e in split.train if "long" in e.file)
    assert crop[long].shape == (100, 400, 3)
    assert pad[long].shape == (SIDE // 4, SIDE, 3)
    content = split.read(long)
    assert np.array_equal(served_views(split, [long], PAD)[0], load_pixels(content, PAD))


@pytest.mark.parametrize("size", [(60, 24), (25, 90), (7, 7), (1, 50)])
def test_a_window_on_the_padded_square_is_what_pillow_makes_of_the_square(size):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 5, 3), np.uint8))
    picture, side = coarse.resize(size, Image.Resampling.BICUBIC), max(size)
    square = Image.new("RGB", (side, side), PAD.padding)
    square.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    whole = square_view(picture, (0, 0, side, side), side, PAD)
    assert np.array_equal(np.asarray(whole), np.asarray(square))
    for _ in range(50):
        left, top = (int(at) for at in rng.integers(0, side // 2 + 1, 2))
        length = int(rng.integers(1, side - max(left, top) + 1))
        box = (left, top, left + length, top + length)
        seen = np.asarray(square_view(picture, box, 2 * length, PAD)).astype(int)
        expected = square.resize((2 * length, 2 * length), Image.Resampling.NEAREST, box=box)
        padded = (np.asarray(expected) == PAD.padding).all(axis=2)
        assert ((seen == PAD.padding).all(axis=2) == padded).mean() > 0.9


def test_training_shows_ends_and_padding_of_long_pictures():
    rng = np.random.default_rng(0)
    views = np.stack([random_view(belt(), 32, PLAIN, PAD, rng) for _ in range(40)]).astype(int)
    red = (np.abs(views - PURE["red"]) < 60).all(axis=3).any(axis=(1, 2))
    padding = (views == 255).all(axis=3).mean()
    assert red.mean() > 0.8
    assert 0.5 < padding < 0.85, "three quarters of the square"
    cropped = np.stack([random_view(belt(), 32, PLAIN, CROP, rng) for _ in range(40)])
    assert not (cropped == 255).all(axis=3).any()


def test_a_panorama_is_trained_on_without_a_square_of_its_size():
    """The square would have 3.6 thousand million pixels: no memory holds it."""
    content = encoded(Image.new("RGB", (60_000, 3), PURE["blue"]), "PNG")
    view = training_view(content, 64, PLAIN, PAD, np.random.default_rng(0), LIMITS)
    assert (np.abs(view.astype(int) - PURE["blue"]) < 3).all(axis=2).any()


def test_training_from_the_cache_and_from_files_looks_alike(belts, tmp_path):
    split = split_of(belts, val_share=0.02, test_share=0.02)
    cache = open_cache(tmp_path / "cache", split, PAD, quiet)
    number = next(n for n, e in enumerate(split.train) if "long" in e.file)
    shares = []
    for source in (None, cache):
        views = TrainingViews(split, PLAIN, PAD, 0, source)
        seen = np.stack([views[number, 64, draw][0] for draw in range(20)])
        shares.append((seen == 255).all(axis=3).mean())
    assert shares[0] == pytest.approx(shares[1], abs=0.05)
    assert shares[0] > 0.5
