"""Composes the scenes that Shapes images show: things with attributes, their places, and their spatial relations."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from bua.shapes.drawing import COLOR_VALUES, overlap, paint_background, paint_thing, shape_mask, shape_names

SHAPES = shape_names()
COLORS = [color for color in COLOR_VALUES if color != "gray"]
TEXTURES = ["striped", "dotted", "checkered"]
# Range of a thing's side, as a fraction of the image's short side. The gaps between the ranges set small and large
# things apart from those that are neither. Since sizes are relative, resizing the image for a detector keeps them.
SIZES = {"small": (0.18, 0.235), None: (0.29, 0.37), "large": (0.46, 0.555)}
SHORT_SIDES = (112, 120, 128, 136, 144)
ASPECT_RATIOS = (1.0, 1.25, 4 / 3, 1.5)
LONG_SIDE_LIMIT = 200
MAX_THINGS = 12
THING_COUNT_WEIGHTS = (8, 13, 16, 16, 13, 10, 7, 5, 4, 3, 3, 2)
MIN_VISIBLE = 0.6
MAX_IOU, MAX_IOU_SAME_SHAPE = 0.45, 0.25
PLACING_ATTEMPTS = 40


@dataclass
class Thing:
    """One thing of a scene. Lengths are in pixels.

    Attributes:
        shape: Object class, one of ``SHAPES``.
        color: One of ``COLORS``, or "gray" for a thing that has no attribute at all.
        size: "small", "large" or None.
        texture: One of ``TEXTURES`` or None.
        center: (x, y) in whole pixels.
        side: Side of the square that the shape fits into before it is rotated.
        angle: Clockwise rotation in degrees.
        flipped: Whether the shape is mirrored left to right.
        brightness: Factor on the colour.
        box: (x1, y1, x2, y2) around the pixels of which the shape covers half or more, including those that other
            things hide. x2 and y2 are one beyond the last pixel. The box may reach beyond the edge of the image.
        visible: Share of these pixels, 0 to 1, that lie in the image and are not hidden by another thing.
    """

    shape: str
    color: str
    size: str | None
    texture: str | None
    center: tuple[int, int]
    side: float
    angle: float
    flipped: bool
    brightness: float
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    visible: float = 1.0

    @property
    def attributes(self) -> list[str]:
        """The size, texture and colour that the thing has, in the order in which an annotator would write them."""
        color = None if self.color == "gray" else self.color
        return [value for value in (self.size, self.texture, color) if value is not None]


@dataclass
class Scene:
    """The description from which an image is drawn.

    Attributes:
        width, height: Size of the image in pixels.
        things: 1 to 12 things, from the back to the front.
        relations: Triples (subject, predicate, object). Subject and object are indices into ``things``; predicates
            are "left of", "right of", "above", "below", "on", "inside", "in front of" and "behind".
        background_seed: Random seed of the background.
    """

    width: int
    height: int
    things: list[Thing] = field(default_factory=list)
    relations: list[tuple[int, str, int]] = field(default_factory=list)
    background_seed: int = 0

    def clipped_box(self, index: int) -> tuple[int, int, int, int]:
        """Returns the box of a thing, clipped to the image."""
        x1, y1, x2, y2 = self.things[index].box
        return max(x1, 0), max(y1, 0), min(x2, self.width), min(y2, self.height)

    def find(self, shape: str | None = None, attributes: Sequence[str] = ()) -> list[int]:
        """Returns the indices of the things of this shape (None: any shape) that have all of these attributes."""
        required = set(attributes)
        return [
            index
            for index, thing in enumerate(self.things)
            if shape in (None, thing.shape) and required.issubset((thing.size, thing.texture, thing.color))
        ]


def compose_scene(rng: np.random.Generator) -> Scene:
    """Composes a random scene: its size, and 1 to 12 things that may overlap.

    At least the share ``MIN_VISIBLE`` of each thing stays visible.
    """
    short = int(rng.choice(SHORT_SIDES))
    long = min(round(short * rng.choice(ASPECT_RATIOS)), LONG_SIDE_LIMIT)
    width, height = (long, short) if rng.random() < 0.7 else (short, long)
    scene = Scene(width, height, background_seed=int(rng.integers(2**31)))
    thing_count = 1 + int(rng.choice(MAX_THINGS, p=np.array(THING_COUNT_WEIGHTS) / sum(THING_COUNT_WEIGHTS)))
    canvas = _Canvas(height, width)
    for _ in range(thing_count):
        for _ in range(PLACING_ATTEMPTS):
            thing = _random_thing(rng, scene, thing_count)
            if canvas.place(thing, scene.things):
                scene.things.append(thing)
                break
    for thing, visible in zip(scene.things, canvas.visible()):
        thing.visible = visible
    scene.relations = _relations(scene, canvas)
    return scene


def draw_scene(scene: Scene) -> np.ndarray:
    """Returns the image of a scene, [height, width, 3] uint8 BGR."""
    rng = np.random.default_rng(scene.background_seed)
    image = paint_background(scene.height, scene.width, rng)
    for thing in scene.things:
        paint_thing(
            image,
            thing.shape,
            thing.center,
            thing.side,
            thing.angle,
            thing.flipped,
            thing.color,
            thing.texture,
            thing.brightness,
        )
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def box_iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Returns the intersection over union of two x1y1x2y2 boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _random_thing(rng: np.random.Generator, scene: Scene, thing_count: int) -> Thing:
    shape = str(rng.choice(SHAPES))
    short = min(scene.width, scene.height)
    crowded = thing_count > 6
    plain = rng.random() < 0.1
    size_weights = (0.7, 0.25, 0.05) if crowded else (0.3, 0.4, 0.3)
    size = None if plain else ("small", None, "large")[rng.choice(3, p=size_weights)]
    side = short * rng.uniform(*SIZES[size])
    color = "gray" if plain else str(rng.choice(COLORS))
    texture = None if plain or rng.random() < 0.45 else str(rng.choice(TEXTURES))
    larger = [thing for thing in scene.things if thing.side > 1.9 * side]
    if larger and rng.random() < 0.3:
        host = larger[rng.integers(len(larger))]
        center = host.center
    else:
        # Most things lie inside the image; some reach beyond its edge.
        margin = side * (0.36 if rng.random() < 0.15 else 0.52)
        center = (
            int(rng.uniform(margin, scene.width - margin)),
            int(rng.uniform(margin, scene.height - margin)),
        )
    return Thing(
        shape=shape,
        color=color,
        size=size,
        texture=texture,
        center=center,
        side=float(side),
        angle=float(rng.uniform(-12, 12)),
        flipped=bool(rng.random() < 0.5),
        brightness=float(rng.uniform(0.9, 1.08)),
    )


class _Canvas:
    """Keeps track of which thing each pixel shows, and so of which parts are hidden."""

    def __init__(self, height: int, width: int):
        self.owner = np.full((height, width), -1, np.int8)
        self.masks: list[np.ndarray] = []
        self.areas: list[int] = []

    def place(self, thing: Thing, others: list[Thing]) -> bool:
        """Places ``thing`` in front of the others and sets its box.

        Returns:
            False, with nothing changed, if too little of it or of another thing would be visible, or if its box
            overlaps another box too much.
        """
        silhouette = shape_mask(thing.shape, thing.side, thing.angle, thing.flipped) >= 0.5
        x, y, width, height = cv2.boundingRect(silhouette.astype(np.uint8))
        left, top = thing.center[0] - len(silhouette) // 2, thing.center[1] - len(silhouette) // 2
        box = (left + x, top + y, left + x + width, top + y + height)
        for other in others:
            if box_iou(box, other.box) > (MAX_IOU_SAME_SHAPE if other.shape == thing.shape else MAX_IOU):
                return False
        mask = np.zeros(self.owner.shape, bool)
        window, patch = overlap(mask.shape, thing.center, len(silhouette))
        mask[window] = silhouette[patch]
        before = self.owner.copy()
        self.owner[mask] = len(self.masks)
        self.masks.append(mask)
        self.areas.append(int(silhouette.sum()))
        if min(self.visible()) < MIN_VISIBLE:
            self.owner = before
            self.masks.pop()
            self.areas.pop()
            return False
        thing.box = box
        return True

    def visible(self) -> list[float]:
        """Returns the visible share of each thing's pixels."""
        shown = np.bincount(self.owner.ravel() + 1, minlength=len(self.areas) + 1)[1:]
        return [float(count / area) for count, area in zip(shown, self.areas)]

    def covered(self, front: int, back: int) -> float:
        """Returns the share of the pixels of ``front`` that cover pixels of ``back``."""
        return float((self.masks[front] & self.masks[back]).sum() / self.masks[front].sum())


