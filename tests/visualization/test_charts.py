import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bua.visualization.charts import Series, _ticks, legend, line_chart, smooth


def paths(svg):
    return [element.get("d") for element in ET.fromstring(svg).iter("path")]


def points(path):
    return np.array([[float(x), float(y)] for x, y in re.findall(r"[ML](\S+) ([\d.-]+)", path)])


def test_chart_is_well_formed_and_describes_itself():
    svg = line_chart([Series("a < b", [0, 1], [0, 1])], description='so & "so"', x_label="<x>", y_label="y")
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'so & "so"'
    assert {"<x>", "y"} <= {text.text for text in root.iter("text")}


def test_line_runs_from_corner_to_corner():
    svg = line_chart([Series("a", [0, 5, 10], [0, 50, 100])], description="", x_range=(0, 10), y_range=(0, 100))
    (left, bottom), middle, (right, top) = points(paths(svg)[0])
    assert left < right
    assert top < bottom  # y of the drawing runs downwards
    assert middle == pytest.approx([(left + right) / 2, (top + bottom) / 2], abs=0.1)


def test_numbers_that_are_not_finite_interrupt_the_line():
    svg = line_chart([Series("a", [0, 1, 2, 3, 4], [1, 2, np.nan, 3, 4])], description="")
    assert paths(svg)[0].count("M") == 2
    assert "nan" not in svg


def test_long_lines_are_thinned_and_keep_their_ends():
    x = np.arange(10_000)
    svg = line_chart([Series("a", x, x)], description="", x_range=(0, 9999), y_range=(0, 9999))
    drawn = points(paths(svg)[0])
    assert len(drawn) <= 400
    assert drawn[0, 0] < drawn[-1, 0]


def test_chart_without_points_is_still_a_chart():
    assert paths(line_chart([], description="nothing")) == []
    assert paths(line_chart([Series("a", [], [])], description="nothing")) == []


def test_a_constant_line_is_drawn():
    assert points(paths(line_chart([Series("a", [3], [0])], description=""))[0]).shape == (1, 2)


def test_legend_leaves_out_faint_lines_and_escapes():
    html = legend([Series("a<b", [0], [0], 2), Series("raw", [0], [0], 2, faint=True)])
    assert html == '<ul class="legend"><li class="s2">a&lt;b</li></ul>'


def test_smooth_is_the_mean_of_neighbours():
    values = np.random.default_rng(0).normal(size=40)
    slow = [values[max(0, i - 3) : i + 4].mean() for i in range(40)]
    assert smooth(values, 6) == pytest.approx(slow)
    assert smooth(values, 0) == pytest.approx(values)


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), count=st.integers(2, 10))
def test_ticks_are_round_and_inside(low, span, count):
    high = low + span
    ticks = _ticks(low, high, count)
    assert len(ticks) <= count + 1
    assert (ticks >= low - 1e-6 * span).all()
    assert (ticks <= high + 1e-6 * span).all()
    if len(ticks) > 1:
        assert f"{np.diff(ticks)[0]:.3e}"[0] in "125"
