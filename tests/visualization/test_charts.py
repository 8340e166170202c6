import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from bua.visualization.charts import VARIABLES, Chart, Series, smooth


def chart(*series, **options):
    return Chart("title", "description", series, **{"x_range": (0, 10), "y_range": (0, 100), **options})


def lines(svg):
    """The drawn lines of the series: [P, 2] for each, in units of the drawing."""
    paths = [element for element in ET.fromstring(svg).iter("path") if "var(--c" in element.get("style")]
    return [
        np.array([[float(x), float(y)] for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d"))]) for path in paths
    ]


def test_a_chart_is_well_formed_and_keeps_its_labels_as_text():
    svg = chart(Series("a", [0, 1], [0, 1]), x_label="<iteration>", y_label="precision").svg()
    root = ET.fromstring(svg)
    assert root.get("viewBox") == "0 0 460 280"
    texts = {text.text for text in root.iter("text")}
    assert {"<iteration>", "precision", "0", "10", "100"} <= texts


def test_a_chart_is_a_part_of_a_page():
    """It has the colours and the font of the page's style sheet, no ids, and nothing that is loaded."""
    svg = chart(Series("a", [0, 1], [0, 1], color=3), Series("b", [0, 1], [1, 0], color=5)).svg()
    assert {"var(--c3)", "var(--c5)", "var(--soft)", "var(--line)"} == set(re.findall(r"var\(.*?\)", svg))
    assert set(re.findall(r"(?:stroke|fill): ([^;\"]+)", svg)) - set(VARIABLES.values()) == {"none"}
    assert not re.search(r"\bid=|url\(|https?:|font-family|<style|<defs", svg)


def test_the_same_data_give_the_same_bytes():
    assert chart(Series("a", [0, 5], [1, 2])).svg() == chart(Series("a", [0, 5], [1, 2])).svg()


def test_a_line_runs_from_corner_to_corner():
    ((left, bottom), middle, (right, top)) = lines(chart(Series("a", [0, 5, 10], [0, 60, 100])).svg())[0]
    assert left < right
    assert top < bottom  # y of the drawing runs downwards
    assert middle == pytest.approx([(left + right) / 2, bottom + 0.6 * (top - bottom)], abs=0.1)


def test_numbers_that_are_not_finite_interrupt_the_line():
    svg = chart(Series("a", [0, 1, 2, 3, 4], [10, 50, np.nan, 30, 90])).svg()
    (path,) = re.findall(r'd="([^"]*)" style="[^"]*var\(--c0\)', svg)
    assert path.count("M") == 2
    assert "nan" not in svg


def test_long_lines_are_simplified_and_keep_their_ends():
    x = np.arange(10_000)
    (drawn,) = lines(chart(Series("a", x, x), x_range=(0, 9999), y_range=(0, 9999)).svg())
    assert len(drawn) <= 400
    assert drawn[-1, 0] - drawn[0, 0] > 400


def test_faint_lines_are_behind_the_others_and_pale():
    svg = chart(Series("a", [0, 1], [0, 1], 1), Series("b", [0, 1], [0, 1], 2, faint=True)).svg()
    assert svg.index("var(--c2)") < svg.index("var(--c1)")
    assert re.search(r"var\(--c2\)[^\"]*stroke-opacity: 0.25", svg)


def test_the_legend_has_the_lines_that_are_not_faint():
    named, raw = Series("a", [0], [0], 2), Series("a", [0], [0], 2, faint=True)
    other = Series("b", [0], [0], 1)
    assert chart(named, raw, other).legend == [named, other]
    assert chart(named, raw).legend == []


def test_smooth_is_the_mean_of_neighbours():
    values = np.random.default_rng(0).normal(size=40)
    slow = [values[max(0, i - 3) : i + 4].mean() for i in range(40)]
    assert smooth(values, 6) == pytest.approx(slow)
    assert smooth(values, 0) == pytest.approx(values)
