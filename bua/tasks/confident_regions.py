"""Which regions of an image a model takes that takes only some of them (DATA.MAX_BOXES): the most confident ones."""

import numpy as np

from bua.structures import Regions


def confident_rows(count: int, scores: np.ndarray | None, number: int | None) -> np.ndarray | None:
    """Returns [number] int64, the most confident of an image's regions in ascending order; None if all are taken.

    Args:
        count: n, the number of regions of the image.
        scores: [n] probabilities of their object classes, of which equal ones count in the order of the regions. With
            None, as in features without scores, the first regions are taken.
        number: Number of regions to take; None takes all.
    """
    if number is None or count <= number:
        return None
    if scores is None:
        return np.arange(number)
    rows: np.ndarray = np.sort(np.argsort(-scores, kind="stable")[:number])
    return rows


def confident_regions(regions: Regions, number: int | None) -> Regions:
    """Returns the most confident ``number`` regions of an image, as ``confident_rows`` chooses them, in their order."""
    rows = confident_rows(len(regions), regions.object_scores, number)
    return regions if rows is None else regions.take(rows)
