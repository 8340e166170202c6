"""Summarises the content of a file of features, and finds what is wrong with it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from bua.errors import InputError
from bua.features.labels import LABEL_FIELDS
from bua.features.store import open_features
from bua.structures import Regions

# How far in pixels a box may reach out of its image because of rounding.
_TOLERANCE = 1e-2
_BINS = 8

Key = TypeVar("Key", int, str)


@dataclass
class FeatureSummary:
    """The result of ``summarize``.

    Attributes:
        format, dtype: The format and dtype of the stored features. The format is empty if the reader does not know it.
        images, boxes: Number of images and of boxes, without the ``unreadable`` images.
        histogram: Number of images for each number of boxes.
        dims: Number of images for each feature dimension.
        labels: Number of images that have labels, for each such field of ``Regions``.
        minimum, maximum, mean: Minimum, maximum and mean of all features.
        zeros: Fraction of the features that are 0.
        zero_rows: Number of regions whose features are all 0.
        not_finite: Number of features and box coordinates that are NaN or infinite.
        boxes_outside: Number of boxes that reach out of their image, for images whose size is known.
        boxes_inverted: Number of boxes that end before they begin.
        unreadable: A message for each image that cannot be decoded, with the file, the line or image, and the reason.
        problems: A message for each record that cannot be reached by an id (duplicates and incomplete records).
    """

    format: str = ""
    dtype: str = "float32"
    images: int = 0
    boxes: int = 0
    histogram: dict[int, int] = field(default_factory=dict)
    dims: dict[int, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    minimum: float = float("inf")
    maximum: float = float("-inf")
    mean: float = 0.0
    zeros: float = 0.0
    zero_rows: int = 0
    not_finite: int = 0
    boxes_outside: int = 0
    boxes_inverted: int = 0
    unreadable: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Returns a line for each kind of fault that was found."""
        counts: dict[str, object] = {
            "no images": not self.images,
            f"several feature dimensions: {', '.join(map(str, self.dims))}": len(self.dims) > 1,
            f"{self.zero_rows} regions with features that are all 0": self.zero_rows,
            f"{self.not_finite} values that are not finite": self.not_finite,
            f"{self.boxes_outside} boxes that reach out of their image": self.boxes_outside,
            f"{self.boxes_inverted} boxes that end before they begin": self.boxes_inverted,
            f"{len(self.unreadable)} images that cannot be decoded": self.unreadable,
            f"{len(self.problems)} records that cannot be read": self.problems,
        }
        return [line for line, wrong in counts.items() if wrong]

    def lines(self) -> list[str]:
        """Returns the summary as the lines of a table."""
        per_image = self.boxes / self.images if self.images else 0
        bounds = f"{min(self.histogram)} to {max(self.histogram)}, {per_image:.1f} on average" if self.histogram else ""
        table = {
            "format": self.format,
            "images": self.images,
            "boxes": f"{self.boxes}, {bounds} per image" if bounds else "0",
            "histogram": "  ".join(f"{boxes}: {images}" for boxes, images in _binned(self.histogram)),
            "features": f"dimension {', '.join(map(str, self.dims)) or 'unknown'}, {self.dtype}",
            "values": f"{self.minimum:.4g} to {self.maximum:.4g}, {self.mean:.4g} on average, {self.zeros:.1%} zeros"
            if self.minimum <= self.maximum
            else "",
            "labels": ", ".join(f"{name} of {count} images" for name, count in self.labels.items()) or "none",
        }
        return [f"{name:<10} {value}" for name, value in table.items() if value != ""]


def summarize(path: str | Path) -> FeatureSummary:
    """Reads all features of a file or folder in any format, one image at a time.

    Raises:
        InputError: The features cannot be opened.
    """
    store = open_features(path)
    summary = FeatureSummary(getattr(store, "format", ""), str(np.dtype(getattr(store, "dtype", "float32"))))
    total, zeros, numbers = 0.0, 0, 0
    for image_id in tqdm(store, unit=" images", disable=None):
        try:
            regions = store[image_id]
        except InputError as error:
            summary.unreadable.append(str(error))
            continue
        _count(summary, regions)
        if not regions.features.size:
            continue
        features = regions.features
        finite = np.isfinite(features)
        summary.not_finite += int(finite.size - finite.sum())
        features = features[finite]
        if features.size:
            summary.minimum = min(summary.minimum, float(features.min()))
            summary.maximum = max(summary.maximum, float(features.max()))
        total += float(features.sum(dtype=np.float64))
        numbers += features.size
        zeros += int((features == 0).sum())
        summary.zero_rows += int((~regions.features.any(axis=1)).sum())
    if numbers:
        summary.mean, summary.zeros = total / numbers, zeros / numbers
    if hasattr(store, "problems"):
        summary.problems = [f"{path}: {line}" for line in store.problems()]
    return summary


def _count(summary: FeatureSummary, regions: Regions) -> None:
    boxes = regions.boxes
    summary.images += 1
    summary.boxes += len(boxes)
    _add(summary.histogram, len(boxes))
    if regions.features.size:
        _add(summary.dims, regions.features.shape[1])
    for name in LABEL_FIELDS:
        if getattr(regions, name) is not None:
            _add(summary.labels, name)
    summary.not_finite += int((~np.isfinite(boxes)).sum())
    summary.boxes_inverted += int((boxes[:, 2:] < boxes[:, :2]).any(axis=1).sum())
    if regions.width and regions.height:
        limit = np.array([regions.width, regions.height]) + _TOLERANCE
        outside = (boxes[:, :2] < -_TOLERANCE) | (boxes[:, 2:] > limit)
        summary.boxes_outside += int(outside.any(axis=1).sum())


def _add(counts: dict[Key, int], key: Key) -> None:
    counts[key] = counts.get(key, 0) + 1


def _binned(histogram: dict[int, int]) -> list[tuple[str, int]]:
    """Returns (numbers of boxes, number of images) for at most _BINS bins of the same width."""
    if not histogram:
        return []
    first, last = min(histogram), max(histogram)
    width = -(-(last - first + 1) // _BINS)
    bins = []
    for start in range(first, last + 1, width):
        end = min(start + width - 1, last)
        count = sum(images for boxes, images in histogram.items() if start <= boxes <= end)
        bins.append((str(start) if start == end else f"{start}-{end}", count))
    return bins
