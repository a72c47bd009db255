"""Draws the sample catalogue: product pictures to train on where no photographs are at hand.

Every picture is a function of (seed, category, number), so the same command draws the same
catalogue anywhere. Products are drawn as outlines in a unit box, filled with lit materials,
posed, set on a studio background with a soft shadow, and saved as JPEG of 300 to 800 pixels.

    python -m trainer.sample data/sample
"""

import argparse
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from packshot.atomic import whole_folder

Points = Sequence[tuple[float, float]]
Colour = tuple[int, int, int]
Random = np.random.Generator

IMAGES_PER_CATEGORY = {"train": 64, "val": 10, "test": 20}
OVERSAMPLING = 2  # drawn twice as large and averaged down: Pillow's shapes have hard edges

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


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a surface is made of. `gloss` runs from 0 (matt) to 1 (polished)."""

    colour: Colour
    accent: Colour = (255, 255, 255)
    pattern: str = "plain"
    gloss: float = 0.3


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the unit box of the product lies on the canvas; lengths in canvas pixels."""

    centre: tuple[float, float]
    height: float
    squeeze: float  # width over height: a slight turn away from the camera
    angle: float  # radians
    mirrored: bool

    def place(self, points: Points) -> np.ndarray:
        """Canvas coordinates, float [N, 2], of points in the unit box."""
        offsets = (np.asarray(points, dtype=float) - 0.5) * self.height
        offsets[:, 0] *= -self.squeeze if self.mirrored else self.squeeze
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return offsets @ np.array([[cos, sin], [-sin, cos]]) + self.centre


class Easel:
    """A canvas that fills outlines given in the product's unit box (x to the right, y down)."""

    def __init__(self, background: Image.Image, pose: Pose) -> None:
        self.canvas = background
        self.pose = pose

    def fill(self, outline: Points, material: Material, form: str = "flat") -> None:
        """Fills a closed outline; `form` ("flat", "round", "ball") says how light falls on it."""
        placed = self.pose.place(outline)
        left, top = np.floor(placed.min(axis=0)).astype(int)
        right, bottom = np.ceil(placed.max(axis=0)).astype(int) + 1
        size = (int(right - left), int(bottom - top))
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in placed], fill=255)
        self.canvas.paste(lit_surface(size, material, form), (int(left), int(top)), mask)

    def stroke(self, points: Points, width: float, colour: Colour) -> None:
        """Draws a line of `width` (share of the product's height) with round ends."""
        placed = [tuple(point) for point in self.pose.place(points)]
        thickness = max(1, round(width * self.pose.height))
        draw = ImageDraw.Draw(self.canvas)
        draw.line(placed, fill=colour, width=thickness, joint="curve")
        for x, y in (placed[0], placed[-1]):
            r = thickness / 2 - 0.5
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def lit_surface(size: tuple[int, int], material: Material, form: str) -> Image.Image:
    """A texture of `size` = (width, height) canvas pixels: the pattern times the light on it."""
    # Half the canvas size is the final size: finer texture would be averaged away.
    width, height = (max(2, round(side / OVERSAMPLING)) for side in size)
    u = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    v = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    accent_share = pattern(material.pattern, u, v, width / height)[..., None]
    colour, accent = (np.array(c, np.float32) for c in (material.colour, material.accent))
    pixels = colour + accent_share * (accent - colour)
    light, shine = lighting(form, u, v)
    pixels = pixels * light[..., None] + 190 * material.gloss * shine[..., None]
    texture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return texture.resize(size, Image.Resampling.BILINEAR)


