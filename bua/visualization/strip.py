"""A caption as a strip of images: for each word, the region that the model looked at (Anderson et al. 2018, figure
5)."""

from collections.abc import Sequence

import cv2
import numpy as np

from bua.visualization.draw import FONT, draw_attention

# Pixels.
PANEL, TITLE, GAP = 320, 34, 8


def draw_strip(
    image: np.ndarray, boxes: np.ndarray, words: Sequence[str], attention: np.ndarray, *, columns: int = 5
) -> np.ndarray:
    """Draws the image, then once more for each word with the word above it: what was not looked at is dark, and the
    region that was looked at most is outlined, with its share of the attention.

    Args:
        image: [H, W, 3] uint8 BGR.
        boxes: [n, 4] x1y1x2y2 in pixels of ``image``.
        words: T of them, in ASCII.
        attention: [T, n] at least 0; a row of zeros is a word that no region was looked at for.
        columns: images side by side; further ones are below.

    Returns:
        [H', W', 3] uint8 BGR.
    """
    if len(words) != len(attention):
        raise ValueError(f"{len(words)} words and {len(attention)} rows of attention; give as many of each")
    # The longer side becomes as long as a panel, so that labels are legible in it.
    factor = PANEL / max(image.shape[:2])
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    scaled = np.asarray(boxes, np.float32).reshape(-1, 4) * (np.array(size * 2) / np.array(image.shape[1::-1] * 2))
    panels = [_titled(small, "")]
    panels += [_titled(_looked(small, scaled, looked), word) for word, looked in zip(words, attention)]
    blank = np.full_like(panels[0], 255)
    columns = min(columns, len(panels))
    panels += [blank] * (-len(panels) % columns)
    return np.vstack([np.hstack(panels[start : start + columns]) for start in range(0, len(panels), columns)])


def _looked(image: np.ndarray, boxes: np.ndarray, attention: np.ndarray) -> np.ndarray:
    if not np.any(attention):
        return image
    drawn = draw_attention(image, boxes, attention, shown=1)
    return cv2.resize(drawn, image.shape[1::-1], interpolation=cv2.INTER_AREA)


def _titled(image: np.ndarray, title: str) -> np.ndarray:
    """The image on white, with its title above it."""
    panel = cv2.copyMakeBorder(image, TITLE, GAP, GAP, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    (width, _), _ = cv2.getTextSize(title, FONT, 0.8, 2)
    # A long word is written smaller.
    scale = 0.8 * min(1, (panel.shape[1] - 2 * GAP) / max(1, width))
    cv2.putText(panel, title, (GAP, TITLE - 10), FONT, scale, (0, 0, 0), 2, cv2.LINE_AA)
    return panel
