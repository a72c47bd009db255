import numpy as np
from PIL import Image

from trainer.sample import CATALOGUE, IMAGES_PER_CATEGORY, draw_catalogue, draw_picture


def test_the_catalogue_is_large_and_varied_enough():
    assert len(CATALOGUE) >= 8
    assert IMAGES_PER_CATEGORY["train"] >= 60
    assert min(IMAGES_PER_CATEGORY.values()) > 0


def test_a_picture_is_a_function_of_seed_category_and_number():
    one, same, other = (draw_picture("mug", seed, 3) for seed in (0, 0, 1))
    assert np.array_equal(np.asarray(one), np.asarray(same))
    assert one.size != other.size or not np.array_equal(np.asarray(one), np.asarray(other))


def test_every_category_draws_something_on_its_background():
    for category in CATALOGUE:
        for number in range(4):
            picture = draw_picture(category, 0, number)
            assert min(picture.size) >= 300
            assert max(picture.size) <= 801
            pixels = np.asarray(picture.resize((64, 64))).astype(int)
            border, middle = pixels[:3].mean(axis=(0, 1)), pixels[16:48, 16:48]
            assert np.abs(middle - border).max() > 40, category


def test_the_folder_appears_whole(tmp_path):
    draw_catalogue(tmp_path / "sample", counts={"train": 2, "test": 1})
    files = sorted((tmp_path / "sample").rglob("*.jpg"))
    assert len(files) == 3 * len(CATALOGUE)
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
    with Image.open(files[0]) as image:
        assert image.format == "JPEG"
    assert len({path.read_bytes() for path in files}) == len(files), "no picture twice"
