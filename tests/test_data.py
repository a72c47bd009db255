"""Folders of images as users have them: right, wrong, and broken."""

import errno
import hashlib
import io
import pickle
import resource
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tiny import PURE, encoded, jpeg

from packshot.errors import DamagedFile, InvalidInput, NotFound
from packshot.image import FORMATS, ImageSpec
from trainer.architectures import architecture
from trainer.batches import TrainingViews, served_views, training_batches
from trainer.cache import SIDE, open_cache, read_inspected, write_inspected
from trainer.data import Split, load_split
from trainer.duplicates import distance, join_near, perceptual_hash, shrunk, thumbnail
from trainer.objective import class_weights
from trainer.recipes import FROM_SCRATCH, Options, Recipe, recipe_for
from trainer.review import reviewed
from trainer.sample import draw_picture
from trainer.schedule import Schedule, Step

SPEC = ImageSpec()


def options(data: Path, **changed: object) -> Options:
    defaults = {
        "data": data, "run": data.parent / "run", "arch": "resnet18", "weights": "none",
        "without_weights": "stop", "epochs": None, "batch_size": None, "learning_rate": None,
        "max_damaged_share": 0.1, "val_share": 0.1, "test_share": 0.1, "workers": 0, "seed": 0,
    }  # fmt: skip
    return Options(**{**defaults, **changed})


def split_of(data: Path, **changed: object) -> Split:
    return load_split(options(data, **changed), SPEC)


def steps_of(recipe: Recipe, labels: list[int], seed: int) -> list[Step]:
    return list(Schedule(recipe, labels, seed).after(0))


