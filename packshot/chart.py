"""A chart as inline SVG: a frame with its axes, and what is drawn in it.

Texts are escaped here. Colours of text and grid come from the page (`--ink`, `--faint`, `--rule`),
or are those of a white one.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

import msgspec

COLOURS = ("#3566d6", "#d65a35", "#2e9e6b", "#9a6bd0")
WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 30, 36  # margins around the plotted area
STEPS = (1, 2, 5)  # of ticks that are easy to read, times a power of ten
MOST_TICKS = 5

STYLE = """
.charts{display:flex;gap:1.5rem 2rem;flex-wrap:wrap}.charts svg{max-width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--faint,#5a6376)}
svg .title{font-weight:600;fill:var(--ink,#1d2330)}
svg .aside{paint-order:stroke;stroke:var(--paper,#fff);stroke-width:3px}
svg .end{text-anchor:end}svg .middle{text-anchor:middle}
.grid{stroke:var(--rule,#e6eaf0)}.dashed{stroke:#8b95a7;stroke-dasharray:3 3}
"""

Point = tuple[float, float]
Scale = Callable[[float], float]
Tick = Callable[[float], str]


def linear(value: float) -> float:
    return value


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """A chart's plotted area; `x` and `y`: the values from edge to edge.

    Along a scale, such as math.log10, values lie as far apart as what it makes of them. Ticks are
    at the values given, or at the quarters; one of x may have two lines where it has no `x_label`.
    """

    title: str
    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    tick: Tick
    x_tick: Tick | None = None  # none where x counts evaluations
    x_ticks: tuple[float, ...] = ()
    y_ticks: tuple[float, ...] = ()
    x_scale: Scale = linear
    y_scale: Scale = linear

    def place(self, x: float, y: float) -> Point:
        """In pixels."""
        across = _share(self.x_scale, self.x, x)
        up = _share(self.y_scale, self.y, y)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    def inside(self, points: Sequence[Point]) -> list[Point]:
        """In pixels; values below or above the chart lie on its edge."""
        low, high = self.y
        return [self.place(x, min(max(y, low), high)) for x, y in points]

    def drawn(self, marks: Sequence[str]) -> str:
        inside = "".join((self._grid(), *marks))
        title = escape(self.title)
        return (
            f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{title}"><text x="{LEFT}" y="14" class="title">{title}</text>'
            f"{inside}</svg>"
        )

    def _grid(self) -> str:
        middle = (LEFT + WIDTH - RIGHT) / 2
        marks = [self._y_tick(value) for value in self.y_ticks or _quarters(self.y)]
        if self.x_tick is not None:
            ticks = self.x_ticks or _quarters(self.x)
            marks += [self._x_tick(value, self.x_tick) for value in ticks]
        marks.append(
            f'<text x="{middle}" y="{HEIGHT - 6}" class="middle">{escape(self.x_label)}</text>'
        )
        return "".join(marks)

    def _y_tick(self, value: float) -> str:
        left, y = self.place(self.x[0], value)
        return (
            f'<line x1="{left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{escape(self.tick(value))}</text>'
        )

    def _x_tick(self, value: float, tick: Tick) -> str:
        x, bottom = self.place(value, self.y[0])
        return "".join(
            f'<text x="{x:.1f}" y="{bottom + down}" class="middle">{escape(line)}</text>'
            for down, line in zip((14, 26), tick(value).split("\n"), strict=False)
        )


def _share(scale: Scale, edges: tuple[float, float], value: float) -> float:
    low, high = map(scale, edges)
    return (scale(value) - low) / (high - low)


def _quarters(edges: tuple[float, float]) -> list[float]:
    low, high = edges
    return [low + share * (high - low) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


def even_ticks(highest: float) -> tuple[float, ...]:
    """From 0 to a round number at or above `highest`; to 1 if that is 0."""
    least = (highest or 1.0) / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(each * power for each in (*STEPS, 10) if each * power >= least)
    return tuple(step * i for i in range(math.ceil(round((highest or 1.0) / step, 9)) + 1))


def log_ticks(lowest: float, highest: float) -> tuple[float, ...]:
    """1, 2, 5, 10 and so on around both, which are above 0; of a wide range the powers of ten."""
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    steps = STEPS if len(powers) <= 4 else (1,)
    ladder = [step * 10.0**power for power in powers for step in steps]
    first = max(i for i, value in enumerate(ladder) if value <= lowest)
    last = min((i for i, value in enumerate(ladder) if value >= highest), default=len(ladder) - 1)
    return tuple(ladder[first : max(last, first + 1) + 1])


def polyline(frame: Frame, points: Sequence[Point], colour: str) -> str:
    """A dot where there is one point only."""
    placed = [frame.place(x, y) for x, y in points]
    if len(placed) == 1:
        x, y = placed[0]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
    path = _path(placed)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def area(frame: Frame, outline: Sequence[Point], colour: str) -> str:
    """An interval around a line: its lower edge from left to right, its upper one back."""
    path = _path(frame.inside(outline))
    return f'<polygon points="{path}" fill="{colour}" fill-opacity="0.15"/>'


def dot(frame: Frame, point: Point, colour: str, told: str) -> str:
    """`told` shows under the mouse."""
    ((x, y),) = frame.inside([point])
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{escape(told)}</title>'
        "</circle>"
    )


def bar(frame: Frame, edges: tuple[float, float], value: float, colour: str, told: str) -> str:
    """From the frame's bottom up to `value`; `told` shows under the mouse."""
    left, top = frame.place(edges[0], value)
    right, bottom = frame.place(edges[1], frame.y[0])
    return (
        f'<rect x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(0.5, right - left - 1):.1f}" '
        f'height="{bottom - top:.1f}" fill="{colour}"><title>{escape(told)}</title></rect>'
    )


def dashed(frame: Frame, start: Point, end: Point, text: str = "") -> str:
    """A line, and a text at its end; nothing of a line that lies outside the frame."""
    low, high = frame.y
    if not all(frame.x[0] <= x <= frame.x[1] and low <= y <= high for x, y in (start, end)):
        return ""
    (x1, y1), (x2, y2) = frame.place(*start), frame.place(*end)
    line = f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="dashed"/>'
    if not text:
        return line
    aside, anchor = (-4, "end") if x2 > WIDTH / 2 else (4, "start")  # inside the picture
    y = max(y2 - 4, TOP + 9)
    return (
        f'{line}<text x="{x2 + aside:.1f}" y="{y:.1f}" class="aside {anchor}">{escape(text)}</text>'
    )


def legend(names: Sequence[str], column: int = 90) -> list[str]:
    """At the upper right, in columns of so many pixels; the colours are those of COLOURS."""
    return [
        f'<text x="{WIDTH - RIGHT - column * (len(names) - 1 - i)}" y="14" class="end" '
        f'style="fill:{COLOURS[i]}">{escape(name)}</text>'
        for i, name in enumerate(names)
    ]


def side_by_side(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _path(placed: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
