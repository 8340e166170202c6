"""Boxes with legible labels on an image, drawn with OpenCV alone."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from bua.errors import InputError, make_folder

FONT = cv2.FONT_HERSHEY_SIMPLEX
# How much of its light a part of an image keeps that a model does not look at.
DARKEST = 0.3
# BGR; hues far apart and all dark enough or light enough for a label in black or white on them.
PALETTE = (
    (178, 114, 0),
    (0, 94, 213),
    (115, 158, 0),
    (160, 60, 140),
    (0, 159, 230),
    (60, 40, 200),
    (150, 150, 20),
    (110, 80, 90),
    (233, 180, 86),
    (40, 120, 110),
    (167, 121, 204),
    (70, 60, 50),
)


def class_colors(class_ids: Sequence[int]) -> list[tuple[int, int, int]]:
    """A BGR colour for each class id; the same id always has the same colour."""
    return [PALETTE[int(class_id) % len(PALETTE)] for class_id in class_ids]


def draw_regions(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[tuple[int, int, int]] | None = None,
    *,
    min_size: int = 800,
) -> np.ndarray:
    """Draws each box with its label on a copy of the image.

    Lines and letters are scaled to the image. A label lies next to its box, inside the image, and off the
    labels before it where there is room: give the most important region first.

    Args:
        image: [H, W, 3] uint8 BGR.
        boxes: [N, 4] x1y1x2y2 in pixels of ``image``.
        labels: N texts, in ASCII (the fonts of OpenCV 4 know no other letters); an empty one draws the box alone.
        colors: N BGR colours, 0 to 255; by default one after the other of ``PALETTE``.
        min_size: the image is enlarged first until its longer side has this many pixels.

    Returns:
        [H', W', 3] uint8 BGR, a new array; H' = H and W' = W where the longer side is at least ``min_size``.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    colors = class_colors(range(len(boxes))) if colors is None else colors
    if not len(boxes) == len(labels) == len(colors):
        raise ValueError(f"{len(boxes)} boxes, {len(labels)} labels and {len(colors)} colors; give as many of each")
    canvas, scale = _enlarge(image, min_size)
    height, width = canvas.shape[:2]
    limit = np.array([width - 1, height - 1] * 2)
    corners = np.clip(boxes * scale, 0, limit).round().astype(int)
    line = max(1, round(max(height, width) / 360))

    for (x1, y1, x2, y2), color in zip(corners.tolist(), colors):
        halo = (255, 255, 255) if _is_dark(color) else (0, 0, 0)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), halo, line + 2, cv2.LINE_AA)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), tuple(map(int, color)), line, cv2.LINE_AA)

    placed = np.empty((0, 4))
    for box, label, color in zip(corners, labels, colors):
        if label:
            tag = _tag(label, color, height, width)
            area = _place(box, tag.shape[1], tag.shape[0], placed, height, width)
            x1, y1, x2, y2 = area
            canvas[y1:y2, x1:x2] = tag
            placed = np.vstack([placed, area])
    return canvas


def draw_attention(image: np.ndarray, boxes: np.ndarray, attention: np.ndarray, *, shown: int = 5) -> np.ndarray:
    """Draws how much a model looked at each region: what it did not look at is dark, and the regions that it looked
    at most have their share of the attention beside them.

    Args:
        image: [H, W, 3] uint8 BGR.
        boxes: [N, 4] x1y1x2y2 in pixels of ``image``.
        attention: [N] at least 0; its sum is the whole.
        shown: regions that are outlined, at most.

    Returns:
        [H', W', 3] uint8 BGR, as ``draw_regions``.
    """
    share = np.asarray(attention, np.float32) / max(float(np.sum(attention)), 1e-12)
    light = np.zeros(image.shape[:2], np.float32)
    for (x1, y1, x2, y2), value in zip(
        np.asarray(boxes).round().astype(int).tolist(), share / max(share.max(initial=0), 1e-12)
    ):
        area = light[max(y1, 0) : y2 + 1, max(x1, 0) : x2 + 1]
        np.maximum(area, value, out=area)
    shaded = (image * (DARKEST + (1 - DARKEST) * light[..., None])).round().astype(np.uint8)
    best = np.argsort(-share, kind="stable")[:shown]
    return draw_regions(shaded, np.asarray(boxes)[best], [f"{100 * value:.0f}%" for value in share[best]])


