"""Writes the page of results of trained models: one HTML file that needs no other file and no network.

The page's text is in ``templates/``; its charts and numbers are prepared here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from bua.detection.evaluation.average_precision import PrecisionRecall
from bua.errors import make_folder
from bua.io.files import whole_file
from bua.visualization.charts import Chart, Series, smooth
from bua.visualization.gallery import GalleryImage, data_uri
from bua.visualization.scores import Score, percent

LOSSES = {
    "loss_cls": "object class",
    "loss_box_reg": "box regression",
    "loss_attr": "attributes",
    "loss_rpn_cls": "proposals: objectness",
    "loss_rpn_loc": "proposals: boxes",
}
KINDS = ("objects", "attributes")
# Number of attributes whose precision-recall curves are shown: the most frequent ones.
CURVES_SHOWN = 6


@dataclass
class Report:
    """Content of the page. Every part may be empty; the page then does not have its section.

    Attributes:
        title: Title of the page.
        introduction: Its first paragraph.
        scores: Scores of the tasks.
        metrics: Metrics of the detector, as ``VisualGenomeEvaluator.evaluate`` returns them. Others are ignored.
        facts: Further numbers for the top of the page, as text by name.
        gallery: Images.
        training_log: Lines of the detector's training log, in order, with losses by iteration, and with metrics where
            the detector was evaluated.
        curves: Precision-recall curves by class name, for ``objects`` and ``attributes``.
        timings: Seconds by stage.
        commands: Purpose and shell command of examples for the reader's own images.
    """

    title: str
    introduction: str
    scores: Sequence[Score] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    gallery: Sequence[GalleryImage] = ()
    training_log: Sequence[Mapping[str, float]] = ()
    curves: Mapping[str, Mapping[str, PrecisionRecall]] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    commands: Sequence[tuple[str, str]] = ()


def write_report(path: str | Path, report: Report) -> None:
    """Writes the page, and creates its folder if it does not exist.

    An existing page is replaced when the new one is complete.
    """
    environment = Environment(
        loader=PackageLoader("bua.visualization"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, duration=format_seconds, data_uri=data_uri)
    page = environment.get_template("report.html").render(
        report=report,
        protocols=_protocols(report.metrics),
        training_charts=_training_charts(report.training_log),
        attribute_charts=_precision_recall_charts(report.curves.get("attributes", {})),
    )
    make_folder(Path(path).parent)
    with whole_file(Path(path)) as file:
        file.write(page.encode())


def format_seconds(seconds: float) -> str:
    """Returns a duration as text, such as "0.4 s", "38 s", "6 min 12 s" or "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _protocols(metrics: Mapping[str, float]) -> list[tuple[str, str, list[float | None]]]:
    """Returns a row for each kind and protocol that was evaluated: mAP@0.5, weighted mAP@0.5 and COCO AP."""
    rows = []
    for kind in KINDS:
        for protocol, prefix in {"corrected": kind, "original": f"{kind}/original"}.items():
            values = [metrics.get(f"{prefix}/{name}") for name in ("mAP50", "weighted_mAP50", "coco_AP")]
            if values[0] is not None:
                rows.append((kind, protocol, values))
    return rows


def _training_charts(log: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Returns the chart of the losses and the chart of the scores, without those that have fewer than two points."""
    losses, scores = [], []
    for color, (key, name) in enumerate(LOSSES.items()):
        x, y = _points(log, key)
        if len(x) > 1:
            losses.append(Series(name, x, y, color, faint=True))
            losses.append(Series(name, x, smooth(y, len(y) // 15), color))
    for color, kind in enumerate(KINDS):
        x, y = _points(log, f"{kind}/mAP50")
        if len(x) > 1:
            scores.append(Series(kind, x, 100 * y, color))
    charts = []
    if losses:
        smoothed = [line for line in losses if not line.faint]
        # A few large losses at the beginning would flatten the rest of the lines.
        top = float(np.nanpercentile(np.concatenate([line.y for line in smoothed]), 99)) * 1.15 or 1.0
        final = ", ".join(f"{line.name} {line.y[-1]:.3f}" for line in smoothed)
        charts.append(
            Chart(
                title="Losses",
                description=f"Training losses by iteration; at the end {final}",
                series=[Series(s.name, s.x, np.minimum(s.y, top), s.color, s.faint) for s in losses],
                x_range=(0, max(line.x[-1] for line in losses)),
                y_range=(0, top),
                x_label="iteration",
            )
        )
    if scores:
        final = ", ".join(f"{line.name} {line.y[-1]:.1f}" for line in scores)
        charts.append(
            Chart(
                title="mAP@0.5 during training, in percent",
                description=f"mAP at IoU 0.5 in percent by iteration; at the end {final}",
                series=scores,
                x_range=(0, max(line.x[-1] for line in scores)),
                y_range=(0, 100),
                x_label="iteration",
            )
        )
    return charts


def _points(log: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the iterations and the values of the lines that have ``key``, without values that are not finite."""
    points = np.array([(line["iteration"], line[key]) for line in log if key in line], dtype=float).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    return points[:, 0], points[:, 1]


def _precision_recall_charts(curves: Mapping[str, PrecisionRecall]) -> list[Chart]:
    """Returns the precision-recall curves of the most frequent classes."""
    charts = []
    for name, curve in sorted(curves.items(), key=lambda item: -item[1].count)[:CURVES_SHOWN]:
        ap = percent(curve.average_precision)
        charts.append(
            Chart(
                title=name,
                detail=f"AP {ap}, {curve.count} instances",
                description=f"Precision by recall of {name}; average precision {ap} percent",
                series=[Series(name, curve.recall, curve.precision)],
                x_range=(0, 1),
                y_range=(0, 1),
                x_label="recall",
                y_label="precision",
                width=320,
                height=220,
            )
        )
    return charts
