"""Draws boxes with labels, attention and text on images, with OpenCV."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from bua.errors import InputError, make_folder

FONT = cv2.FONT_HERSHEY_SIMPLEX
# Pixels of a letter's stroke, before the text is reduced.
STROKE = 6
# Factor of the letter size for shares of the attention. These labels are short, and are also read in small images.
SHARE_SIZE = 1.4
# The fraction of its brightness that a part of an image without attention keeps.
DARKEST = 0.3
# A region with a smaller share of the attention is not outlined: its label would be 0 percent.
LEAST_SHARE = 0.005
# BGR colours with hues far apart. Each is dark or light enough for white or black letters on it.
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


def class_colors(class_ids: Iterable[int]) -> list[tuple[int, int, int]]:
    """Returns a BGR colour for each class id. The same id always has the same colour."""
    return [PALETTE[int(class_id) % len(PALETTE)] for class_id in class_ids]


def draw_regions(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[tuple[int, int, int]] | None = None,
    *,
    min_size: int = 800,
    letter_size: float = 1.0,
) -> np.ndarray:
    """Draws each box with its label on a copy of the image.

    Lines and letters are scaled to the size of the image. A label is placed next to its box and inside the image, and
    does not cover the labels before it if there is room. Therefore, the most important region should be the first. A
    box that coincides with an earlier one is drawn inside it, so that both are visible.

    Args:
        image: [H, W, 3] uint8 BGR.
        boxes: [N, 4] x1y1x2y2 in pixels of ``image``.
        labels: N texts in ASCII (the fonts of OpenCV 4 have no other letters). An empty text draws the box alone.
        colors: N BGR colours, 0 to 255. The default is the colours of ``PALETTE``, in turn.
        min_size: A smaller image is enlarged first, until its longer side has this many pixels.
        letter_size: Factor of the size of the letters.

    Returns:
        [H', W', 3] uint8 BGR, a new array; H' = H and W' = W if the longer side is at least ``min_size``.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    colors = class_colors(range(len(boxes))) if colors is None else colors
    if not len(boxes) == len(labels) == len(colors):
        raise ValueError(
            f"{len(boxes)} boxes, {len(labels)} labels and {len(colors)} colors; give the same number of each"
        )
    canvas, scale = _enlarge(image, min_size)
    height, width = canvas.shape[:2]
    limit = np.array([width - 1, height - 1] * 2)
    corners = np.clip(boxes * scale, 0, limit).round().astype(int)
    line = max(1, round(max(height, width) / 360))

    for (x1, y1, x2, y2), color in zip(_nested(corners, line).tolist(), colors):
        halo = (255, 255, 255) if _is_dark(color) else (0, 0, 0)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), halo, line + 2, cv2.LINE_AA)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), tuple(map(int, color)), line, cv2.LINE_AA)

    placed = np.empty((0, 4))
    for box, label, color in zip(corners, labels, colors):
        if label:
            tag = _tag(label, color, height, width, letter_size)
            area = _place(box, tag.shape[1], tag.shape[0], placed, height, width)
            x1, y1, x2, y2 = area
            canvas[y1:y2, x1:x2] = tag
            placed = np.vstack([placed, area])
    return canvas


