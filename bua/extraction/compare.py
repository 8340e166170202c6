"""Compares region features with a reference, such as a file that the original wrote."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from bua.errors import InputError
from bua.features import FeatureStore
from bua.features.grid_pth import cell_boxes, grid_shape
from bua.features.ids import image_id_of
from bua.features.store import GRID_FORMATS
from bua.modeling.boxes import pairwise_iou
from bua.structures import Regions

# Regions that overlap less are regarded as different regions.
MIN_IOU = 0.5


@dataclass(frozen=True)
class Bounds:
    """How much features may differ and still count as the same.

    Attributes:
        box_distance: Maximum distance between the sides of two boxes in pixels.
        cosine: Minimum cosine between two features.
        label_agreement: Minimum share of regions with the same object class, and of regions with the same attribute,
            0 to 1.
    """

    box_distance: float = 0.5
    cosine: float = 0.999
    label_agreement: float = 0.99


@dataclass
class Comparison:
    """The comparison of one image's regions with the reference, pair by pair.

    Attributes:
        image_id: The image's id in the reference.
        num_reference, num_found: Number of regions in the reference, and among the features that are compared with it.
        rows: [m, 2] int64, for each pair the row in the reference and the row among the features.
        box_distance: [m] largest distance between two sides of the boxes, in pixels.
        iou: [m] IoU of the boxes.
        cosine: [m] cosine between the features.
        feature_difference: [m] largest difference between two elements of the features.
        same_object, same_attribute: [m] bool, or None if the reference or the features have no labels.
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
    """Compares the features ``found`` of every image of ``reference``.

    An id such as COCO_train2014_000000084002, as in LXMERT's files, is also looked up as COCO's number. If the
    reference is of the format grid-pth, whose boxes are in pixels of the resized image, the cells of ``found`` are
    compared by their row and column.

    Raises:
        InputError: ``found`` lacks an image, or has features of another dimension, or has regions instead of the cells
            of a grid that the reference has.
    """
    in_cells = getattr(reference, "format", "") in GRID_FORMATS
    comparisons = []
    for image_id in reference:
        known = next((key for key in (image_id, image_id_of(f"{image_id}.jpg")) if key in found), None)
        if known is None:
            raise InputError(f"image {image_id}: is in the reference but not among the features; extract it first")
        regions = found[known]
        if in_cells:
            regions = replace(regions, boxes=cell_boxes(*grid_shape(regions)))
        comparisons.append(compare_regions(regions, reference[image_id]))
    return comparisons


def compare_regions(found: Regions, reference: Regions) -> Comparison:
    """Pairs the regions of one image, nearest boxes first, and compares each pair."""
    if found.features.shape[1] != reference.features.shape[1]:
        raise InputError(
            f"image {reference.image_id}: the feature dimension is {found.features.shape[1]}, and "
            f"{reference.features.shape[1]} in the reference; compare features of the same network"
        )
    distance = np.abs(found.boxes[None, :] - reference.boxes[:, None]).max(axis=2, initial=0)
    # The convention "caffe" counts both end pixels, so that a box without extent overlaps itself.
    reference_boxes, found_boxes = (
        torch.from_numpy(regions.boxes.astype(np.float64)) for regions in (reference, found)
    )
    iou = pairwise_iou(reference_boxes, found_boxes, "caffe").numpy()
    rows = _pair(distance, iou)
    reference_rows, found_rows = rows.T
    a = reference.features[reference_rows].astype(np.float64)
    b = found.features[found_rows].astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = np.all(a == b, axis=1)  # the cosine of two features of zeros is not defined
    cosine = np.where(same, 1.0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0))
    return Comparison(
        image_id=reference.image_id,
        num_reference=len(reference),
        num_found=len(found),
        rows=rows,
        box_distance=distance[reference_rows, found_rows],
        iou=iou[reference_rows, found_rows],
        cosine=cosine,
        feature_difference=np.abs(a - b).max(axis=1, initial=0),
        same_object=_same(reference.object_ids, found.object_ids, rows),
        same_attribute=_same(reference.attribute_ids, found.attribute_ids, rows),
    )


def find_differences(comparisons: Iterable[Comparison], bounds: Bounds) -> list[str]:
    """Returns one line for each difference beyond ``bounds``, which names the image and the region."""
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
        share = label_agreement(comparisons, kind)
        if share is not None and share < bounds.label_agreement:
            lines.append(f"{kind}s: {100 * share:.2f} % of the regions have the reference's label")
    return lines


def label_agreement(comparisons: Iterable[Comparison], kind: str) -> float | None:
    """Returns the share of pairs with the same label, 0 to 1, or None without labels.

    Args:
        kind: "object" or "attribute".
    """
    same = [getattr(comparison, f"same_{kind}") for comparison in comparisons]
    known = [values for values in same if values is not None]
    return float(np.concatenate(known).mean()) if sum(map(len, known)) else None


def format_table(comparisons: Iterable[Comparison]) -> str:
    """Returns a table with one line per image: the number of pairs, and their largest differences."""
    rows: list[tuple[str, ...]] = [
        ("image", "regions", "found", "paired", "box px", "IoU", "cosine", "feature", "objects", "attributes")
    ]
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
                    for share in (label_agreement([comparison], kind) for kind in ("object", "attribute"))
                ),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def _pair(distance: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Returns the pairs of row and column [m, 2], in the order of rows. Each row and column occurs once, and the
    nearest pairs are taken first."""
    pairs: list[tuple[int, int]] = []
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for flat in np.argsort(distance, axis=None, kind="stable").tolist():
        row, column = divmod(flat, distance.shape[1])
        if row not in used_rows and column not in used_columns and iou[row, column] >= MIN_IOU:
            pairs.append((row, column))
            used_rows.add(row)
            used_columns.add(column)
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _same(reference_ids: np.ndarray | None, found_ids: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    if reference_ids is None or found_ids is None:
        return None
    same: np.ndarray = reference_ids[rows[:, 0]] == found_ids[rows[:, 1]]
    return same
