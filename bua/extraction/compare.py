"""Whether two sets of region features are the same: ours, and a reference such as a file that the original wrote."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from bua.errors import InputError
from bua.features import FeatureStore
from bua.features.ids import image_id_of
from bua.modeling.boxes import pairwise_iou
from bua.structures import Regions

# Regions that overlap less are not two computations of the same region.
LEAST_IOU = 0.5


@dataclass(frozen=True)
class Bounds:
    """How far the same features may be apart.

    Attributes:
        box_distance: pixels between the sides of two boxes.
        cosine: least cosine between two features.
        label_agreement: least share of regions with the same object class, and with the same attribute, 0 to 1.
    """

    box_distance: float = 0.5
    cosine: float = 0.999
    label_agreement: float = 0.99


@dataclass
class Comparison:
    """The regions of one image beside those of its reference, pair by pair.

    Attributes:
        image_id: as the reference has it.
        num_reference, num_found: regions on each side.
        rows: [m, 2] int64: the row in the reference and the row that was found, of each pair.
        box_distance: [m] largest distance of two sides in pixels; iou, cosine, feature_difference (largest): [m].
        same_object, same_attribute: [m] bool, or None where a side has no labels.
    """

    image_id: int | str
    num_reference: int
    num_found: int
    rows: np.ndarray
    box_distance: np.ndarray
    iou: np.ndarray
    cosine: np.ndarray
    feature_difference: np.ndarray
    same_object: np.ndarray | None
    same_attribute: np.ndarray | None


def compare_features(found: FeatureStore, reference: FeatureStore) -> list[Comparison]:
    """Compares every image of ``reference``.

    An id such as COCO_train2014_000000084002, which LXMERT's files have, is also looked for as COCO's number.

    Raises:
        InputError: ``found`` lacks an image, or has features of another length.
    """
    comparisons = []
    for image_id in reference:
        known = next((key for key in (image_id, image_id_of(f"{image_id}.jpg")) if key in found), None)
        if known is None:
            raise InputError(f"image {image_id}: in the reference and not among the features; extract it first")
        comparisons.append(compare_regions(found[known], reference[image_id]))
    return comparisons


def compare_regions(found: Regions, reference: Regions) -> Comparison:
    """Pairs the regions of one image, nearest boxes first, and compares them."""
    if found.features.shape[1] != reference.features.shape[1]:
        raise InputError(
            f"image {reference.image_id}: features of {found.features.shape[1]} numbers, in the reference of "
            f"{reference.features.shape[1]}; these are of different networks"
        )
    distance = np.abs(found.boxes[None, :] - reference.boxes[:, None]).max(axis=2, initial=0)
    # With both end pixels counted, so that a box of no extent overlaps itself.
    theirs, ours = (torch.from_numpy(regions.boxes.astype(np.float64)) for regions in (reference, found))
    iou = pairwise_iou(theirs, ours, "caffe").numpy()
    rows = _pair(distance, iou)
    theirs, ours = rows.T
    a, b = reference.features[theirs].astype(np.float64), found.features[ours].astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = np.all(a == b, axis=1)  # two empty features have no angle
    cosine = np.where(same, 1.0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0))
    return Comparison(
        image_id=reference.image_id,
        num_reference=len(reference),
        num_found=len(found),
        rows=rows,
        box_distance=distance[theirs, ours],
        iou=iou[theirs, ours],
        cosine=cosine,
        feature_difference=np.abs(a - b).max(axis=1, initial=0),
        same_object=_same(reference.object_ids, found.object_ids, rows),
        same_attribute=_same(reference.attribute_ids, found.attribute_ids, rows),
    )


def differences(comparisons: Iterable[Comparison], bounds: Bounds) -> list[str]:
    """What is beyond ``bounds``, a line each, which names the image and the region; empty where all agree."""
    comparisons = list(comparisons)
    lines = []
    for comparison in comparisons:
        name = f"image {comparison.image_id}"
        unpaired = sorted(set(range(comparison.num_reference)) - set(comparison.rows[:, 0].tolist()))
        lines += [f"{name}: region {row} of the reference was not found" for row in unpaired]
        if comparison.num_found > len(comparison.rows):
            number = comparison.num_found - len(comparison.rows)
            lines.append(f"{name}: {number} regions are not in the reference")
        for i, row in enumerate(comparison.rows[:, 0].tolist()):
            if comparison.box_distance[i] > bounds.box_distance:
                lines.append(f"{name}: region {row}: its box is {comparison.box_distance[i]:.3f} pixels away")
            if not comparison.cosine[i] >= bounds.cosine:
                lines.append(f"{name}: region {row}: its feature has a cosine of {comparison.cosine[i]:.6f}")
    for kind in ("object", "attribute"):
        share = agreement(comparisons, kind)
        if share is not None and share < bounds.label_agreement:
            lines.append(f"{kind}s: {100 * share:.2f} % of the regions have the reference's label")
    return lines


def agreement(comparisons: Iterable[Comparison], kind: str) -> float | None:
    """Share of pairs with the same label, 0 to 1; ``kind`` is "object" or "attribute"; None without labels."""
    same = [getattr(comparison, f"same_{kind}") for comparison in comparisons]
    known = [values for values in same if values is not None]
    return float(np.concatenate(known).mean()) if sum(map(len, known)) else None


def table(comparisons: Iterable[Comparison]) -> str:
    """A line for each image: what was paired, and how far the pairs are apart at worst."""
    rows = [("image", "regions", "found", "paired", "box px", "IoU", "cosine", "feature", "objects", "attributes")]
    for comparison in comparisons:
        pairs = len(comparison.rows)
        rows.append(
            (
                str(comparison.image_id),
                str(comparison.num_reference),
                str(comparison.num_found),
                str(pairs),
                f"{comparison.box_distance.max():.4f}" if pairs else "-",
                f"{comparison.iou.min():.5f}" if pairs else "-",
                f"{comparison.cosine.min():.6f}" if pairs else "-",
                f"{comparison.feature_difference.max():.2e}" if pairs else "-",
                *(
                    "-" if share is None else f"{100 * share:.1f} %"
                    for share in (agreement([comparison], kind) for kind in ("object", "attribute"))
                ),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def _pair(distance: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """[m, 2] rows and columns, each used once, in order of row; the nearest pairs are taken first."""
    pairs, used_columns, used_rows = [], set(), set()
    for flat in np.argsort(distance, axis=None, kind="stable").tolist():
        row, column = divmod(flat, distance.shape[1])
        if row not in used_rows and column not in used_columns and iou[row, column] >= LEAST_IOU:
            pairs.append((row, column))
            used_rows.add(row)
            used_columns.add(column)
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _same(theirs: np.ndarray | None, ours: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if theirs is None or ours is None else theirs[rows[:, 0]] == ours[rows[:, 1]]
