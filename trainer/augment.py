"""Training views: random crop, flip, colour and more. All pixel code besides `packshot.image`.

With `fit` pad the crops are taken from the picture on its padded square: they show the padding that
evaluation and server show, and the ends of a long picture as often as its middle.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from packshot.image import ImageLimits, ImageSpec, Pixels, decode_rgb, open_image
from packshot.resizing import resized
from trainer.recipes import Recipe
from trainer.square import Box, square_view

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
    return random_view(rgb, size, recipe, spec, rng)


def random_view(
    rgb: Image.Image, size: int, recipe: Recipe, spec: ImageSpec, rng: np.random.Generator
) -> Pixels:
    """A random view of a decoded image, uint8 [size, size, 3]."""
    if spec.fit == "pad":
        box = random_box((max(rgb.size), max(rgb.size)), recipe, rng)
        view = square_view(rgb, box, size, spec)
    else:
        box = random_box(rgb.size, recipe, rng)
        view = resized(rgb, (size, size), box, spec.resizer)
    if recipe.flip and rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if recipe.colour_jitter:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            strength = 1 + recipe.colour_jitter * rng.uniform(-1, 1)
            view = enhance(view).enhance(strength)
    if recipe.trivial_augment:
        view = trivial_augment(view, rng)
    if recipe.erasing and rng.random() < recipe.erasing:
        return erased(np.array(view), rng)
    return np.asarray(view)


def random_box(size: tuple[int, int], recipe: Recipe, rng: np.random.Generator) -> Box:
    """A crop of random area and aspect inside `size`, as torchvision's RandomResizedCrop."""
    width, height = size
    for _ in range(TRIES):
        area = width * height * rng.uniform(*recipe.crop_area)
        aspect = math.exp(rng.uniform(*np.log(recipe.crop_aspect)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return (left, top, left + w, top + h)
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return (left, top, left + side, top + side)


def trivial_augment(view: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One operation of random strength, in the wide space of TrivialAugment (ICCV 2021)."""
    change = CHANGES[rng.integers(len(CHANGES))]
    return change(view, rng.random(), 1 if rng.random() < 0.5 else -1)


Change = Callable[[Image.Image, float, int], Image.Image]
"""(view, strength from 0 to 1, sign) to a view of the same size."""


def _moved(matrix: Callable[[float], tuple[float, ...]]) -> Change:
    def change(view: Image.Image, strength: float, sign: int) -> Image.Image:
        return view.transform(view.size, Image.Transform.AFFINE, matrix(sign * strength))

    return change


def _enhanced(enhance: type) -> Change:
    return lambda view, strength, sign: enhance(view).enhance(1 + 0.99 * sign * strength)


def _posterized(view: Image.Image, strength: float, _sign: int) -> Image.Image:
    return ImageOps.posterize(view, 8 - round(6 * strength))


def _solarized(view: Image.Image, strength: float, _sign: int) -> Image.Image:
    return ImageOps.solarize(view, round(255 * (1 - strength)))


# Strengths as in the paper's wide space: shifts in pixels, turns in degrees, bits that stay.
CHANGES: tuple[Change, ...] = (
    lambda view, _strength, _sign: view,
    _moved(lambda s: (1, 0.99 * s, 0, 0, 1, 0)),  # shear
    _moved(lambda s: (1, 0, 0, 0.99 * s, 1, 0)),
    _moved(lambda s: (1, 0, 32 * s, 0, 1, 0)),  # shift
    _moved(lambda s: (1, 0, 0, 0, 1, 32 * s)),
    lambda view, strength, sign: view.rotate(135 * sign * strength),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Sharpness),
    _posterized,
    _solarized,
    lambda view, _strength, _sign: ImageOps.autocontrast(view),
    lambda view, _strength, _sign: ImageOps.equalize(view),
)


def erased(view: Pixels, rng: np.random.Generator) -> Pixels:
    """A rectangle of 2 to 33 % of the area replaced by noise (Zhong et al., AAAI 2020)."""
    side = view.shape[0]
    area, aspect = side * side * rng.uniform(0.02, 0.33), math.exp(rng.uniform(-1.2, 1.2))
    width = min(side, round(math.sqrt(area * aspect)))
    height = min(side, round(math.sqrt(area / aspect)))
    left, top = rng.integers(side - width + 1), rng.integers(side - height + 1)
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    view[top : top + height, left : left + width] = noise
    return view
