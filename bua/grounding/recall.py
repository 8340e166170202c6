"""Scores of phrase grounding on Flickr30k Entities: recall among the first k regions.

Two protocols are in use, and their scores must not be compared. In "any" a region is right if it overlaps with any box
of the phrase (ban-vqa, MDETR's "any-box"); in "merged" it must overlap with the box around all boxes of the phrase
(Plummer et al. 2015). Two boxes overlap if their intersection over union is at least 0.5, where widths and heights are
differences of corners, without the +1 of pixels.
"""

from collections.abc import Sequence

import numpy as np

from bua.grounding.official import TYPES
from bua.overlap import paired_iou

PROTOCOLS = ("any", "merged")
MIN_OVERLAP = 0.5
TOPS = (1, 5, 10)


def grounding_recall(
    ranked: Sequence[np.ndarray], truth: Sequence[np.ndarray], *, protocol: str = "any"
) -> dict[str, float]:
    """Computes the recall of P phrases.

    Args:
        ranked: For each phrase all regions of its image [n, 4] x1y1x2y2 in pixels, best first; n may be 0.
        truth: For each phrase its boxes [g, 4]; g is at least 1.
        protocol: "any" or "merged".

    Returns:
        "R@1", "R@5" and "R@10": the percentage of phrases with a right region among the first 1, 5 and 10 regions; and
        "bound": the percentage of phrases with a right region among all regions.
    """
    return recall_at(first_hits(ranked, truth, protocol=protocol))


def recall_by_type(first: np.ndarray, types: np.ndarray) -> dict[str, dict[str, float]]:
    """Computes the recall of the phrases of each type that occurs. A phrase may have several types.

    Args:
        first: [P], as ``first_hits`` returns it.
        types: [P, 8] bool, which of Flickr30k Entities' ``TYPES`` each phrase has.

    Returns:
        By type what ``grounding_recall`` returns, and the number of its "phrases".
    """
    return {
        kind: recall_at(first[chosen]) | {"phrases": int(chosen.sum())}
        for kind, chosen in zip(TYPES, types.T)
        if chosen.any()
    }


def chance_recall(
    regions: Sequence[np.ndarray], truth: Sequence[np.ndarray], *, protocol: str = "any"
) -> dict[str, float]:
    """Returns the exact expectation of ``grounding_recall`` for regions in random order."""
    counts = np.array([len(boxes) for boxes in regions])
    right = np.array([hits(boxes, true, protocol).sum() for boxes, true in zip(regions, truth)])
    recall, none_yet = {}, np.ones(len(counts))
    for place in range(max(TOPS)):
        # Multiplies by the share of wrong regions among those that remain after ``place`` wrong ones.
        left = counts - place
        none_yet = none_yet * np.where(left > 0, (left - right).clip(min=0) / left.clip(min=1), 1)
        if place + 1 in TOPS:
            recall[f"R@{place + 1}"] = _percent(1 - none_yet)
    return recall | {"bound": _percent(right > 0)}


def first_hits(ranked: Sequence[np.ndarray], truth: Sequence[np.ndarray], *, protocol: str = "any") -> np.ndarray:
    """Returns [P] float64, the number of wrong regions before the first right one; infinite where no region is right.

    Arguments are those of ``grounding_recall``.
    """
    first = np.full(len(truth), np.inf)
    for phrase, (regions, boxes) in enumerate(zip(ranked, truth, strict=True)):
        found = hits(regions, boxes, protocol)
        if found.any():
            first[phrase] = found.argmax()
    return first


def recall_at(first: np.ndarray) -> dict[str, float]:
    """Computes the recall of P phrases from the array [P] that ``first_hits`` returns."""
    return {f"R@{top}": _percent(first < top) for top in TOPS} | {"bound": _percent(np.isfinite(first))}


def hits(regions: np.ndarray, boxes: np.ndarray, protocol: str = "any") -> np.ndarray:
    """Returns [n] bool, which regions are right for a phrase.

    Args:
        regions: [n, 4] x1y1x2y2.
        boxes: [g, 4], the boxes of the phrase.
        protocol: "any" or "merged".
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: use any or merged")
    if protocol == "merged":
        boxes = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])[None]
    pairs = (
        np.repeat(regions.astype(np.float64), len(boxes), axis=0),
        np.tile(boxes.astype(np.float64), (len(regions), 1)),
    )
    overlaps = (paired_iou(*pairs, extent=0) >= MIN_OVERLAP).reshape(len(regions), len(boxes))
    return np.any(overlaps, axis=1)


def _percent(values: np.ndarray) -> float:
    return 100 * float(values.mean()) if len(values) else 0.0