def picture(number: int, size: tuple[int, int] = (160, 120), seed: int = 0) -> Image.Image:
    """Blotches of colour, others for every number and seed."""
    cells = np.random.default_rng([seed, number]).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def fill(folder: Path, count: int, seed: int = 0) -> None:
    """`count` different pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:02d}.jpg").write_bytes(encoded(picture(number, seed=seed), "JPEG"))


@pytest.fixture
def shop(tmp_path):
    fill(tmp_path / "shop" / "mug", 20)
    fill(tmp_path / "shop" / "shoe", 30, seed=1)
    return tmp_path / "shop"


def test_a_folder_of_classes_is_split_by_class_and_seed(shop):
    split = split_of(shop)
    assert split.labels == ("mug", "shoe")
    counts = {
        part: [sum(e.label == i for e in getattr(split, part)) for i in range(2)]
        for part in ("train", "val", "test")
    }
    assert counts == {"train": [16, 24], "val": [2, 3], "test": [2, 3]}
    files = [e.file for e in split.train + split.val + split.test]
    assert len(set(files)) == 50
    assert split_of(shop) == split
    assert split_of(shop, seed=1).test != split.test


def test_given_parts_are_honoured(shop, tmp_path):
    data = tmp_path / "given"
    for part, count in (("train", 8), ("val", 3), ("test", 2)):
        for shade, label in enumerate(("mug", "shoe")):
            fill(data / part / label, count, seed=10 * count + shade)
    split = split_of(data)
    assert (len(split.train), len(split.val), len(split.test)) == (16, 6, 4)
    assert all(e.file.startswith("val/") for e in split.val)


def test_a_missing_part_is_split_off_train(tmp_path):
    for seed, label in enumerate(("mug", "shoe")):
        fill(tmp_path / "data" / "train" / label, 20, seed=seed)
        fill(tmp_path / "data" / "val" / label, 3, seed=10 + seed)
    split = split_of(tmp_path / "data")
    assert (len(split.train), len(split.val), len(split.test)) == (36, 6, 4)
    assert all(e.file.startswith("train/") for e in split.test)


def test_hidden_and_other_files_are_ignored_links_are_followed(shop, tmp_path):
    (shop / "mug" / ".thumbnail.jpg").write_bytes(b"?")
    (shop / "mug" / "notes.txt").write_text("?")
    (shop / ".git").mkdir()
    (tmp_path / "elsewhere.JPG").write_bytes(jpeg(PURE["red"]))
    (shop / "mug" / "linked.JPG").symlink_to(tmp_path / "elsewhere.JPG")
    split = split_of(shop)
    files = [e.file for e in split.train + split.val + split.test]
    assert len(files) == 51
    assert "mug/linked.JPG" in files


def test_links_to_folders_are_followed_but_not_round_in_circles(shop, tmp_path):
    fill(tmp_path / "elsewhere" / "deep", 2, seed=5)
    (shop / "mug" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(shop / "mug")
    split = split_of(shop)
    assert len(split.examples) == 52
    assert "mug/more/deep/01.jpg" in {e.file for e in split.examples}


def test_every_format_is_read_of_an_animation_the_first_frame(tmp_path):
    for kind in FORMATS:
        for seed, label in enumerate(("mug", "shoe")):
            file = tmp_path / "shop" / label / f"{kind}.{kind.lower()}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(picture(ord(kind[0]), seed=seed), kind))
    frames = [picture(n, seed=7) for n in range(3)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    (tmp_path / "shop" / "mug" / "moving.gif").write_bytes(content)
    (tmp_path / "shop" / "mug" / "still.png").write_bytes(encoded(frames[0], "PNG"))
    split = split_of(tmp_path / "shop")
    assert len(split.examples) == 2 * len(FORMATS) + 2
    assert split.damaged == {}
    assert split.duplicates.near == (("mug/moving.gif", "mug/still.png"),)


def test_the_fingerprint_follows_every_byte(shop):
    before = split_of(shop).fingerprint
    (shop / "mug" / "00.jpg").write_bytes(jpeg((1, 2, 3)))
    assert split_of(shop).fingerprint != before


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(NotFound, match="no such folder"):
        split_of(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="no image in it"):
        split_of(tmp_path / "empty")


def test_one_class_is_not_a_choice(tmp_path):
    fill(tmp_path / "shop" / "mug", 5)
    (tmp_path / "shop" / "shoe").mkdir()
    with pytest.raises(InvalidInput, match=r"1 class \(mug\).*needs 2"):
        split_of(tmp_path / "shop")


def test_a_class_with_one_image_is_named(shop):
    fill(shop / "lamp", 1, seed=2)
    with pytest.raises(InvalidInput, match="'lamp' has 1 usable image"):
        split_of(shop)


def test_a_class_of_two_trains_and_validates(shop):
    fill(shop / "lamp", 2, seed=2)
    split = split_of(shop)
    assert [e.label for e in split.train].count(0) == 1
    assert [e.label for e in split.val].count(0) == 1


def test_a_class_only_outside_train_is_named(tmp_path):
    for part, labels in (("train", "ab"), ("val", "abc")):
        for label in labels:
            fill(tmp_path / "data" / part / label, 3)
    with pytest.raises(InvalidInput, match="no image of: c"):
        split_of(tmp_path / "data")


def damage(shop: Path) -> None:
    (shop / "mug" / "00.jpg").write_bytes(b"")
    content = (shop / "mug" / "01.jpg").read_bytes()
    (shop / "mug" / "01.jpg").write_bytes(content[: len(content) // 2])
    (shop / "shoe" / "00.jpg").write_text("<html>404</html>")
    (shop / "shoe" / "01.jpg").unlink()
    (shop / "shoe" / "01.jpg").symlink_to("gone.jpg")


def test_damaged_files_are_named_and_left_out(shop):
    damage(shop)
    split = split_of(shop)
    assert split.damaged.keys() == {"mug/00.jpg", "mug/01.jpg", "shoe/00.jpg", "shoe/01.jpg"}
    assert len(split.train + split.val + split.test) == 46
    (warning,) = split.warnings
    assert "4 of 50 files are left out" in warning
    assert "mug/00.jpg: the image has 0 bytes" in warning
    assert "shoe/01.jpg: cannot be read" in warning


def test_too_much_damage_is_refused(shop):
    damage(shop)
    with pytest.raises(InvalidInput, match=r"4 of 50 files \(8\.0%\)[\s\S]*shoe/00\.jpg: not an"):
        split_of(shop, max_damaged_share=0.05)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("epochs", 31, "--epochs is 31; it must be from 1 to 30"),
        ("batch_size", 1, "--batch-size is 1; it must be from 2 to 64"),
        ("learning_rate", 0.01, "--learning-rate is 0.01; it must be from 1e-05 to 0.0005"),
        ("val_share", 0.9, "--val-share is 0.9"),
        ("seed", -1, "--seed is -1"),
    ],
)
def test_values_out_of_range_name_option_value_and_range(tmp_path, option, value, message):
    with pytest.raises(InvalidInput, match=message.replace(".", r"\.")):
        options(tmp_path, **{option: value})


def test_the_plan_shows_every_image_once_an_epoch_and_grows():
    recipe = FROM_SCRATCH
    steps = steps_of(recipe, [0] * 64, seed=0)
    assert len(steps) == recipe.epochs * 4
    for epoch in range(1, recipe.epochs + 1):
        seen = [i for step in steps if step.epoch == epoch for i in step.examples]
        assert sorted(seen) == list(range(64))
    sizes = [step.size for step in steps]
    assert sizes == sorted(sizes)
    assert [sizes.count(size) for size in (64, 128, 224)] == [26, 12, 2]
    assert steps_of(recipe, [0] * 64, seed=1) != steps


@pytest.mark.parametrize("images", [3, 17, 31])
def test_an_epoch_shows_every_image_in_full_batches(images):
    steps = steps_of(FROM_SCRATCH, [0] * images, seed=0)
    assert {len(step.examples) for step in steps} == {FROM_SCRATCH.batch_size}
    first = [i for step in steps if step.epoch == 1 for i in step.examples]
    assert set(first) == set(range(images))


def test_an_image_twice_in_a_batch_is_drawn_anew(shop):
    split = split_of(shop)
    views = TrainingViews(split, FROM_SCRATCH, SPEC, seed=0)
    steps = steps_of(FROM_SCRATCH, [0], seed=0)[:1]
    ((images, _),) = training_batches(views, steps, workers=0)
    assert len({image.numpy().tobytes() for image in images}) > len(images) / 2


def test_a_file_that_changed_or_went_is_named(shop):
    split = split_of(shop)
    first, second = split.train[:2]
    (shop / first.file).write_bytes(jpeg((9, 9, 9)))
    with pytest.raises(DamagedFile, match=rf"{first.file} has changed"):
        split.read(first)
    (shop / second.file).unlink()
    with pytest.raises(DamagedFile, match=rf"{second.file} cannot be read"):
        split.read(second)


def copied(folder: Path, copy) -> None:
    """Beside every picture of the folder a copy, as `copy` makes it of the file's content."""
    for path in list(folder.rglob("*.jpg")):
        path.with_name(f"copy of {path.name}").write_bytes(copy(path.read_bytes()))


