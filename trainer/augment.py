"""Training views: random crop, flip and colour. The only pixel code besides `packshot.image`."""

import math

import numpy as np
from PIL import Image, ImageEnhance

from packshot.image import ImageLimits, ImageSpec, Pixels, decode_rgb, open_image
from trainer.recipes import Recipe

TRIES = 10


def training_view(
    encoded: bytes,
    size: int,
    recipe: Recipe,
    spec: ImageSpec,
    rng: np.random.Generator,
    limits: ImageLimits,
) -> Pixels:
    """A random view of an encoded image, uint8 [size, size, 3]. Raises ImageError."""
    with open_image(encoded, limits) as image:
        # Reduced scale is enough as long as the smallest crop keeps `size` pixels.
        rgb, _ = decode_rgb(image, spec, math.ceil(size / math.sqrt(recipe.crop_area[0])))
    return random_view(rgb, size, recipe, rng)


def random_view(rgb: Image.Image, size: int, recipe: Recipe, rng: np.random.Generator) -> Pixels:
    """A random view of a decoded image, uint8 [size, size, 3]."""
    box = random_box(rgb.size, recipe, rng)
    view = rgb.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        strength = 1 + recipe.colour_jitter * rng.uniform(-1, 1)
        view = enhance(view).enhance(strength)
    return np.asarray(view)


def random_box(
    size: tuple[int, int], recipe: Recipe, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A crop of random area and aspect inside `size`, as torchvision's RandomResizedCrop."""
    width, height = size
    for _ in range(TRIES):
        area = width * height * rng.uniform(*recipe.crop_area)
        aspect = math.exp(rng.uniform(*np.log(recipe.crop_aspect)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return (int(left), int(top), int(left) + w, int(top) + h)
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return (left, top, left + side, top + side)
