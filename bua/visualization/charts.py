"""Draws line charts with matplotlib, as SVG elements of a page.

The colours of a chart are variables of the page's style sheet, so that they follow its light and its dark mode. The
labels are text in the page's font, not outlines. The same data always give the same bytes.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

# Matplotlib draws with these colours, which are then replaced by the variables of the style sheet.
SOFT, LINE = "#010203", "#010204"
SERIES = "#0102f{}"
VARIABLES = {SOFT: "var(--soft)", LINE: "var(--line)"} | {SERIES.format(i): f"var(--c{i})" for i in range(6)}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bua",
    "font.size": 12,
    "path.simplify_threshold": 0.5,
    "text.color": SOFT,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "lines.solid_joinstyle": "round",
    "xtick.color": SOFT,
    "xtick.bottom": False,
    "ytick.color": SOFT,
    "ytick.left": False,
}


@dataclass
class Series:
    """One line of a chart.

    Attributes:
        name: Name of the line in the legend.
        x, y: [P] numbers. The points are joined in this order; numbers that are not finite interrupt the line.
        color: Number of the line's colour, 0 to 5: the variables ``--c0`` to ``--c5`` of the style sheet.
        faint: Whether to draw the line thin and pale, behind the others, and to leave it out of the legend.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    color: int = 0
    faint: bool = False


@dataclass
class Chart:
    """A line chart.

    Attributes:
        title: Title above the chart.
        description: Description for readers who cannot see the chart.
        series: Lines of the chart.
        x_range, y_range: First and last value of each axis.
        x_label, y_label: Labels of the axes; the one of the y axis is written above it.
        detail: Text that follows the title.
        width, height: Size of the drawing, in units of which letters are 12 high.
    """

    title: str
    description: str
    series: Sequence[Series]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_label: str = ""
    y_label: str = ""
    detail: str = ""
    width: int = 460
    height: int = 280

    @property
    def legend(self) -> list[Series]:
        """The lines of the legend. A single line needs none, as the title names it."""
        named = [line for line in self.series if not line.faint]
        return named if len(named) > 1 else []

    def svg(self) -> str:
        """Returns the drawing as an ``<svg>`` element."""
        with style.context(STYLE):
            # A matplotlib figure has 72 units per inch.
            figure = Figure(figsize=(self.width / 72, self.height / 72), layout="constrained")
            axes = figure.subplots()
            axes.set(xlim=self.x_range, ylim=self.y_range, xlabel=self.x_label)
            axes.set_title(self.y_label, loc="left", fontsize=12)
            for line in self.series:
                width, alpha, order = (1, 0.25, 2.0) if line.faint else (2, 1, 2.1)
                color = SERIES.format(line.color)
                axes.plot(line.x, line.y, color=color, linewidth=width, alpha=alpha, zorder=order)
            file = io.StringIO()
            no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
        return _embedded(file.getvalue())


def smooth(values: Sequence[float] | np.ndarray, window: int) -> np.ndarray:
    """Returns the mean over about ``window`` neighbours around each value, fewer at the ends; [P] float64."""
    numbers = np.asarray(values, dtype=float)
    half = max(0, window // 2)
    total = np.concatenate([[0.0], np.cumsum(numbers)])
    index = np.arange(len(numbers))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(numbers))
    return (total[high] - total[low]) / (high - low)


def _embedded(document: str) -> str:
    """Returns the ``<svg>`` element of an SVG document of matplotlib, as a part of an HTML page."""
    svg = document[document.index("<svg") :]
    # The style sheet sets the size, and ids would have to be unique in the page. No line leaves the axes' area, so that
    # nothing needs to be clipped.
    svg = re.sub(r' (id|clip-path|version|width|height|xmlns[:\w]*)="[^"]*"', "", svg)
    svg = re.sub(r"<!--.*?-->|<defs>.*?</defs>|font-family:[^;]*; |\n\s*", "", svg, flags=re.DOTALL)
    return re.sub("|".join(VARIABLES), lambda found: VARIABLES[found[0]], svg)