def smaller(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        small = image.resize((image.width * 3 // 4, image.height * 3 // 4))
    return encoded(small, "JPEG", quality=60)


@pytest.mark.parametrize("copy", [bytes, smaller], ids=["exact", "near"])
def test_copies_of_a_picture_stay_in_one_part(shop, copy):
    copied(shop, copy)
    split = split_of(shop)
    found, other = split.duplicates.exact, split.duplicates.near
    if copy is smaller:
        found, other = other, found
    assert (len(found), len(other)) == (50, 0)
    part = {e.file: part for part in ("train", "val", "test") for e in getattr(split, part)}
    assert len(part) == 100
    for file, twin in found:
        assert Path(twin).name == f"copy of {Path(file).name}" or file.startswith("mug/copy")
        assert part[file] == part[twin]
    assert (len(split.val), len(split.test)) == (10, 10)
    assert not split.leaked
    assert not any("leakage" in text for text in reviewed(split, SPEC).warnings)


@pytest.mark.parametrize("copy", [bytes, smaller], ids=["exact", "near"])
def test_copies_in_given_parts_are_told_as_leakage(tmp_path, copy):
    data = tmp_path / "data"
    for seed, label in enumerate(("mug", "shoe")):
        fill(data / "train" / label, 6, seed=seed)
        fill(data / "val" / label, 3, seed=10 + seed)
    leaked = copy((data / "train" / "mug" / "03.jpg").read_bytes())
    (data / "val" / "mug" / "new.jpg").write_bytes(leaked)
    split = reviewed(split_of(data), SPEC)
    assert split.leaked == (("train/mug/03.jpg", "val/mug/new.jpg"),)
    assert "leakage: 1 picture(s), 2 files," in " ".join(split.warnings)
    assert "train/mug/03.jpg = val/mug/new.jpg" in " ".join(split.warnings)
    kept = msgspec.json.decode(msgspec.json.encode(split), type=Split)  # as the checkpoint keeps it
    assert (kept.leaked, kept.warnings) == (split.leaked, split.warnings)


@pytest.mark.parametrize("copy", [bytes, smaller], ids=["exact", "near"])
def test_a_picture_of_two_classes_is_told_and_stays_in_one_part(shop, copy):
    for number in range(20):
        content = copy((shop / "mug" / f"{number:02d}.jpg").read_bytes())
        (shop / "shoe" / f"mug-{number:02d}.jpg").write_bytes(content)
    split = reviewed(split_of(shop), SPEC)
    assert len(split.conflicting) == 20
    assert ("mug/03.jpg", "shoe/mug-03.jpg") in split.conflicting
    assert not split.leaked
    assert "label conflict: 20 picture(s) with more than one label" in " ".join(split.warnings)


def test_a_class_of_copies_only_is_split_and_told(shop):
    (shop / "lamp").mkdir()
    for number in range(4):
        content = encoded(picture(7, seed=3), "JPEG", quality=70 + number)
        (shop / "lamp" / f"{number}.jpg").write_bytes(content)
    split = split_of(shop)
    assert split.warnings[0].startswith("the 4 images of 'lamp' are copies of one another")
    assert [e.label for e in split.val].count(0) == 1


def test_a_large_group_of_copies_is_trained_on(shop):
    for number in range(30):
        content = encoded(picture(0), "JPEG", quality=60 + number)
        (shop / "mug" / f"burst-{number}.jpg").write_bytes(content)
    split = split_of(shop, val_share=0.02, test_share=0.02)
    assert [e.label for e in split.held_out].count(0) == 2
    assert not any("burst" in e.file for e in split.held_out)


def looks(image: Image.Image) -> tuple[int, np.ndarray]:
    """Perceptual hash, and thumbnail float32 [192]."""
    small = shrunk(image)
    return perceptual_hash(small), np.frombuffer(thumbnail(small), np.uint8).astype(np.float32)


def groups_of(images: list[Image.Image]) -> list[int]:
    hashes, thumbnails = zip(*map(looks, images), strict=True)
    return join_near(np.array(hashes, np.uint64), np.stack(thumbnails)).tolist()


def test_drawn_products_are_told_apart_and_their_copies_found():
    products = [draw_picture(kind, 0, n) for kind in ("mug", "lamp", "tshirt") for n in range(12)]
    saved = [Image.open(io.BytesIO(encoded(p, "JPEG", quality=50))) for p in products]
    resized = [p.resize((128, 128 * p.height // p.width)) for p in products]
    count = len(products)
    assert groups_of(products) == list(range(count))
    assert groups_of(products + saved + resized) == list(range(count)) * 3


def test_another_colour_is_another_product():
    drawn = draw_picture("mug", 0, 1)
    red, green, blue = drawn.split()
    other = Image.merge("RGB", (blue, green, red))
    (hash_of, seen), (hash_of_other, seen_other) = looks(drawn), looks(other)
    assert distance(seen[None], seen_other[None])[0] > 0.3
    assert groups_of([drawn, other]) == [0, 1]
    assert (hash_of ^ hash_of_other).bit_count() < 20


def test_no_pair_within_the_bits_is_missed_and_none_is_added():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 300, np.uint64)
    for i in range(0, 300, 3):  # the second of three differs in 0 to 6 bits, the third in 7 to 13
        near, far = rng.permutation(64)[: i % 7], rng.permutation(64)[: 7 + i % 7]
        hashes[i + 1] = hashes[i] ^ np.bitwise_or.reduce(1 << near.astype(np.uint64), initial=0)
        hashes[i + 2] = hashes[i + 1] ^ np.bitwise_or.reduce(1 << far.astype(np.uint64), initial=0)
    same = np.tile(rng.integers(0, 256, 192).astype(np.float32), (300, 1))
    expected = list(range(300))
    for i in range(300):
        for j in range(i):
            if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 6:
                expected[i] = expected[j]
                break
    assert join_near(hashes, same).tolist() == expected
    assert expected[1::3] == expected[::3]


@pytest.mark.parametrize("names", [("training", "validation"), ("Train", "Val", "Test")])
def test_parts_by_other_names_are_not_taken_for_classes(tmp_path, names):
    for name in names:
        fill(tmp_path / "data" / name / "mug", 3)
    with pytest.raises(InvalidInput, match="call them train, val and test"):
        split_of(tmp_path / "data")


def test_other_folders_beside_train_are_not_ignored(tmp_path):
    for name in ("train", "valid"):
        fill(tmp_path / "data" / name / "mug", 3)
    with pytest.raises(InvalidInput, match="valid beside train/"):
        split_of(tmp_path / "data")


def test_images_outside_of_class_folders_are_told(shop):
    (shop / "lost.png").write_bytes(encoded(picture(99), "PNG"))
    assert "1 images lie in" in split_of(shop).warnings[0]
    assert "such as lost.png" in split_of(shop).warnings[0]


def test_a_class_folder_without_images_is_told(shop):
    (shop / "lamp").mkdir()
    (shop / "lamp" / "phone.heic").write_bytes(b"?")
    assert split_of(shop).labels == ("mug", "shoe")
    assert "lamp has no image" in split_of(shop).warnings[0]


def test_a_name_that_is_not_utf8_is_named(shop):
    (shop / "mug" / "T\udcfcte.jpg").write_bytes(jpeg((1, 2, 3)))
    assert split_of(shop).damaged == {
        "mug/T\\udcfcte.jpg": "its name is not valid UTF-8: rename it"
    }


def test_batches_do_not_depend_on_the_number_of_workers(shop):
    split = split_of(shop)
    steps = steps_of(FROM_SCRATCH, split.train_labels, seed=0)[:3]
    views = TrainingViews(split, FROM_SCRATCH, SPEC, seed=0)
    here, there = (list(training_batches(views, steps, workers)) for workers in (0, 2))
    for (images, labels), (again, same) in zip(here, there, strict=True):
        assert images.shape == (16, 64, 64, 3)
        assert np.array_equal(images, again)
        assert np.array_equal(labels, same)
    assert not np.array_equal(here[0][0], here[1][0])


def test_good_data_gives_no_warning_and_thin_data_one_a_fault(tmp_path):
    for seed, label in enumerate("ab"):
        fill(tmp_path / "good" / label, 250, seed=seed)
    assert reviewed(split_of(tmp_path / "good"), SPEC).warnings == ()
    for path in sorted((tmp_path / "good" / "b").iterdir())[12:]:
        path.unlink()
    for number in range(40):
        path = tmp_path / "good" / "a" / f"{number:02d}.jpg"
        path.write_bytes(encoded(picture(number, (200, 60)), "JPEG"))
    few, thin, uneven, cut = reviewed(split_of(tmp_path / "good"), SPEC).warnings
    assert few.startswith("262 images are few")
    assert thin.startswith("of 2 classes 1 with under 20 images to train on: b (10);")
    assert "20 to 1 out of balance in train: a has 200 images, b 10" in uneven
    assert cut.startswith("40 of 262 images are so long")
    assert "(200x60) it shows 26%" in cut


def test_class_weights_of_the_loss_by_hand():
    assert class_weights("none", [90, 10]).tolist() == [1, 1]
    inverse = class_weights("inverse", [90, 10])
    assert inverse.tolist() == pytest.approx([100 / 180, 100 / 20])
    root = class_weights("sqrt", [90, 10])
    assert (root[1] / root[0]).item() == pytest.approx(3)
    for weights in (inverse, root):
        assert (weights[0] * 90 + weights[1] * 10).item() == pytest.approx(100)


def test_a_balanced_epoch_shows_classes_equally_often_and_all_of_a_large_one_in_time():
    recipe = msgspec.structs.replace(FROM_SCRATCH, sampler="balanced", epochs=24)
    labels = [0] * 90 + [1] * 8 + [2] * 6
    steps = steps_of(recipe, labels, seed=0)
    assert len(steps) == 24 * 7
    first = [i for step in steps if step.epoch == 1 for i in step.examples][: len(labels)]
    assert sorted(np.bincount(np.take(labels, first))) == [34, 35, 35]
    assert set(range(90, 104)) <= set(first)
    assert {i for step in steps for i in step.examples} == set(range(104))
    assert steps_of(recipe, labels, seed=1) != steps


def test_weights_and_sampler_go_into_the_recipe_but_not_both(tmp_path):
    asked = options(tmp_path, class_weights="sqrt")
    kind = architecture("resnet50")
    recipe = recipe_for(asked, kind, images=100, pretrained=True, gpu=True)
    assert (recipe.class_weights, recipe.sampler) == ("sqrt", "shuffled")
    asked = options(tmp_path, sampler="balanced", class_weights="none")
    recipe = recipe_for(asked, kind, images=100, pretrained=False, gpu=False)
    assert recipe.sampler == "balanced"
    with pytest.raises(InvalidInput, match="--class-weights sqrt make up for the same imbalance"):
        options(tmp_path, sampler="balanced", class_weights="sqrt")


def quiet(_text: str) -> None:
    """Says nothing."""


def one_epoch(split: Split, cache, workers: int = 0) -> list[np.ndarray]:
    views = TrainingViews(split, FROM_SCRATCH, SPEC, 0, cache)
    steps = steps_of(FROM_SCRATCH, split.train_labels, seed=0)[:3]
    return [images.numpy() for images, _ in training_batches(views, steps, workers)]


def test_with_a_cache_training_never_decodes_a_file_again(shop, tmp_path):
    split, said = split_of(shop), []
    cache = open_cache(tmp_path / "cache", split, SPEC, said.append)
    assert "40 training images, 2 MB, into" in said[0]
    for path in shop.rglob("*.jpg"):
        path.unlink()
    first = one_epoch(split, cache)
    again = one_epoch(split, open_cache(tmp_path / "cache", split, SPEC, said.append), workers=2)
    assert np.array_equal(first, again)
    assert "no file is decoded" in said[1]
    with pytest.raises(DamagedFile):
        one_epoch(split, None)
    with pytest.raises(DamagedFile, match="cannot be read any more"):
        served_views(split, split.val, SPEC)


def test_the_cache_holds_the_decoded_pixels_small_ones_as_they_are(shop, tmp_path):
    (shop / "mug" / "large.png").write_bytes(encoded(picture(50, (600, 900)), "PNG"))
    split = split_of(shop, val_share=0.02, test_share=0.02)
    cache = open_cache(tmp_path, split, SPEC, quiet)
    sizes = {cache[e].shape[:2] for e in split.train}
    assert sizes == {(120, 160), (SIDE * 3 // 2, SIDE)}
    small = next(e for e in split.train if e.width == 160)
    with Image.open(shop / small.file) as image:
        assert np.array_equal(cache[small], np.asarray(image.convert("RGB")))
    assert not cache[small].flags.writeable
    assert len(pickle.dumps(cache)) < 20_000  # to a loader process goes where it is, not what


def test_a_changed_file_is_never_served_from_the_cache(shop, tmp_path):
    before = split_of(shop)
    open_cache(tmp_path / "cache", before, SPEC, quiet)
    changed = before.train[0]
    (shop / changed.file).write_bytes(encoded(picture(77, seed=7), "JPEG"))
    after = split_of(shop)
    cache = open_cache(tmp_path / "cache", after, SPEC, quiet)
    new = next(e for e in after.examples if e.file == changed.file)
    assert new.sha256 != changed.sha256
    with Image.open(shop / changed.file) as image:
        assert np.array_equal(cache[new], np.asarray(image))
    with pytest.raises(KeyError):
        cache[changed]
    (shop / changed.file).write_bytes(jpeg(PURE["red"]))
    with pytest.raises(DamagedFile, match="has changed"):
        open_cache(tmp_path / "other", after, SPEC, quiet)
    assert list((tmp_path / "other").iterdir()) == []


def test_a_cache_cut_short_is_named(shop, tmp_path):
    split = split_of(shop)
    open_cache(tmp_path / "cache", split, SPEC, quiet)
    (pixels,) = (tmp_path / "cache").rglob("pixels")
    content = pixels.read_bytes()
    pixels.write_bytes(content[:-1])
    with pytest.raises(DamagedFile, match="remove it"):
        open_cache(tmp_path / "cache", split, SPEC, quiet)


def test_a_cache_that_the_disk_cannot_hold_is_refused_before_it_is_written(shop, tmp_path):
    split, said = split_of(shop), []
    endless = msgspec.structs.replace(split.train[0], width=300, height=1 << 50)
    split = msgspec.structs.replace(split, train=(endless,))
    with pytest.raises(InvalidInput, match=r"MB are needed, [\d,]+ MB are free: name a --cache"):
        open_cache(tmp_path / "cache", split, SPEC, said.append)
    assert "MB, into" in said[0]
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_disk_that_fills_up_leaves_no_half_cache(shop, tmp_path):
    split = split_of(shop)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))  # stands in for a full disk
    try:
        with pytest.raises(InvalidInput, match="train without one") as caught:
            open_cache(tmp_path / "cache", split, SPEC, quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert list((tmp_path / "cache").iterdir()) == []
    assert open_cache(tmp_path / "cache", split, SPEC, quiet)[split.train[0]].shape == (120, 160, 3)


def test_what_was_verified_once_is_not_decoded_again(shop, tmp_path):
    seen = {}
    split = load_split(options(shop), SPEC, seen)
    write_inspected(tmp_path, SPEC, seen)
    known = read_inspected(tmp_path, SPEC)
    assert known == seen
    assert len(known) == 50
    # A record that says otherwise than the file shows that the file is not decoded.
    content = (shop / "mug" / "00.jpg").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    known[digest] = msgspec.structs.replace(known[digest], width=1234)
    again = load_split(options(shop), SPEC, known)
    assert [e.width for e in again.examples if e.file == "mug/00.jpg"] == [1234]
    assert again.fingerprint == split.fingerprint
    # Other content, damaged at that, is not in the record.
    (shop / "mug" / "00.jpg").write_bytes(content[:-200])
    assert load_split(options(shop), SPEC, known).damaged.keys() == {"mug/00.jpg"}


def test_without_a_terminal_the_images_are_read_without_a_bar(shop, capsys):
    load_split(options(shop), SPEC, {})
    assert capsys.readouterr().err == ""


def test_a_record_of_another_spec_or_half_a_record_counts_for_nothing(shop, tmp_path):
    seen = {}
    load_split(options(shop), SPEC, seen)
    write_inspected(tmp_path, SPEC, seen)
    assert read_inspected(tmp_path, ImageSpec(draft_short_side=None)) == {}
    (record,) = tmp_path.glob("inspected-*")
    record.write_bytes(record.read_bytes()[:-1])
    assert read_inspected(tmp_path, SPEC) == {}
