"""Draws the sample catalogue: product pictures to train on where no photographs are at hand.

Every picture is a function of (seed, category, number): with the locked versions, the same command
draws the same catalogue anywhere. Products differ in colour, material, shape, scale and pose; they
stand on a studio background with a soft shadow, and are saved as JPEG of 300 to 800 pixels.

    python -m trainer.sample data/sample
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from packshot.atomic import whole_folder
from packshot.terminate import interrupt_on_sigterm
from trainer.easel import OVERSAMPLING, Colour, Easel, Material, Pose, arc, box, mirrored, smooth

Random = np.random.Generator

IMAGES_PER_CATEGORY = {"train": 64, "val": 10, "test": 20}

DYES: tuple[Colour, ...] = (
    (178, 34, 40), (214, 92, 38), (232, 176, 52), (92, 138, 62), (36, 104, 92), (44, 98, 168),
    (34, 46, 92), (112, 66, 138), (206, 112, 142), (122, 78, 50), (60, 60, 64), (224, 214, 196),
    (150, 160, 168), (98, 24, 44), (64, 160, 178), (188, 148, 104),
)  # fmt: skip
METALS: tuple[Colour, ...] = ((176, 180, 186), (206, 168, 92), (84, 86, 92), (196, 140, 116))
WOODS: tuple[Colour, ...] = ((178, 128, 80), (128, 82, 50), (214, 176, 128), (86, 58, 42))
PAPERS: tuple[Colour, ...] = (
    (248, 248, 248), (240, 240, 242), (244, 240, 234), (232, 236, 240), (238, 230, 222),
    (226, 232, 226), (240, 228, 228), (222, 226, 234),
)  # fmt: skip
PATTERNS = ("plain", "plain", "plain", "stripes", "hoops", "checks", "dots", "two-tone", "speckle")


def any_material(rng: Random) -> Material:
    colour, accent = (DYES[i] for i in rng.choice(len(DYES), 2, replace=False))
    gloss, pattern_name = rng.uniform(0, 0.7), str(rng.choice(PATTERNS))
    return Material(colour=colour, accent=accent, gloss=gloss, pattern=pattern_name)


def shaded(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def pick(rng: Random, colours: Sequence[Colour]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def bottle(easel: Easel, rng: Random) -> None:
    glass = replace(any_material(rng), pattern="plain", gloss=rng.uniform(0.4, 1))
    half, neck = rng.uniform(0.13, 0.19), rng.uniform(0.045, 0.07)
    shoulder, neck_top = rng.uniform(0.3, 0.42), rng.uniform(0.08, 0.12)
    body = [(0.5 + neck, neck_top), (0.5 + neck, shoulder - 0.08), (0.5 + half * 0.75, shoulder)]
    body += [(0.5 + half, shoulder + 0.08), (0.5 + half, 0.96), (0.5 + half - 0.03, 0.99)]
    easel.fill(mirrored(body), glass, "round")
    cap = replace(any_material(rng), pattern="plain")
    easel.fill(box(0.49 - neck, 0.02, 0.51 + neck, neck_top + 0.02, 0.012), cap, "round")
    top, bottom = shoulder + rng.uniform(0.12, 0.18), rng.uniform(0.78, 0.9)
    label = replace(any_material(rng), colour=pick(rng, PAPERS), gloss=0.1)
    easel.fill(box(0.5 - half, top, 0.5 + half, bottom), label, "round")
    for row in range(3):
        y = top + 0.06 + 0.05 * row
        easel.stroke(
            [(0.5 - half * 0.6, y), (0.5 + half * (0.5 - 0.2 * row), y)], 0.012, cap.colour
        )


def chair(easel: Easel, rng: Random) -> None:
    wood = Material(
        colour=pick(rng, WOODS + METALS), pattern="grain", accent=(70, 44, 30), gloss=0.3
    )
    far = shaded(wood.colour, 0.72)
    seat_y, back = rng.uniform(0.5, 0.58), rng.uniform(0.02, 0.08)
    leg = rng.uniform(0.03, 0.05)
    for x, foot in ((0.3, 0.28), (0.68, 0.72)):  # the far legs first: the seat hides their tops
        easel.stroke([(x, seat_y), (foot, 0.9)], leg, far)
    easel.stroke([(0.26, back), (0.24, seat_y)], leg, wood.colour)
    easel.stroke([(0.7, back), (0.72, seat_y)], leg, wood.colour)
    if rng.random() < 0.5:
        cover = any_material(rng)
        easel.fill(box(0.22, back, 0.74, rng.uniform(0.34, 0.44), 0.05), cover, "flat")
    else:
        cover = wood
        for i in range(rng.integers(2, 5)):
            y = back + 0.03 + 0.1 * i
            easel.fill(box(0.25, y, 0.71, y + 0.05, 0.015), wood)
    easel.fill([(0.24, seat_y), (0.74, seat_y), (0.84, seat_y + 0.1), (0.14, seat_y + 0.1)], cover)
    easel.fill(box(0.14, seat_y + 0.1, 0.84, seat_y + 0.14, 0.01), wood)
    for x, foot in ((0.18, 0.14), (0.8, 0.84)):
        easel.stroke([(x, seat_y + 0.12), (foot, 0.98)], leg, wood.colour)


def glasses(easel: Easel, rng: Random) -> None:
    frame = pick(rng, DYES + METALS)
    dye = shaded(pick(rng, DYES), 1.3)
    tint = Material(colour=dye if rng.random() < 0.6 else (205, 222, 230), gloss=0.9)
    rx, ry = rng.uniform(0.17, 0.21), rng.uniform(0.12, 0.19)
    width = rng.uniform(0.016, 0.04)
    square = rng.random() < 0.5
    for side in (-1, 1):  # temples fold away behind the lenses
        x = 0.5 + side * (0.25 + rx)
        easel.stroke(
            [(x, 0.46), (x - side * 0.05, 0.36), (x - side * 0.16, 0.33)], width, shaded(frame, 0.7)
        )
    for cx in (0.25, 0.75):
        rim = (
            box(cx - rx, 0.5 - ry, cx + rx, 0.5 + ry, min(rx, ry) * 0.5)
            if square
            else arc(cx, 0.5, rx, ry)
        )
        easel.fill(rim, tint, "ball")
        easel.stroke([*rim, rim[0]], width, frame)
    bridge = 0.25 - rx
    easel.stroke(arc(0.5, 0.48, bridge, 0.06, 180, 360), width, frame)


def lamp(easel: Easel, rng: Random) -> None:
    metal = Material(colour=pick(rng, METALS + WOODS + DYES), gloss=0.8)
    shade = replace(any_material(rng), gloss=0.1)
    bottom = rng.uniform(0.38, 0.48)
    easel.stroke([(0.5, bottom - 0.04), (0.5, 0.94)], rng.uniform(0.02, 0.045), metal.colour)
    if rng.random() < 0.5:
        easel.fill(arc(0.5, rng.uniform(0.7, 0.76), rng.uniform(0.08, 0.14), 0.14), metal, "ball")
    foot = rng.uniform(0.16, 0.24)
    easel.fill(arc(0.5, 0.95, foot, 0.045), metal, "round")
    top_half, bottom_half = rng.uniform(0.1, 0.2), rng.uniform(0.28, 0.38)
    cone = [(0.5 + top_half, 0.03), (0.5 + bottom_half, bottom)]
    dome = [(0.5, 0.04), (0.5 + 0.6 * bottom_half, 0.1), (0.5 + bottom_half, bottom)]
    easel.fill(arc(0.5, bottom, bottom_half, 0.05), Material(colour=(255, 236, 184), gloss=0.6))
    easel.fill(mirrored(cone if rng.random() < 0.6 else dome), shade, "round")


def mug(easel: Easel, rng: Random) -> None:
    clay = replace(any_material(rng), gloss=rng.uniform(0.2, 0.9))
    half, top, taper = rng.uniform(0.27, 0.34), rng.uniform(0.1, 0.22), rng.uniform(0.0, 0.07)
    reach = rng.uniform(0.13, 0.19)
    handle = arc(0.44 + half, 0.53, reach, 0.21, -80, 80)
    easel.stroke(handle, rng.uniform(0.055, 0.085), shaded(clay.colour, 0.8))
    rim = 0.06
    body = [(0.44 + half, top), *arc(0.44, 0.92, half - taper, rim, 0, 180), (0.44 - half, top)]
    easel.fill(body, clay, "round")
    easel.fill(arc(0.44, top, half, rim), Material(colour=shaded(clay.colour, 1.15), gloss=0.2))
    inside = Material(
        colour=(74, 44, 28) if rng.random() < 0.4 else shaded(clay.colour, 0.5), gloss=0.1
    )
    easel.fill(arc(0.44, top + 0.006, half - 0.03, rim - 0.018), inside)


def shoe(easel: Easel, rng: Random) -> None:
    upper, sole = any_material(rng), pick(rng, (*PAPERS, (60, 50, 46), (150, 100, 60)))
    ankle = rng.uniform(0.12, 0.36)  # a low one is a trainer, a high one a boot
    instep = rng.uniform(0.44, 0.52)
    outline = [(0.05, ankle), (0.2, ankle + 0.03), (0.36, ankle), (0.42, instep), (0.66, 0.6)]
    outline += [(0.9, 0.68), (0.98, 0.78), (0.96, 0.86), (0.5, 0.87), (0.04, 0.86), (0.03, 0.6)]
    easel.fill(smooth(outline), upper, "flat")
    trim = Material(colour=upper.accent, gloss=upper.gloss)
    easel.fill(smooth([(0.78, 0.7), (0.9, 0.68), (0.985, 0.78), (0.96, 0.86), (0.76, 0.86)]), trim)
    easel.fill(smooth([(0.03, 0.62), (0.14, 0.6), (0.18, 0.86), (0.04, 0.86)]), trim)
    heel = rng.uniform(0.0, 0.05)
    bottom = [
        (0.02, 0.85),
        (0.98, 0.85),
        (0.985, 0.92),
        (0.4, 0.92),
        (0.3, 0.93 + heel),
        (0.02, 0.93 + heel),
    ]
    easel.fill(bottom, Material(colour=sole, gloss=0.1))
    for i in range(rng.integers(3, 6)):
        x = 0.44 + 0.06 * i
        y = instep + 0.02 + 0.035 * i
        easel.stroke([(x - 0.035, y + 0.07), (x + 0.035, y + 0.01)], 0.016, sole)


def tshirt(easel: Easel, rng: Random) -> None:
    cloth = replace(any_material(rng), gloss=0.0)
    sleeve, hem = rng.uniform(0.34, 0.46), rng.uniform(0.2, 0.24)
    right = [(0.62, 0.06), (0.76, 0.1), (0.97, sleeve), (0.84, sleeve + 0.09), (0.73, 0.32)]
    right += [(0.5 + hem, 0.95)]
    easel.fill(mirrored(right), cloth, "round")
    dark = shaded(cloth.colour, 0.62)
    easel.fill(
        arc(0.5, 0.06, 0.12, rng.uniform(0.06, 0.12), 0, 180), Material(colour=dark, gloss=0.0)
    )
    for x in (0.27, 0.73):
        easel.stroke([(x, 0.32), (x, 0.42)], 0.008, dark)
    print_kind = rng.integers(3)
    ink = Material(colour=pick(rng, DYES), gloss=0.0)
    if print_kind == 1:
        easel.fill(arc(0.5, 0.42, 0.12, 0.12), ink)
    elif print_kind == 2:
        easel.fill(box(0.37, 0.34, 0.63, 0.5, 0.02), ink)


def watch(easel: Easel, rng: Random) -> None:
    strap, metal = any_material(rng), Material(colour=pick(rng, METALS), gloss=0.9)
    half, tip = rng.uniform(0.09, 0.13), rng.uniform(0.06, 0.085)
    ends = [(0.5 + tip, 0.01), (0.5 + half, 0.32), (0.5 + half, 0.68), (0.5 + tip, 0.99)]
    easel.fill(mirrored(ends), strap, "flat")
    r = rng.uniform(0.17, 0.22)
    easel.fill(box(0.5 + r, 0.47, 0.53 + r, 0.53, 0.01), metal)
    square = rng.random() < 0.35
    for inset, material in (
        (0, metal),
        (0.03, Material(colour=pick(rng, (*PAPERS, *DYES)), gloss=0.3)),
    ):
        size = r - inset
        case = (
            box(0.5 - size, 0.5 - size, 0.5 + size, 0.5 + size, size * 0.3)
            if square
            else arc(0.5, 0.5, size, size)
        )
        easel.fill(case, material, "ball" if inset == 0 else "flat")
        dial = material.colour
    ink = (30, 30, 34) if sum(dial) > 380 else (240, 240, 240)
    for tick in range(12):
        a = math.radians(30 * tick)
        inner, outer = (r - 0.055), (r - 0.04)
        ray = (math.sin(a), math.cos(a))
        easel.stroke([(0.5 + ray[0] * d, 0.5 + ray[1] * d) for d in (inner, outer)], 0.01, ink)
    for length, width in ((0.5, 0.016), (0.72, 0.01)):
        a = rng.uniform(0, 2 * math.pi)
        reach = (r - 0.04) * length
        easel.stroke(
            [(0.5, 0.5), (0.5 + reach * math.sin(a), 0.5 - reach * math.cos(a))], width, ink
        )


@dataclass(frozen=True, kw_only=True)
class Product:
    """One category."""

    draw: Callable[[Easel, Random], None]
    ground: float  # y at which it stands in the unit box; its shadow lies there
    width: float  # of the shadow, as a share of the unit box


CATALOGUE: dict[str, Product] = {
    "bottle": Product(draw=bottle, ground=0.99, width=0.36),
    "chair": Product(draw=chair, ground=0.96, width=0.74),
    "glasses": Product(draw=glasses, ground=0.68, width=0.9),
    "lamp": Product(draw=lamp, ground=0.98, width=0.46),
    "mug": Product(draw=mug, ground=0.96, width=0.7),
    "shoe": Product(draw=shoe, ground=0.94, width=0.96),
    "tshirt": Product(draw=tshirt, ground=0.96, width=0.6),
    "watch": Product(draw=watch, ground=0.98, width=0.3),
}


def studio(size: tuple[int, int], rng: Random) -> Image.Image:
    """A seamless paper backdrop with a fall-off of light, sometimes with a table edge."""
    paper = np.array(pick(rng, PAPERS), np.float32)
    y, x = np.mgrid[0:1:48j, 0:1:48j]
    light_x, light_y = rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.5)
    light = 1.03 - rng.uniform(0.04, 0.2) * np.hypot(x - light_x, y - light_y)
    if rng.random() < 0.35:
        light = light - rng.uniform(0.02, 0.07) * (y > rng.uniform(0.62, 0.8))
    backdrop = (paper * light[..., None]).clip(0, 255).astype(np.uint8)
    return Image.fromarray(backdrop).resize(size, Image.Resampling.BICUBIC)


def cast_shadow(canvas: Image.Image, pose: Pose, product: Product, rng: Random) -> None:
    """Darkens the paper under the product: a blurred ellipse, drawn small and enlarged."""
    small = (canvas.width // 16, canvas.height // 16)
    (x, y), half = (
        pose.place([(0.5, product.ground)])[0] / 16,
        product.width * pose.height * pose.squeeze / 34,
    )
    mask = Image.new("L", small)
    depth = rng.uniform(0.1, 0.18) * half + 1
    ImageDraw.Draw(mask).ellipse(
        (x - half, y - depth, x + half * 1.15, y + depth), fill=int(rng.uniform(90, 170))
    )
    mask = mask.filter(ImageFilter.GaussianBlur(1.6)).resize(canvas.size, Image.Resampling.BICUBIC)
    canvas.paste((70, 68, 72), (0, 0), mask)


def draw_picture(category: str, seed: int, number: int) -> Image.Image:
    """One catalogue picture, RGB, 300 to 800 pixels a side."""
    rng = np.random.default_rng([seed, sorted(CATALOGUE).index(category), number])
    product = CATALOGUE[category]
    short, stretch = rng.integers(300, 641), rng.uniform(1, 1.25)
    width, height = (int(short), int(short * stretch))
    if rng.random() < 0.4:
        width, height = height, width
    canvas = studio((width * OVERSAMPLING, height * OVERSAMPLING), rng)
    pose = Pose(
        centre=(canvas.width * rng.uniform(0.47, 0.53), canvas.height * rng.uniform(0.47, 0.53)),
        height=min(canvas.size) * rng.uniform(0.6, 0.84),
        squeeze=rng.uniform(0.86, 1.06),
        angle=math.radians(rng.uniform(-5, 5)),
        mirrored=bool(rng.random() < 0.5),
    )
    cast_shadow(canvas, pose, product, rng)
    product.draw(Easel(canvas, pose), rng)
    return canvas.reduce(OVERSAMPLING)


def save_picture(folder: Path, seed: int, place: tuple[str, str, int]) -> None:
    split, category, number = place
    picture = draw_picture(category, seed, number)
    quality = 82 + number % 13
    picture.save(folder / split / category / f"{category}-{number:03d}.jpg", quality=quality)


def places(counts: dict[str, int]) -> Iterator[tuple[str, str, int]]:
    """(split, category, number) of every picture; a number occurs in one split only."""
    for category in CATALOGUE:
        number = 0
        for split, count in counts.items():
            for _ in range(count):
                yield split, category, number
                number += 1


def draw_catalogue(
    folder: Path, *, counts: dict[str, int] = IMAGES_PER_CATEGORY, seed: int = 0
) -> None:
    """Draws train/, val/ and test/ into a new `folder`, which appears whole or not at all.

    Raises FileExistsError.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: remove it or choose another place")
    todo = list(places(counts))
    with whole_folder(folder) as unfinished, ProcessPoolExecutor() as pool:
        for split in counts:
            for category in CATALOGUE:
                (unfinished / split / category).mkdir(parents=True)
        drawn = pool.map(partial(save_picture, unfinished, seed), todo, chunksize=8)
        try:
            for _ in tqdm(
                drawn, total=len(todo), desc="drawing the sample", unit="image", disable=None
            ):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or it would draw the rest before it ends
            raise


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.sample", description="Draw a catalogue of product pictures."
    )
    parser.add_argument("folder", type=Path, help="folder to create")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    interrupt_on_sigterm()
    try:
        draw_catalogue(options.folder, seed=options.seed)
    except OSError as error:
        print(f"sample: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sample: interrupted, nothing was written", file=sys.stderr)
        return 130
    counts = ", ".join(f"{count} {split}" for split, count in IMAGES_PER_CATEGORY.items())
    print(f"{options.folder}: {counts} pictures of each of {', '.join(CATALOGUE)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
