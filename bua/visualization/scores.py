"""The table of a page that says how good each model is, and what that is worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass
class Score:
    """A row; numbers are fractions.

    Attributes:
        task: such as "Captions, Up-Down".
        metric: what is measured.
        score: of the model.
        blind: of who does not look; None where that means nothing.
        bound: of who is given perfect regions, or of the best choice among those there are; None likewise.
    """

    task: str
    metric: str
    score: float
    blind: float | None = None
    bound: float | None = None


def score_table(scores: Sequence[Score]) -> str:
    """An HTML table in percent, with a bar for each row: as long as the score, with ticks at the other two."""
    rows = "".join(_row(score) for score in scores)
    head = "<th>Task</th><th>Score</th><th>Without<br>looking</th><th>Perfect<br>regions</th><th></th>"
    return f'<table class="scores"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def percent(fraction: float | None) -> str:
    """Such as "83.1", or a dash for what is not there."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f}"


def _row(score: Score) -> str:
    # CIDEr-D goes beyond 1.
    most = max(1.0, *(value for value in (score.score, score.blind, score.bound) if value is not None))
    marks = "".join(
        f'<b style="left:{100 * value / most:.1f}%" title="{title}"></b>'
        for title, value in (("without looking", score.blind), ("with perfect regions", score.bound))
        if value is not None
    )
    bar = f'<i style="width:{100 * score.score / most:.1f}%"></i>{marks}'
    return (
        f"<tr><th>{escape(score.task)}<small>{escape(score.metric)}</small></th><td><strong>{percent(score.score)}"
        f"</strong></td><td>{percent(score.blind)}</td><td>{percent(score.bound)}</td>"
        f'<td class="bar"><div>{bar}</div></td></tr>'
    )
