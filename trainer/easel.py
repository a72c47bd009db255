"""Drawing: outlines in a unit box, filled with lit materials, on a canvas.

A product is drawn in coordinates from 0 to 1, x to the right and y down; its pose places that box
on the canvas. The canvas is `OVERSAMPLING` times as large as the picture will be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Points = Sequence[tuple[float, float]]
Colour = tuple[int, int, int]

OVERSAMPLING = 2  # drawn twice as large and averaged down: Pillow's shapes have hard edges


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
        placed: np.ndarray = offsets @ np.array([[cos, sin], [-sin, cos]]) + self.centre
        return placed


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
    shares: np.ndarray = np.zeros((v.shape[0], u.shape[1]), np.float32)
    if name == "stripes":
        shares = shares + (np.sin(x * 44) > 0.3)
    elif name == "hoops":
        shares = shares + (np.sin(v * 40) > 0.3)
    elif name == "checks":
        shares = 0.5 * (np.sin(x * 36) > 0) + 0.5 * (np.sin(v * 36) > 0)
    elif name == "dots":
        shares = shares + (np.hypot(x * 9 % 1 - 0.5, v * 9 % 1 - 0.5) < 0.26)
    elif name == "two-tone":
        shares = shares + (v > 0.58)
    elif name == "speckle":
        shares = 0.6 * (np.sin(x * 271 + 9 * np.sin(v * 173)) * np.sin(v * 311 + 7 * x) > 0.72)
    elif name == "grain":
        shares = 0.35 * (0.5 + 0.5 * np.sin(34 * x + 5 * np.sin(4 * v + 2 * x) + 60 * x * x))
    return shares


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
