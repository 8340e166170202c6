"""The scores of a page: one row per task."""

import math
from dataclasses import dataclass


@dataclass
class Score:
    """The score of one task, as fractions.

    Attributes:
        task: Name of the task and its model, such as "Captions, Up-Down".
        metric: Name of the metric.
        score: Score of the model.
        blind: Score of the blind baseline: the model without image features. None where there is no such model.
        bound: Score with ground-truth regions, or of the best choice among the regions that there are. None where it
            was not measured.
        unit: Unit of a score that is multiplied by 100.
        scale_end: Score at the end of the row's bar.
    """

    task: str
    metric: str
    score: float
    blind: float | None = None
    bound: float | None = None
    unit: str = "%"
    scale_end: float = 1.0


def percent(fraction: float | None) -> str:
    """Returns a fraction in percent, such as "83.1", or a dash if there is none."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f}"
