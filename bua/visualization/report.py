"""The page that shows trained models: one HTML file that needs nothing beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from bua.detection.evaluation.average_precision import PrecisionRecall
from bua.io.files import whole_file
from bua.visualization.charts import Series, legend, line_chart, smooth
from bua.visualization.gallery import GalleryImage, gallery
from bua.visualization.scores import Score, percent, score_table
from bua.visualization.style import STYLE

LOSSES = {
    "loss_cls": "object class",
    "loss_box_reg": "box regression",
    "loss_attr": "attributes",
    "loss_rpn_cls": "proposals: objectness",
    "loss_rpn_loc": "proposals: boxes",
}
KINDS = ("objects", "attributes")
# Attributes whose precision-recall curves are shown: the most frequent.
CURVES_SHOWN = 6


@dataclass
class Report:
    """What the page tells; every part may be empty and is then left out.

    Attributes:
        title, introduction: plain text.
        scores: of each task.
        metrics: of the detector, as ``VisualGenomeEvaluator.evaluate`` returns them; others are passed over.
        facts: a few figures for the head of the page, name -> text.
        gallery: images.
        training_log: the dicts of the detector's training log, in order: losses by iteration, and metrics where
            evaluated.
        curves: ``objects`` and ``attributes`` -> class name -> precision-recall curve.
        timings: stage -> seconds.
        commands: (what for, shell command) for the reader's own images.
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
    """Writes the page, with its images inside; makes its folder where it is missing.

    The page is written beside and then moved to ``path``, so that a page that is there is never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(_page(report).encode())


def format_seconds(seconds: float) -> str:
    """Such as "0.4 s", "38 s", "6 min 12 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _page(report: Report) -> str:
    sections = [
        _scores(report.scores),
        _gallery(report.gallery),
        _protocols(report.metrics),
        _training(report.training_log),
        _precision_recall(report.curves.get("attributes", {})),
        _per_class(report.curves),
        _timings(report.timings),
        _commands(report.commands),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{_head(report)}
{"".join(sections)}
<footer>Bottom-up attention after Anderson et al., “Bottom-Up and Top-Down Attention for Image Captioning and Visual
Question Answering”, CVPR 2018. This page stands alone: it loads nothing from outside.</footer>
</main>
</body>
</html>
"""


def _head(report: Report) -> str:
    figures = {f"{score.task}, {score.metric}": percent(score.score) for score in report.scores}
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in {**figures, **report.facts}.items()
    )
    return (
        f'<header><p class="eyebrow">Bottom-up attention</p><h1>{escape(report.title)}</h1>'
        f'<p class="lede">{escape(report.introduction)}</p><dl class="figures">{cells}</dl></header>'
    )


def _section(title: str, note: str, body: str) -> str:
    return f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{body}</section>\n'


def _scores(scores: Sequence[Score]) -> str:
    if not scores:
        return ""
    return _section(
        "How good is it",
        "In percent, on the test split. Without looking: the same model, trained without seeing the images; for "
        "phrases, a region drawn at random. Perfect regions: the same model, trained on regions that say without "
        "error what each thing is; for phrases, the best choice among the detector's regions.",
        f'<div class="scroll">{score_table(scores)}</div>',
    )


def _gallery(images: Sequence[GalleryImage]) -> str:
    if not images:
        return ""
    with_tasks = any(image.questions or image.caption or image.phrases for image in images)
    more = (
        " Then each phrase of a sentence with the region that it was found in; questions, with the regions that the "
        "model looked at most and its best answers; and a caption, with the region that was looked at most for each "
        "word."
    )
    return _section(
        "Test images",
        "The models have not seen these in training. Each box has its attributes, its object class and the "
        f"probability of that class.{more if with_tasks else ''}",
        gallery(images),
    )


def _protocols(metrics: Mapping[str, float]) -> str:
    rows = ""
    for kind in KINDS:
        for protocol, prefix in {"corrected": kind, "original": f"{kind}/original"}.items():
            values = [metrics.get(f"{prefix}/{name}") for name in ("mAP50", "weighted_mAP50", "coco_AP")]
            if values[0] is not None:
                cells = "".join(f"<td>{percent(value)}</td>" for value in values)
                rows += f"<tr><th>{kind.capitalize()}</th><td>{protocol}</td>{cells}</tr>"
    if not rows:
        return ""
    head = "<th></th><th>Protocol</th><th>mAP@0.5</th><th>weighted<br>mAP@0.5</th><th>COCO<br>AP</th>"
    return _section(
        "The detector, by protocol",
        "In percent, on the test split. Weighted: classes count by their instances. COCO AP: the mean over IoU 0.5 to "
        "0.95. The original protocol is that of the released code, with boxes moved by a pixel and scores rounded to "
        "three decimals; the corrected one does neither.",
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>',
    )


def _training(log: Sequence[Mapping[str, float]]) -> str:
    losses, scores = [], []
    for color, (key, name) in enumerate(LOSSES.items()):
        x, y = _points(log, key)
        if len(x):
            losses.append(Series(name, x, y, color, faint=True))
            losses.append(Series(name, x, smooth(y, len(y) // 15), color))
    for color, kind in enumerate(KINDS):
        x, y = _points(log, f"{kind}/mAP50")
        if len(x):
            scores.append(Series(kind, x, 100 * y, color))
    charts = ""
    if losses:
        top = np.nanpercentile(np.concatenate([line.y for line in losses if not line.faint]), 99) * 1.15
        final = ", ".join(f"{line.name} {line.y[-1]:.3f}" for line in losses if not line.faint)
        svg = line_chart(
            [Series(s.name, s.x, np.minimum(s.y, top), s.color, s.faint) for s in losses],
            description=f"Training losses by iteration; at the end {final}",
            x_label="iteration",
            x_range=(0, max(line.x[-1] for line in losses)),
            y_range=(0, float(top) or 1.0),
        )
        charts += f"<figure><h3>Losses</h3>{legend(losses)}{svg}</figure>"
    if scores:
        final = ", ".join(f"{line.name} {line.y[-1]:.1f}" for line in scores)
        svg = line_chart(
            scores,
            description=f"mAP at IoU 0.5 in percent by iteration; at the end {final}",
            x_label="iteration",
            x_range=(0, max(line.x[-1] for line in scores)),
            y_range=(0, 100),
        )
        charts += f"<figure><h3>mAP@0.5, percent</h3>{legend(scores)}{svg}</figure>"
    if not charts:
        return ""
    note = "The losses, whose sum is minimised, and what the detector scores on the way."
    return _section("Training", note, f'<div class="charts">{charts}</div>')


def _points(log: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of the lines that have ``key``."""
    points = np.array([(line["iteration"], line[key]) for line in log if key in line], dtype=float).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _precision_recall(curves: Mapping[str, PrecisionRecall]) -> str:
    figures = ""
    for name, curve in sorted(curves.items(), key=lambda item: -item[1].count)[:CURVES_SHOWN]:
        figure = percent(curve.average_precision)
        svg = line_chart(
            [Series(name, curve.recall, curve.precision)],
            description=f"Precision by recall of {name}; average precision {figure} percent",
            x_label="recall",
            y_label="precision",
            x_range=(0, 1),
            y_range=(0, 1),
            width=320,
            height=220,
        )
        figures += f"<figure><h3>{escape(name)} <span>AP {figure}, {curve.count} instances</span></h3>{svg}</figure>"
    if not figures:
        return ""
    return _section(
        "Attributes, one by one",
        "Precision against recall on the test split: how many of the boxes named so are so, as more of those that "
        "are so get named.",
        f'<div class="charts small">{figures}</div>',
    )


def _per_class(tables: Mapping[str, Mapping[str, PrecisionRecall]]) -> str:
    body = ""
    for kind, curves in tables.items():
        rows = [(name, curve.average_precision, curve.count) for name, curve in curves.items()]
        cells = "".join(
            f"<tr><th>{escape(name)}</th><td>{count}</td><td>{percent(ap)}</td>"
            f'<td class="bar"><i style="width:{100 * ap:.1f}%"></i></td></tr>'
            for name, ap, count in sorted(rows, key=lambda row: -row[1])
        )
        head = "<th>Class</th><th>Instances</th><th>AP@0.5</th><th></th>"
        body += (
            f"<details><summary>{escape(kind.capitalize())}: {len(rows)} classes</summary>"
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div></details>'
        )
    return _section("Every class", "Average precision at IoU 0.5, corrected protocol.", body) if body else ""


def _timings(timings: Mapping[str, float]) -> str:
    if not timings:
        return ""
    longest = max(*timings.values(), 1e-9)
    rows = "".join(
        f"<tr><th>{escape(stage)}</th><td>{format_seconds(seconds)}</td>"
        f'<td class="bar"><i style="width:{100 * seconds / longest:.1f}%"></i></td></tr>'
        for stage, seconds in timings.items()
    )
    return _section(
        "Where the time went",
        f"{format_seconds(sum(timings.values()))} in all on this machine.",
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>',
    )


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    body = "".join(f"<h3>{escape(what)}</h3><pre>{escape(command)}</pre>" for what, command in commands)
    return _section("On your own images", "From the project's folder:", body) if body else ""