def _relations(scene: Scene, canvas: _Canvas) -> list[tuple[int, str, int]]:
    relations = []
    for back in range(len(scene.things)):
        for front in range(back + 1, len(scene.things)):
            relations += _relate(scene, canvas, front, back)
    return relations


def _relate(scene: Scene, canvas: _Canvas, front: int, back: int) -> list[tuple[int, str, int]]:
    a, b = scene.things[front].box, scene.things[back].box
    within = a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]
    covered = canvas.covered(front, back)
    if within and covered >= 0.9:
        return [(front, "on", back)]
    if within and scene.things[back].shape == "ring":
        return [(front, "inside", back)]
    if covered >= 0.08:
        return [(front, "in front of", back), (back, "behind", front)]
    right, down = (a[0] + a[2]) - (b[0] + b[2]), (a[1] + a[3]) - (b[1] + b[3])
    if abs(right) > abs(down) and (a[0] >= b[2] or b[0] >= a[2]):
        relation, inverse = ("right of", "left of") if right > 0 else ("left of", "right of")
    elif abs(down) >= abs(right) and (a[1] >= b[3] or b[1] >= a[3]):
        relation, inverse = ("below", "above") if down > 0 else ("above", "below")
    else:
        return []
    return [(front, relation, back), (back, inverse, front)]
