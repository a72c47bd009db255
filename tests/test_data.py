"""Folders of images as users have them: right, wrong, and broken."""

from pathlib import Path

import numpy as np
import pytest
from tiny import PURE, jpeg

from packshot.errors import DamagedFile, InvalidInput, NotFound
from packshot.image import ImageSpec
from trainer.batches import TrainingViews, plan_steps, training_batches
from trainer.data import Split, load_split
from trainer.recipes import FROM_SCRATCH, Options

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


def fill(folder: Path, count: int, shade: int = 0) -> None:
    """`count` different pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg((shade, number * 5, 90), (40, 30)))


@pytest.fixture
def shop(tmp_path):
    fill(tmp_path / "shop" / "mug", 20)
    fill(tmp_path / "shop" / "shoe", 30, shade=200)
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
            fill(data / part / label, count, shade=shade * 100)
    split = split_of(data)
    assert (len(split.train), len(split.val), len(split.test)) == (16, 6, 4)
    assert all(e.file.startswith("val/") for e in split.val)


def test_a_missing_part_is_split_off_train(tmp_path):
    for label in ("mug", "shoe"):
        fill(tmp_path / "data" / "train" / label, 20)
        fill(tmp_path / "data" / "val" / label, 3)
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
    fill(shop / "lamp", 1)
    with pytest.raises(InvalidInput, match="'lamp' has 1 usable image"):
        split_of(shop)


def test_a_class_of_two_trains_and_validates(shop):
    fill(shop / "lamp", 2)
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


def test_damaged_files_are_named_and_left_out(shop, capsys):
    damage(shop)
    split = split_of(shop)
    assert split.damaged.keys() == {"mug/00.jpg", "mug/01.jpg", "shoe/00.jpg", "shoe/01.jpg"}
    assert len(split.train + split.val + split.test) == 46
    warning = capsys.readouterr().out
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
    steps = plan_steps(recipe, 64, seed=0)
    assert len(steps) == recipe.epochs * 4
    for epoch in range(1, recipe.epochs + 1):
        seen = [i for step in steps if step.epoch == epoch for i in step.examples]
        assert sorted(seen) == list(range(64))
    sizes = [step.size for step in steps]
    assert sizes == sorted(sizes)
    assert [sizes.count(size) for size in (64, 128, 224)] == [26, 12, 2]
    assert plan_steps(recipe, 64, seed=1) != steps


@pytest.mark.parametrize("images", [3, 17, 31])
def test_an_epoch_shows_every_image_in_full_batches(images):
    steps = plan_steps(FROM_SCRATCH, images, seed=0)
    assert {len(step.examples) for step in steps} == {FROM_SCRATCH.batch_size}
    first = [i for step in steps if step.epoch == 1 for i in step.examples]
    assert set(first) == set(range(images))


def test_an_image_twice_in_a_batch_is_drawn_anew(shop):
    split = split_of(shop)
    views = TrainingViews(split, FROM_SCRATCH, SPEC, seed=0)
    steps = plan_steps(FROM_SCRATCH, 1, seed=0)[:1]
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


def test_copies_of_a_picture_stay_in_one_part(tmp_path, capsys):
    for label in ("mug", "shoe"):
        fill(tmp_path / "shop" / label, 20, shade=100 * (label == "mug"))
        for path in list((tmp_path / "shop" / label).iterdir()):
            path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    split = split_of(tmp_path / "shop")
    train, held_out = ({e.sha256 for e in part} for part in (split.train, split.held_out))
    assert not train & held_out
    assert len(split.test) == 8
    assert "WARNING" not in capsys.readouterr().out


def test_copies_in_given_parts_or_classes_are_told(tmp_path, capsys):
    for part in ("train", "val"):
        for label in ("mug", "shoe"):
            fill(tmp_path / "data" / part / label, 4)
    split_of(tmp_path / "data")
    warnings = capsys.readouterr().out
    assert "4 pictures are in more than one of train, val and test" in warnings
    assert "4 pictures have more than one label, such as mug and shoe" in warnings


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


def test_a_class_folder_without_images_is_told(shop, capsys):
    (shop / "lamp").mkdir()
    (shop / "lamp" / "phone.heic").write_bytes(b"?")
    assert split_of(shop).labels == ("mug", "shoe")
    assert "lamp has no image" in capsys.readouterr().out


def test_a_name_that_is_not_utf8_is_named(shop):
    (shop / "mug" / "T\udcfcte.jpg").write_bytes(jpeg((1, 2, 3)))
    assert split_of(shop).damaged == {
        "mug/T\\udcfcte.jpg": "its name is not valid UTF-8: rename it"
    }


def test_batches_do_not_depend_on_the_number_of_workers(shop):
    split = split_of(shop)
    steps = plan_steps(FROM_SCRATCH, len(split.train), seed=0)[:3]
    views = TrainingViews(split, FROM_SCRATCH, SPEC, seed=0)
    here, there = (list(training_batches(views, steps, workers)) for workers in (0, 2))
    for (images, labels), (again, same) in zip(here, there, strict=True):
        assert images.shape == (16, 64, 64, 3)
        assert np.array_equal(images, again)
        assert np.array_equal(labels, same)
    assert not np.array_equal(here[0][0], here[1][0])
