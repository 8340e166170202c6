"""Draws the things of Shapes and their backgrounds with OpenCV: outlines, colours and textures.

Everything is drawn at ``SUPERSAMPLING`` times its size and then averaged down. This gives smooth edges that do not
depend on how OpenCV draws a line.
"""

import math

import cv2
import numpy as np

SUPERSAMPLING = 4
OUTLINE_PIXELS = 1.25
SHADOW_OFFSET = 2
SHADOW_STRENGTH = 0.3

# BGR. The colours are far apart from each other. A thing without any attribute is gray.
COLOR_VALUES = {
    "red": (45, 40, 220),
    "orange": (25, 130, 250),
    "yellow": (55, 220, 250),
    "green": (70, 165, 50),
    "blue": (220, 100, 35),
    "purple": (160, 45, 125),
    "pink": (190, 135, 255),
    "white": (248, 248, 248),
    "black": (38, 36, 36),
    "gray": (140, 140, 140),
}
# The second tone of a texture is darker than these colours, and lighter than the others.
LIGHT_COLORS = ("orange", "yellow", "pink", "white", "green")


def shape_names() -> list[str]:
    """Returns the names of the object classes, in the order of their ids."""
    return list(OUTLINES)


def shape_mask(shape: str, side: float, angle: float, flipped: bool) -> np.ndarray:
    """Draws the silhouette of a thing.

    Args:
        shape: One of ``shape_names()``.
        side: Side in pixels of the square that the shape fits into before it is rotated.
        angle: Clockwise rotation about the centre, in degrees.
        flipped: Whether the shape is mirrored left to right.

    Returns:
        [P, P] float32 from 0 to 1, the share of each pixel that the shape covers. The shape's centre is the centre of
        this patch.
    """
    return _average_down(_draw_enlarged(shape, side, angle, flipped))


def paint_thing(
    image: np.ndarray,
    shape: str,
    center: tuple[int, int],
    side: float,
    angle: float,
    flipped: bool,
    color: str,
    texture: str | None,
    brightness: float,
) -> None:
    """Paints a thing and its shadow into ``image`` ([H, W, 3] float32 BGR, 0 to 255), in place.

    Args:
        image: The image so far.
        shape, side, angle, flipped: See ``shape_mask``.
        center: (x, y) in pixels. The thing may reach beyond the edge of the image.
        color: A key of ``COLOR_VALUES``.
        texture: "striped", "checkered", "dotted" or None.
        brightness: Factor on the colour.
    """
    enlarged = _draw_enlarged(shape, side, angle, flipped)
    coverage = _average_down(enlarged)
    reach = 2 * round(OUTLINE_PIXELS * SUPERSAMPLING) + 1
    inner = cv2.erode(enlarged, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    rim = coverage - _average_down(inner)

    shadow = cv2.GaussianBlur(coverage, (0, 0), 1.5) * SHADOW_STRENGTH
    window, patch = overlap(image.shape[:2], (center[0] + SHADOW_OFFSET, center[1] + SHADOW_OFFSET), len(shadow))
    image[window] *= 1 - shadow[patch][..., None]

    base = np.array(COLOR_VALUES[color], np.float32)
    second = base * 0.5 if color in LIGHT_COLORS else base + (255 - base) * 0.62
    weight = _texture(texture, coverage.shape[0], side, angle)[..., None]
    surface = base * (1 - weight) + second * weight
    # Light comes from above. Without this shading, large things look like holes in the image.
    light = np.linspace(1.1, 0.88, len(coverage), dtype=np.float32)[:, None, None] * brightness
    edge = base * 0.5 if color != "black" else base + 70
    surface = surface * light * (1 - rim[..., None]) + edge * rim[..., None]
    window, patch = overlap(image.shape[:2], center, len(coverage))
    image[window] += (surface[patch] - image[window]) * coverage[patch][..., None]


def paint_background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a background in muted colours: a gradient, bands, tiles or blotches.

    Returns:
        [height, width, 3] float32 BGR from 0 to 255.
    """
    first, second = _muted_color(rng), _muted_color(rng)
    x, y = np.meshgrid(np.linspace(0, 1, width, dtype=np.float32), np.linspace(0, 1, height, dtype=np.float32))
    turn = rng.uniform(0, 2 * math.pi)
    ramp: np.ndarray = 0.5 + 0.5 * (math.cos(turn) * (x - 0.5) + math.sin(turn) * (y - 0.5))
    kind = rng.choice(["gradient", "bands", "tiles", "blotches"], p=[0.4, 0.15, 0.2, 0.25])
    if kind == "bands":
        horizon = rng.uniform(0.45, 0.75)
        ramp = 0.25 * ramp + 0.75 * (y > horizon)
    elif kind == "tiles":
        size = int(rng.integers(14, 30))
        rows, columns = np.arange(height)[:, None] // size, np.arange(width)[None, :] // size
        seam = (np.arange(height)[:, None] % size == 0) | (np.arange(width)[None, :] % size == 0)
        ramp = 0.7 * ramp + 0.12 * ((rows + columns) % 2) + 0.18 * seam
    elif kind == "blotches":
        coarse = rng.random((int(rng.integers(3, 7)), int(rng.integers(3, 7))), dtype=np.float32)
        ramp = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32)
    image = first + (second - first) * ramp[..., None].astype(np.float32)
    image += grain * rng.uniform(2, 6)
    return image


def overlap(
    shape: tuple[int, int], center: tuple[int, int], size: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Returns where a square patch and an image overlap.

    Args:
        shape: (height, width) of the image.
        center: (x, y) of the patch's centre in the image.
        size: Side of the patch in pixels.

    Returns:
        The overlap as (rows, columns) of the image, and as (rows, columns) of the patch.
    """
    (rows, patch_rows), (columns, patch_columns) = (
        _overlap_along_axis(middle, length, size) for middle, length in zip(reversed(center), shape)
    )
    return (rows, columns), (patch_rows, patch_columns)


def _overlap_along_axis(middle: int, length: int, size: int) -> tuple[slice, slice]:
    start = middle - size // 2
    low, high = max(start, 0), max(min(start + size, length), 0)
    return slice(low, high), slice(low - start, high - start)


def _muted_color(rng: np.random.Generator) -> np.ndarray:
    hue, saturation, value = rng.integers(0, 180), rng.integers(10, 75), rng.integers(125, 225)
    pixel = np.array([[[hue, saturation, value]]], np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def _texture(texture: str | None, size: int, side: float, angle: float) -> np.ndarray:
    """Returns the weight of the second tone, [size, size] float32: 0 where the surface has its base colour."""
    if texture is None:
        return np.zeros((size, size), np.float32)
    period = max(7.0, side * 0.27) / (2 * np.pi)
    turn = np.deg2rad(angle)
    y, x = (np.mgrid[:size, :size] - size / 2 + 0.5) / period
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    if texture == "striped":
        wave = np.sin(u + v)
    elif texture == "checkered":
        wave = 2 * np.sin(0.75 * u) * np.sin(0.75 * v)
    else:
        wave = np.cos(u) + np.cos(v) - 0.55
    return np.clip(0.5 + 2 * wave, 0, 1).astype(np.float32)


def _draw_enlarged(shape: str, side: float, angle: float, flipped: bool) -> np.ndarray:
    """Draws the silhouette at ``SUPERSAMPLING`` times its size: uint8, 0 or 255."""
    half = int(np.ceil(side * 0.72)) + 2
    canvas = np.zeros((2 * half * SUPERSAMPLING,) * 2, np.uint8)
    turn = np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    for points, value in OUTLINES[shape]:
        unit = points * (-1, 1) if flipped else points
        corners = unit @ rotation * (side / 2 * SUPERSAMPLING) + half * SUPERSAMPLING
        cv2.fillPoly(canvas, [np.round(corners).astype(np.int32)], 255 * value)
    return canvas


def _average_down(canvas: np.ndarray) -> np.ndarray:
    size = len(canvas) // SUPERSAMPLING
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _round_outline(x: float = 0, y: float = 0, rx: float = 1, ry: float = 1) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], axis=1)


