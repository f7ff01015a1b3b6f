"""Charts as SVG: lines over a logarithmic axis and one that is logarithmic or linear.

The same data gives the same bytes.

Knows nothing of what is drawn. Text stays text, so that it can be read, searched and scaled; the
ground is white whatever the page around is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Self

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 84, 52
LINE_HEIGHT = 18
# Lines of more points than this have no marks.
MARKS_MAX = 50
CHARACTER_WIDTH = 6.6
INK, FAINT, GRID = "#1f2937", "#6b7280", "#e5e7eb"


@dataclass(frozen=True, slots=True)
class Point:
    """A median, with the least and the most beside it."""

    x: float
    y: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Line:
    """A series of points.

    Attributes:
        label: what the legend calls it.
        color: of line and marks.
        points: by rising x; none has a y of 0 or less, or an x where that axis is logarithmic.
        dashed: of another kind than those that are not.
    """

    label: str
    color: str
    points: Sequence[Point]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A level that is not to be passed, at one x or all along."""

    label: str
    y: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over two axes.

    Attributes:
        title: what is shown.
        x_label: what the numbers below mean.
        y_label: what the numbers to the left mean.
        lines: what is drawn; those without points are left out.
        targets: levels beside them.
        linear: the axis across is, as for a time.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    targets: Sequence[Target] = ()
    linear: bool = False

    def svg(self) -> str:
        """The whole file. ValueError when there is no point in it."""
        lines = [line for line in self.lines if line.points]
        if not lines:
            raise ValueError(f"nothing to draw for {self.title!r}")
        points = [point for line in lines for point in line.points]
        kind = LinearAxis if self.linear else Axis
        across = kind.around((point.x for point in points), LEFT, WIDTH - RIGHT)
        levels = [value for point in points for value in (point.least, point.most)]
        levels += [target.y for target in self.targets]
        up = Axis.around(levels, HEIGHT - BOTTOM, TOP)
        parts = [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
                f' font-family="system-ui, sans-serif" font-size="12" fill="{INK}">'
            ),
            f"<title>{escape(self.title)}</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>',
            _text(16, 26, self.title, size=15, weight="600"),
            *self._grid(across, up),
            *self._legend(lines),
        ]
        for line in lines:
            parts += _drawn(line, across, up)
        for target in self.targets:
            y = up.place(target.y)
            parts.append(_segment(LEFT, y, WIDTH - RIGHT, y, "#b91c1c", dashes="2 4"))
            parts.append(_text(WIDTH - RIGHT, y - 5, target.label, "end", color="#b91c1c"))
        return "\n".join([*parts, "</svg>"]) + "\n"

    def _grid(self, across: Axis, up: Axis) -> Iterable[str]:
        bottom = HEIGHT - BOTTOM
        for value in up.ticks():
            y = up.place(value)
            yield _segment(LEFT, y, WIDTH - RIGHT, y, GRID)
            yield _text(LEFT - 8, y + 4, short(value), "end", color=FAINT)
        for value in across.ticks():
            x = across.place(value)
            yield _segment(x, TOP, x, bottom, GRID)
            yield _text(x, bottom + 18, short(value), "middle", color=FAINT)
        yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, self.x_label, "middle")
        yield _text(16, TOP - 12, self.y_label, color=FAINT)

    def _legend(self, lines: Sequence[Line]) -> Iterable[str]:
        x = 16.0
        for line in lines:
            y = 50
            yield _segment(x, y - 4, x + 22, y - 4, line.color, 2, "5 4" if line.dashed else "")
            yield _text(x + 28, y, line.label)
            x += 46 + CHARACTER_WIDTH * len(line.label)


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic axis from `low` at `start` to `high` at `stop`, in units of the drawing."""

    low: float
    high: float
    start: float
    stop: float

    @classmethod
    def around(cls, values: Iterable[float], start: float, stop: float) -> Self:
        """One that holds all values, with a little air; ticks are inside."""
        known = list(values)
        low, high = min(known), max(known)
        if high / low < 10:  # at least a decade: a small change shall look like one
            middle = math.sqrt(low * high)
            low, high = min(low, middle / 3.2), max(high, middle * 3.2)
        return cls(low / 1.15, high * 1.15, start, stop)

    def place(self, value: float) -> float:
        """Where a value lies."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Powers of ten inside, and 2 and 5 times these where there is room."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high / self.low < 150 else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        return [tick for tick in ticks if self.low <= tick <= self.high]


class LinearAxis(Axis):
    """A linear axis, from the least value to the largest."""

    @classmethod
    def around(cls, values: Iterable[float], start: float, stop: float) -> Self:
        """One that holds all values."""
        known = list(values)
        low, high = min(known), max(known)
        return cls(low, high if high > low else low + 1, start, stop)

    def place(self, value: float) -> float:
        """Where a value lies."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten; from four to ten of them, or one more."""
        decade = 10.0 ** math.floor(math.log10((self.high - self.low) / 10))
        step = next(
            size * decade
            for size in (1, 2, 5, 10)
            if (self.high - self.low) / (size * decade) <= 10
        )
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]


def short(value: float) -> str:
    """A tick's number: 0.05, 2, 500, 10 k, 5 M."""
    for limit, unit in ((1e6, " M"), (1e4, " k")):
        if value >= limit:
            return f"{value / (1e6 if unit == ' M' else 1e3):g}{unit}"
    return f"{value:g}"


def _drawn(line: Line, across: Axis, up: Axis) -> Iterable[str]:
    places = [(across.place(point.x), up.place(point.y)) for point in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
    yield (
        f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="2"'
        f' stroke-linejoin="round"{dashes}/>'
    )
    for (x, y), point in zip(places, line.points, strict=True):
        if point.most > point.least:
            yield _segment(x, up.place(point.least), x, up.place(point.most), line.color)
        if len(places) <= MARKS_MAX:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{line.color}"/>'


def _segment(
    x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1, dashes: str = ""
) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"'
        f' stroke-width="{width:g}"{dashed}/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    *,
    size: int = 12,
    weight: str = "400",
    color: str = INK,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
        f' font-weight="{weight}" fill="{color}" stroke="#ffffff" stroke-width="3"'
        f' paint-order="stroke">{escape(text)}</text>'
    )