def lighting(form: str, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse light (about 1) and highlight (0 to 1) over a surface, each float [height, width]."""
    if form == "round":  # an upright cylinder, lit from the upper left
        light = 0.55 + 0.55 * np.sin(np.pi * (0.12 + 0.8 * u)) + 0.04 * (1 - v)
        return light, np.exp(-(((u - 0.28) / 0.07) ** 2)) * (0.6 + 0.4 * (1 - v))
    if form == "ball":
        distance = np.hypot(u - 0.36, v - 0.32)
        return 1.15 - 0.65 * distance**1.3, np.exp(-((distance / 0.16) ** 2))
    return 1.06 - 0.18 * v - 0.05 * u, 0.25 * np.exp(-(((u + v - 0.7) / 0.25) ** 2))


def pattern(name: str, u: np.ndarray, v: np.ndarray, aspect: float) -> np.ndarray:
    """Share of the accent colour, float [height, width], 0 to 1."""
    x = u * aspect
    nothing = np.zeros((v.shape[0], u.shape[1]), np.float32)
    if name == "stripes":
        return nothing + (np.sin(x * 44) > 0.3)
    if name == "hoops":
        return nothing + (np.sin(v * 40) > 0.3)
    if name == "checks":
        return 0.5 * (np.sin(x * 36) > 0) + 0.5 * (np.sin(v * 36) > 0)
    if name == "dots":
        return nothing + (np.hypot(x * 9 % 1 - 0.5, v * 9 % 1 - 0.5) < 0.26)
    if name == "two-tone":
        return nothing + (v > 0.58)
    if name == "speckle":
        return 0.6 * (np.sin(x * 271 + 9 * np.sin(v * 173)) * np.sin(v * 311 + 7 * x) > 0.72)
    if name == "grain":
        return 0.35 * (0.5 + 0.5 * np.sin(34 * x + 5 * np.sin(4 * v + 2 * x) + 60 * x * x))
    return nothing


# Outlines, in the unit box.


def arc(
    cx: float, cy: float, rx: float, ry: float, start: float = 0, end: float = 360
) -> list[tuple[float, float]]:
    """Points of an elliptic arc; degrees, clockwise on the canvas from three o'clock."""
    angles = np.radians(np.linspace(start, end, 40))
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def box(
    x0: float, y0: float, x1: float, y1: float, radius: float = 0.0
) -> list[tuple[float, float]]:
    """A rectangle with rounded corners."""
    if radius == 0:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    corners = ((x1, y0, -90), (x1, y1, 0), (x0, y1, 90), (x0, y0, 180))
    points = []
    for x, y, start in corners:
        cx = x - radius if x == x1 else x + radius
        cy = y - radius if y == y1 else y + radius
        points += arc(cx, cy, radius, radius, start, start + 90)
    return points


def smooth(corners: Points) -> list[tuple[float, float]]:
    """A closed Catmull-Rom curve through the corners."""
    p = np.asarray(corners, dtype=float)
    before, after, second = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = np.linspace(0, 1, 10, endpoint=False)[None, :, None]
    curve = 0.5 * (
        2 * p[:, None]
        + (after - before)[:, None] * t
        + (2 * before - 5 * p + 4 * after - second)[:, None] * t**2
        + (3 * p - before - 3 * after + second)[:, None] * t**3
    )
    return [(float(x), float(y)) for x, y in curve.reshape(-1, 2)]


def mirrored(right_side: Points) -> list[tuple[float, float]]:
    """A symmetric outline from its right half, listed from top to bottom."""
    return [*right_side, *((1 - x, y) for x, y in reversed(right_side))]


# The products. Each draws itself into the unit box.


def any_material(rng: Random) -> Material:
    colour, accent = (DYES[i] for i in rng.choice(len(DYES), 2, replace=False))
    gloss, pattern_name = rng.uniform(0, 0.7), str(rng.choice(PATTERNS))
    return Material(colour=colour, accent=accent, gloss=gloss, pattern=pattern_name)


def shaded(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def pick(rng: Random, colours: Sequence[Colour]) -> Colour:
    return colours[rng.integers(len(colours))]


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
    tint = replace(any_material(rng), pattern="plain", gloss=0.9)
    tint = Material(
        colour=shaded(tint.colour, 1.3) if rng.random() < 0.6 else (205, 222, 230), gloss=0.9
    )
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
    """One category. `height`, `width`: the share of the unit box that the drawing covers."""

    draw: Callable[[Easel, Random], None]
    ground: float  # y at which it stands in the unit box; its shadow lies there
    width: float


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
    """Draws train/, val/ and test/ into a new `folder`, which appears whole or not at all."""
    todo = list(places(counts))
    with whole_folder(folder) as unfinished:
        for split in counts:
            for category in CATALOGUE:
                (unfinished / split / category).mkdir(parents=True)
        with ProcessPoolExecutor() as pool:
            drawn = pool.map(partial(save_picture, unfinished, seed), todo, chunksize=8)
            deque(tqdm(drawn, total=len(todo), desc="drawing the sample", unit="image"), maxlen=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.sample", description="Draw a catalogue of product pictures."
    )
    parser.add_argument("folder", type=Path, help="folder to create")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw_catalogue(options.folder, seed=options.seed)
    counts = ", ".join(f"{count} {split}" for split, count in IMAGES_PER_CATEGORY.items())
    print(f"{options.folder}: {counts} pictures of each of {', '.join(CATALOGUE)}")


if __name__ == "__main__":
    main()
