"""Draws a caption as a strip of images, one per word, with the region that the model attended to.

Source of this form: Anderson et al. 2018, figure 5.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from bua.visualization.draw import FONT, draw_attention

# Pixels.
PANEL, TITLE, GAP = 320, 34, 8


def draw_words(image: np.ndarray, boxes: np.ndarray, attention: np.ndarray) -> list[np.ndarray]:
    """Draws the attention to the regions of an image once for each word of a caption.

    Parts of the image without attention are dark, and the region with the most attention is outlined.

    Args:
        image: [H, W, 3] uint8 BGR.
        boxes: [n, 4] x1y1x2y2 in pixels of ``image``.
        attention: [T, n] attention to each region for each word, at least 0. A row of zeros leaves the image as it is.

    Returns:
        T images, each [h, w, 3] uint8 BGR, of which the longer side has ``PANEL`` pixels.
    """
    small = _resized(image)
    scale = np.array(small.shape[1::-1] * 2) / np.array(image.shape[1::-1] * 2)
    scaled = np.asarray(boxes, np.float32).reshape(-1, 4) * scale
    return [
        draw_attention(small, scaled, row, shown=1, with_shares=False, min_size=PANEL) if np.any(row) else small
        for row in attention
    ]


def draw_strip(
    image: np.ndarray, boxes: np.ndarray, words: Sequence[str], attention: np.ndarray, *, columns: int = 5
) -> np.ndarray:
    """Draws the image, followed by one image per word of a caption, as ``draw_words`` does.

    Above each image stand its word, and the share of the attention that the outlined region has.

    Args:
        image, boxes, attention: As for ``draw_words``.
        words: T words, in ASCII.
        columns: Number of images in a row.

    Returns:
        [H', W', 3] uint8 BGR.
    """
    if len(words) != len(attention):
        raise ValueError(f"{len(words)} words and {len(attention)} rows of attention; give the same number of each")
    titles = [f"{word} {share:.0%}" if share else word for word, share in zip(words, best_shares(attention))]
    panels = [_titled(_resized(image), "")]
    panels += [_titled(drawn, title) for drawn, title in zip(draw_words(image, boxes, attention), titles)]
    blank = np.full_like(panels[0], 255)
    columns = min(columns, len(panels))
    panels += [blank] * (-len(panels) % columns)
    return np.vstack([np.hstack(panels[start : start + columns]) for start in range(0, len(panels), columns)])


def best_shares(attention: np.ndarray) -> list[float]:
    """Returns, for each word, the share of the attention that the region with the most attention has, 0 to 1.

    Args:
        attention: [T, n] as for ``draw_words``. The share is 0 for a row of zeros.
    """
    return [float(row.max(initial=0) / max(row.sum(), 1e-12)) for row in np.asarray(attention, np.float64)]


def _resized(image: np.ndarray) -> np.ndarray:
    """Returns the image with ``PANEL`` pixels in its longer side."""
    factor = PANEL / max(image.shape[:2])
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def _titled(image: np.ndarray, title: str) -> np.ndarray:
    """Returns the image with a white margin, and its title above it."""
    panel = cv2.copyMakeBorder(image, TITLE, GAP, GAP, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    (width, _), _ = cv2.getTextSize(title, FONT, 0.8, 2)
    # A long title is drawn with smaller letters.
    scale = 0.8 * min(1, (panel.shape[1] - 2 * GAP) / max(1, width))
    cv2.putText(panel, title, (GAP, TITLE - 10), FONT, scale, (0, 0, 0), 2, cv2.LINE_AA)
    return panel