def draw_attention(
    image: np.ndarray,
    boxes: np.ndarray,
    attention: np.ndarray,
    *,
    shown: int = 5,
    with_shares: bool = True,
    min_size: int = 800,
) -> np.ndarray:
    """Draws the attention of a model to each region of an image.

    Parts of the image without attention are dark. The regions with the most attention are outlined, except those with
    less than half a percent of it.

    Args:
        image: [H, W, 3] uint8 BGR.
        boxes: [N, 4] x1y1x2y2 in pixels of ``image``.
        attention: [N] attention to each region, at least 0.
        shown: Number of regions to outline, at most.
        with_shares: Whether to label each of these with its share of all attention, in percent.
        min_size: As for ``draw_regions``.

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
    best = best[share[best] >= LEAST_SHARE]
    labels = [f"{100 * value:.0f}%" if with_shares else "" for value in share[best]]
    return draw_regions(shaded, np.asarray(boxes)[best], labels, min_size=min_size, letter_size=SHARE_SIZE)


def draw_answer(
    image: np.ndarray, boxes: np.ndarray, attention: np.ndarray, question: str, answer: str, *, shown: int = 5
) -> np.ndarray:
    """Draws the attention of a model to each region of an image, with the question and the answer above the image.

    Args:
        image, boxes, attention, shown: As for ``draw_attention``.
        question: Text of the question.
        answer: Text of the model's answer.

    Returns:
        [H', W', 3] uint8 BGR, as ``draw_attention`` with the text's strip on top.
    """
    drawn = draw_attention(image, boxes, attention, shown=shown)
    return add_text(drawn, [f"Question: {question}", f"Answer: {answer}"])


def add_text(image: np.ndarray, lines: Sequence[str], *, letter_size: float = 1.0) -> np.ndarray:
    """Returns the image below a white strip with lines of text. A line that is too wide is broken between words.

    Args:
        image: [H, W, 3] uint8 BGR.
        lines: Texts in ASCII; other letters are drawn as "?" by OpenCV 4.
        letter_size: Factor of the size of the letters.

    Returns:
        [H', W, 3] uint8 BGR, a new array.
    """
    height, width = image.shape[:2]
    scale = letter_size * max(height, width) / 1000
    tags = [
        _text_image(part, scale, (0, 0, 0), (255, 255, 255), width)
        for line in lines
        for part in _wrapped(line, scale, width)
    ]
    strip = np.full((sum(tag.shape[0] for tag in tags), width, 3), 255, np.uint8)
    top = 0
    for tag in tags:
        strip[top : top + tag.shape[0], : tag.shape[1]] = tag
        top += tag.shape[0]
    return np.vstack([strip, image])


def save_image(path: str | Path, image: np.ndarray) -> None:
    """Writes an image ([H, W, 3] uint8 BGR) in the format of the file name's extension.

    Raises:
        InputError: OpenCV cannot write the format, or the file cannot be written.
    """
    path = Path(path)
    make_folder(path.parent)
    check_image_name(path)
    try:
        encoded, data = cv2.imencode(path.suffix, image)
    except cv2.error:
        encoded = False
    if not encoded:
        raise InputError(f"{path}: this format cannot hold the image; give a name that ends in .png")
    try:
        # OpenCV itself cannot open files whose names are not UTF-8.
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; name a writable folder") from error


def check_image_name(path: str | Path) -> None:
    """Raises an InputError if OpenCV cannot write the format of the file name's extension."""
    suffix = Path(path).suffix
    # OpenCV crashes at text that is not Unicode.
    if not suffix.isascii() or not suffix or not cv2.haveImageWriter(f"image{suffix}"):
        raise InputError(f"{path}: is not the name of an image; give a name that ends in .jpg or .png")


def _enlarge(image: np.ndarray, min_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image (always a copy) and the factors [4] by which it was scaled, as x, y, x, y."""
    height, width = image.shape[:2]
    factor = min_size / max(height, width)
    if factor <= 1:
        return image.copy(), np.ones(4)
    size = round(width * factor), round(height * factor)
    enlarged = cv2.resize(image, (max(1, size[0]), max(1, size[1])), interpolation=cv2.INTER_CUBIC)
    return enlarged, np.array([enlarged.shape[1] / width, enlarged.shape[0] / height] * 2)


def _nested(corners: np.ndarray, line: int) -> np.ndarray:
    """Returns the boxes ([N, 4] int), where each that coincides with earlier ones is inside the last of these."""
    nested = corners.copy()
    for number, box in enumerate(corners):
        before = int((np.abs(corners[:number] - box).max(axis=1) <= line + 2).sum())
        if before:
            room_x, room_y = (box[2] - box[0]) // 3, (box[3] - box[1]) // 3
            inset = before * (line + 3)
            nested[number] += np.array([1, 1, -1, -1]) * np.minimum([room_x, room_y] * 2, inset)
    return nested


def _tag(label: str, color: tuple[int, int, int], height: int, width: int, letter_size: float) -> np.ndarray:
    """Returns the label as an image: [h, w, 3] uint8, no larger than a canvas of height x width pixels."""
    ink = (255, 255, 255) if _is_dark(color) else (0, 0, 0)
    return _text_image(label, letter_size * max(height, width) / 1150, ink, color, width, height)


def _text_image(
    text: str,
    scale: float,
    ink: tuple[int, int, int],
    ground: tuple[int, int, int],
    max_width: int,
    max_height: float = math.inf,
) -> np.ndarray:
    """Returns a line of text as an image with a margin: [h, w, 3] uint8, no larger than the given size."""
    # OpenCV 4 draws letters as strokes. They are smooth when they are drawn large and then reduced.
    oversampling = 4
    (text_width, text_height), baseline = cv2.getTextSize(text, FONT, scale * oversampling, STROKE)
    pad = text_height * 0.45
    width, height = text_width + 2 * pad, text_height + baseline * 0.5 + 2 * pad
    large = np.full((max(1, round(height)), max(1, round(width)), 3), ground, dtype=np.uint8)
    cv2.putText(large, text, (round(pad), round(pad + text_height)), FONT, scale * oversampling, ink, STROKE)
    shrink = min(1 / oversampling, max_width / large.shape[1], max_height / large.shape[0])
    size = max(1, int(large.shape[1] * shrink)), max(1, int(large.shape[0] * shrink))
    return cv2.resize(large, size, interpolation=cv2.INTER_AREA)


def _wrapped(line: str, scale: float, width: int) -> list[str]:
    """Returns the parts of a line that fit into a width, with their margins; a single word may be wider."""
    parts: list[str] = []
    for word in line.split():
        longer = f"{parts[-1]} {word}" if parts else word
        (text_width, text_height), _ = cv2.getTextSize(longer, FONT, scale * 4, STROKE)
        if parts and text_width + 0.9 * text_height <= 4 * width:
            parts[-1] = longer
        else:
            parts.append(word)
    return parts


def _place(box: np.ndarray, w: int, h: int, placed: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns the area of a label of w x h pixels: [4] ints, inside the image.

    The positions around the box come first, in order of preference, followed by positions below and above along its
    left edge. The first that covers no other label is chosen, otherwise the one that covers least.
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