def save_image(path: str | Path, image: np.ndarray) -> None:
    """Writes an image ([H, W, 3] uint8 BGR) in the format that the file's name says."""
    path = Path(path)
    make_folder(path.parent)
    try:
        written = cv2.imwrite(str(path), image)
    except cv2.error:
        written = False
    if not written:
        raise InputError(f"{path}: cannot be written; give a name that ends in .jpg or .png, in a folder of yours")


def _enlarge(image: np.ndarray, min_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The image (always a copy) and its scale [4] as x, y, x, y."""
    height, width = image.shape[:2]
    factor = min_size / max(height, width)
    if factor <= 1:
        return image.copy(), np.ones(4)
    size = round(width * factor), round(height * factor)
    enlarged = cv2.resize(image, (max(1, size[0]), max(1, size[1])), interpolation=cv2.INTER_CUBIC)
    return enlarged, np.array([enlarged.shape[1] / width, enlarged.shape[0] / height] * 2)


def _tag(label: str, color: Sequence[int], height: int, width: int) -> np.ndarray:
    """The label as an image of its own: [h, w, 3] uint8, no larger than the canvas."""
    oversampling, stroke = 4, 6  # OpenCV 4 draws letters as strokes; large and averaged down they are smooth
    scale = max(height, width) / 1150
    (text_width, text_height), baseline = cv2.getTextSize(label, FONT, scale * oversampling, stroke)
    pad = text_height * 0.45
    tag_width, tag_height = text_width + 2 * pad, text_height + baseline * 0.5 + 2 * pad
    large = np.full((round(tag_height), round(tag_width), 3), color, dtype=np.uint8)
    ink = (255, 255, 255) if _is_dark(color) else (0, 0, 0)
    cv2.putText(large, label, (round(pad), round(pad + text_height)), FONT, scale * oversampling, ink, stroke)
    shrink = min(1 / oversampling, width / large.shape[1], height / large.shape[0])
    size = max(1, int(large.shape[1] * shrink)), max(1, int(large.shape[0] * shrink))
    return cv2.resize(large, size, interpolation=cv2.INTER_AREA)


def _place(box: np.ndarray, w: int, h: int, placed: np.ndarray, height: int, width: int) -> np.ndarray:
    """Where a label of w x h pixels goes: [4] ints, inside the image.

    The places around the box come in order of preference; then come places further down and up along its left
    edge. The first that covers no other label is taken, else the one that covers least.
    """
    x1, y1, x2, y2 = box
    around = [(x1, y1 - h), (x1, y2 + 1), (x2 - w, y1 - h), (x2 - w, y2 + 1), (x1, y1), (x2 - w, y1), (x1, y2 - h)]
    beside = [(x2 + 1, y1), (x1 - w, y1), (x2 + 1, y2 - h), (x1 - w, y2 - h)]
    along = sorted(((x1, y) for y in range(0, height - h + 1, max(1, h // 2))), key=lambda place: abs(place[1] - y1))
    places = np.array(around + beside + along)
    places = np.clip(places, 0, [width - w, height - h])
    areas = np.hstack([places, places + np.array([w, h])])
    overlap_width = np.minimum(areas[:, None, 2], placed[:, 2]) - np.maximum(areas[:, None, 0], placed[:, 0])
    overlap_height = np.minimum(areas[:, None, 3], placed[:, 3]) - np.maximum(areas[:, None, 1], placed[:, 1])
    covered = (overlap_width.clip(0) * overlap_height.clip(0)).sum(axis=1)
    return areas[covered.argmin()]


def _is_dark(color: Sequence[int]) -> bool:
    blue, green, red = color
    return 0.114 * blue + 0.587 * green + 0.299 * red < 140