def _star_outline() -> np.ndarray:
    turn = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2, 0.43, 1.05)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn) + 0.08], axis=1)


def _heart_outline() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 16


def _corners(*values: float) -> np.ndarray:
    return np.array(values, np.float64).reshape(-1, 2)


# Polygons in a square from -1 to 1 (x to the right, y down), which are painted in this order. 1 fills a polygon, 0 cuts
# it out.
OUTLINES = {
    "circle": [(_round_outline(), 1)],
    "square": [(_corners(-0.9, -0.9, 0.9, -0.9, 0.9, 0.9, -0.9, 0.9), 1)],
    "triangle": [(_corners(0, -0.95, 1, 0.8, -1, 0.8), 1)],
    "star": [(_star_outline(), 1)],
    "heart": [(_heart_outline(), 1)],
    "diamond": [(_corners(0, -1, 0.66, 0, 0, 1, -0.66, 0), 1)],
    "cross": [
        (_corners(-0.32, -1, 0.32, -1, 0.32, 1, -0.32, 1), 1),
        (_corners(-1, -0.32, 1, -0.32, 1, 0.32, -1, 0.32), 1),
    ],
    "ring": [(_round_outline(), 1), (_round_outline(rx=0.54, ry=0.54), 0)],
    "moon": [(_round_outline(x=0.2), 1), (_round_outline(x=0.75, rx=0.85, ry=0.85), 0)],
    "arrow": [(_corners(-1, -0.27, 0.05, -0.27, 0.05, -0.8, 1, 0, 0.05, 0.8, 0.05, 0.27, -1, 0.27), 1)],
    "house": [
        (_corners(0, -1, 1, -0.15, 0.75, -0.15, 0.75, 0.95, -0.75, 0.95, -0.75, -0.15, -1, -0.15), 1),
        (_corners(-0.22, 0.95, -0.22, 0.3, 0.22, 0.3, 0.22, 0.95), 0),
    ],
    "tree": [
        (_corners(0, -1, 0.55, -0.3, -0.55, -0.3), 1),
        (_corners(0, -0.65, 0.72, 0.2, -0.72, 0.2), 1),
        (_corners(0, -0.2, 0.9, 0.65, -0.9, 0.65), 1),
        (_corners(-0.2, 0.6, 0.2, 0.6, 0.2, 1, -0.2, 1), 1),
    ],
    "fish": [
        (_round_outline(x=-0.25, rx=0.75, ry=0.5), 1),
        (_corners(0.2, 0, 1, -0.6, 0.8, 0, 1, 0.6), 1),
        (_round_outline(x=-0.6, y=-0.13, rx=0.1, ry=0.1), 0),
    ],
    "cup": [
        (_round_outline(x=0.45, y=-0.1, rx=0.5, ry=0.5), 1),
        (_round_outline(x=0.45, y=-0.1, rx=0.26, ry=0.26), 0),
        (_corners(-0.95, -0.8, 0.45, -0.8, 0.28, 0.9, -0.78, 0.9), 1),
    ],
}
