"""Line charts as inline SVG: no script, no font, no file; colours come from the page's style sheet.

A chart draws series number ``i`` with the CSS classes ``series`` and ``s<i>``, axes with ``axis``, grid lines with
``grid`` and letters with ``tick`` and ``label``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 44, 20, 12, 38
MAX_POINTS = 400


@dataclass
class Series:
    """One line of a chart.

    Attributes:
        name: as in the legend.
        x, y: [P] numbers, in the order in which they are joined.
        faint: drawn thin and pale, behind the others, and left out of the legend.
        color: number of the colour; lines of one colour belong together.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    faint: bool = False


def line_chart(
    series: Sequence[Series],
    *,
    description: str,
    x_label: str = "",
    y_label: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    width: int = 460,
    height: int = 280,
) -> str:
    """An ``<svg>`` element that fills its container's width.

    Args:
        series: lines; points that are not finite interrupt a line, and series of no points are left out.
        description: what one would tell somebody who cannot see the chart.
        x_range, y_range: what the axes cover; by default the data, with y from 0.
        width, height: of the drawing, in its own units; letters have 12.
    """
    series = [line for line in series if len(line.x)]
    x_low, x_high = x_range or _range([line.x for line in series], None)
    y_low, y_high = y_range or _range([line.y for line in series], 0.0)
    right, bottom = width - MARGIN_RIGHT, height - MARGIN_BOTTOM
    top = MARGIN_TOP + (14 if y_label else 0)

    def place(x, y):
        return (
            MARGIN_LEFT + (np.asarray(x, dtype=float) - x_low) / (x_high - x_low) * (right - MARGIN_LEFT),
            bottom - (np.asarray(y, dtype=float) - y_low) / (y_high - y_low) * (bottom - top),
        )

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">']
    for value in _ticks(y_low, y_high, max(2, height // 45)):
        y = place(x_low, value)[1]
        parts.append(f'<line class="grid" x1="{MARGIN_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(MARGIN_LEFT - 7, y + 4, f"{value:g}", "tick", "end"))
    for value in _ticks(x_low, x_high, max(2, width // 100)):
        parts.append(_text(place(value, y_low)[0], bottom + 17, f"{value:g}", "tick", "middle"))
    parts.append(f'<line class="axis" x1="{MARGIN_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    for line in sorted(series, key=lambda line: not line.faint):
        style = f"series s{line.color}" + (" faint" if line.faint else "")
        parts.append(f'<path class="{style}" d="{_path(*place(*_thin(line.x, line.y)))}"/>')
    parts.append(_text((MARGIN_LEFT + right) / 2, height - 5, x_label, "label", "middle"))
    # Above the axis: an upright label reads more easily than one turned on its side.
    parts.append(_text(MARGIN_LEFT - 7, MARGIN_TOP, y_label, "label", "start"))
    return "".join([*parts, "</svg>"])


def legend(series: Sequence[Series]) -> str:
    """The names of the lines that are not faint, as an HTML list with the lines' colours."""
    items = "".join(f'<li class="s{line.color}">{escape(line.name)}</li>' for line in series if not line.faint)
    return f'<ul class="legend">{items}</ul>'


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Mean over a window of at most ``window`` neighbours around each value; [P] float64, as long as ``values``."""
    values = np.asarray(values, dtype=float)
    half = max(0, window // 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _range(columns: list[Sequence[float]], start: float | None) -> tuple[float, float]:
    values = np.concatenate([np.asarray(column, dtype=float) for column in columns] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low = values.min() if start is None else min(start, values.min())
    high = values.max() if start is None else values.max() * 1.05
    return (low, high) if high > low else (low, low + 1)


def _ticks(low: float, high: float, count: int) -> np.ndarray:
    """Round numbers between low and high: multiples of 1, 2 or 5 times a power of ten, about ``count`` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return np.round(np.arange(first, last + 1) * step, 12)


def _thin(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int))
    return np.asarray(x, dtype=float)[keep], np.asarray(y, dtype=float)[keep]


def _path(x: np.ndarray, y: np.ndarray) -> str:
    steps, pen_down = [], False
    for px, py in zip(x, y):
        if math.isfinite(px) and math.isfinite(py):
            steps.append(f"{'L' if pen_down else 'M'}{px:.1f} {py:.1f}")
        pen_down = math.isfinite(px) and math.isfinite(py)
    return "".join(steps)


def _text(x: float, y: float, content: str, style: str, anchor: str) -> str:
    if not content:
        return ""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
