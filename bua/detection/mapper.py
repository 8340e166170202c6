"""Makes a training sample from an annotated image: reads it, flips it at random and resizes it to a random size."""

import logging
import re
from collections.abc import Sequence

import numpy as np
import torch
from fvcore.common.config import CfgNode

from bua.errors import InputError, first_of
from bua.io.images import Resize, naming_image, read_image
from bua.modeling.efficientdet import META_ARCHITECTURE as EFFICIENTDET
from bua.modeling.efficientdet import Letterbox, build_letterbox
from bua.structures import DetectorInput
from bua.vocabulary import Vocabulary

_SIDES = {"left": "right", "right": "left"}
_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
# In ``mirrored``: the vocabulary has no class for the mirror image.
DROPPED = -1

logger = logging.getLogger(__name__)


def mirror_words(text: str) -> str:
    """Exchanges the words "left" and "right", so that a text about an image describes the flipped image."""
    return _SIDE.sub(lambda match: _SIDES[match[0].lower()], text)


def mirrored(vocabulary: Vocabulary) -> np.ndarray:
    """Returns for each class of a vocabulary the class that it becomes when the image is flipped horizontally.

    Returns:
        [len(vocabulary)] int64: a class's own id if its name contains neither "left" nor "right" as a word, otherwise
        the id of the class with the other word, or ``DROPPED`` if the vocabulary has no such class.
    """
    ids = [vocabulary.id(mirror_words(name)) for name in vocabulary.names]
    return np.array([DROPPED if id is None else id for id in ids], dtype=np.int64)


class TrainingMapper:
    """Makes a ``DetectorInput`` with ground truth from a dataset dict (Detectron2's standard form).

    Half of the images are flipped horizontally, with their boxes. With ``class_mirror`` and ``attribute_mirror``, the
    classes and attributes with "left" or "right" in their name are then exchanged for their mirror image. If the
    vocabulary has no mirror image, the attribute is left out, and a box of such a class is left out.

    Args:
        short_sides: Lengths in pixels that the short side is drawn from.
        long_side: Maximum length of the long side in pixels. If it would be longer, the short side becomes smaller.
        resize: Method of resizing, "caffe" or "detectron2", as in ``bua.io.images.resize_image``.
        convention: Box convention, "caffe" or "detectron2".
        sampling: "choice" draws one of ``short_sides``, "range" a whole number from the first to the second of them.
        flip: Whether half of the images are flipped. With False, none is.
        max_attributes: Maximum number of attributes per box. Further ones are ignored.
        class_mirror, attribute_mirror: ``mirrored(vocabulary)`` of the classes and of the attributes. With None,
            flipped images keep their classes or attributes, as in the original.
        letterbox: Converts images instead, always to the same size.
    """

    def __init__(
        self,
        short_sides: Sequence[int],
        long_side: int,
        *,
        resize: str,
        convention: str,
        sampling: str = "choice",
        flip: bool = True,
        max_attributes: int = 16,
        class_mirror: np.ndarray | None = None,
        attribute_mirror: np.ndarray | None = None,
        letterbox: Letterbox | None = None,
    ):
        if sampling not in ("choice", "range") or (sampling == "range" and len(short_sides) != 2):
            raise InputError(
                f"INPUT.MIN_SIZE_TRAIN_SAMPLING is {sampling!r} with sizes {tuple(short_sides)}; "
                "use 'choice' with any number of sizes or 'range' with the smallest and the largest size"
            )
        self.short_sides, self.long_side, self.sampling = tuple(short_sides), long_side, sampling
        self.resize, self.convention, self.flip = resize, convention, flip
        self.max_attributes = max_attributes
        self.class_mirror, self.attribute_mirror = class_mirror, attribute_mirror
        self.letterbox = letterbox

    def __call__(self, record: dict, rng: np.random.Generator) -> DetectorInput:
        """Reads the image of ``record``; ``rng`` decides whether it is flipped, and its size.

        Raises:
            InputError: The image cannot be read, or its size differs from the one in ``record``.
        """
        image = read_image(record["file_name"])
        height, width = image.shape[:2]
        if (height, width) != (record["height"], record["width"]):
            raise InputError(
                f"{record['file_name']}: the image has {width}x{height} pixels, but its annotations are for "
                f"{record['width']}x{record['height']}; prepare the data set again from these images"
            )
        boxes, classes, attributes = self._ground_truth(record["annotations"])
        resize = self._draw_resize(rng)
        if self.flip and rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
            boxes = flip_boxes(boxes, width, self.convention)
            boxes, classes, attributes = self._mirror(boxes, classes, attributes)
        if self.convention == "detectron2":
            # Boxes without area cannot be regression targets. In "caffe" the same boxes are one pixel wide.
            boxes, classes, attributes = _select(boxes[:, 2:] > boxes[:, :2], boxes, classes, attributes)
        with naming_image(record["file_name"]):
            sample = resize(image, record["image_id"])
        sample.boxes = torch.from_numpy(boxes * np.array([*sample.scale, *sample.scale], dtype=np.float32))
        sample.classes = torch.from_numpy(classes)
        sample.attributes = torch.from_numpy(attributes)
        return sample

    def _draw_resize(self, rng: np.random.Generator) -> Resize | Letterbox:
        if self.letterbox is not None:
            return self.letterbox
        if self.sampling == "range":
            short = int(rng.integers(self.short_sides[0], self.short_sides[1], endpoint=True))
        else:
            short = int(rng.choice(self.short_sides))
        return Resize(short, self.long_side, self.resize)

    def _ground_truth(self, annotations: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        boxes = np.array([a["bbox"] for a in annotations], dtype=np.float32).reshape(-1, 4)
        classes = np.array([a["category_id"] for a in annotations], dtype=np.int64)
        attributes = np.full((len(annotations), self.max_attributes), -1, dtype=np.int64)
        for row, annotation in zip(attributes, annotations):
            ids = annotation.get("attribute_ids", ())[: self.max_attributes]
            row[: len(ids)] = ids
        return boxes, classes, attributes

    def _mirror(self, boxes: np.ndarray, classes: np.ndarray, attributes: np.ndarray):
        if self.attribute_mirror is not None and len(self.attribute_mirror) > 0:
            attributes = np.where(attributes >= 0, self.attribute_mirror[attributes], attributes)
        if self.class_mirror is not None:
            classes = self.class_mirror[classes]
            boxes, classes, attributes = _select(classes[:, None] != DROPPED, boxes, classes, attributes)
        return boxes, classes, attributes


def build_mapper(cfg: CfgNode, objects: Vocabulary, attributes: Vocabulary) -> TrainingMapper:
    """Builds the mapper that ``cfg.INPUT`` and ``cfg.MODEL.BUA`` describe, for a data set with these vocabularies."""
    if cfg.INPUT.RANDOM_FLIP not in ("horizontal", "none"):
        raise InputError(f"INPUT.RANDOM_FLIP is {cfg.INPUT.RANDOM_FLIP!r}; use 'horizontal' or 'none'")
    flip, flip_words = cfg.INPUT.RANDOM_FLIP == "horizontal", cfg.INPUT.FLIP_WORDS
    if flip_words and not flip:
        raise InputError(
            "INPUT.FLIP_WORDS is True, which has an effect only where INPUT.RANDOM_FLIP is 'horizontal'; leave it out"
        )
    sided = [name for vocabulary in (objects, attributes) for name in vocabulary.names if _SIDE.search(name)]
    if flip and sided and not flip_words:
        logger.warning(
            'Images are flipped at random, but "left" and "right" stay in the names of their classes and attributes '
            "(%s). To exchange them in flipped images, set INPUT.FLIP_WORDS True.",
            first_of(sided),
        )
    return TrainingMapper(
        cfg.INPUT.MIN_SIZE_TRAIN,
        cfg.INPUT.MAX_SIZE_TRAIN,
        resize=cfg.MODEL.BUA.RESIZE,
        convention=cfg.MODEL.BUA.BOX_CONVENTION,
        sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        flip=flip,
        max_attributes=cfg.MODEL.BUA.ATTRIBUTES.MAX_PER_BOX,
        class_mirror=mirrored(objects) if flip_words else None,
        attribute_mirror=mirrored(attributes) if flip_words else None,
        letterbox=build_letterbox(cfg) if cfg.MODEL.META_ARCHITECTURE == EFFICIENTDET else None,
    )


def flip_boxes(boxes: np.ndarray, width: int, convention: str) -> np.ndarray:
    """Returns boxes [G, 4] as they are after a horizontal flip of an image that is ``width`` pixels wide.

    The coordinates of a "caffe" box are pixels, and pixel x becomes ``width - 1 - x`` (lib/datasets/imdb.py). Those of
    a "detectron2" box are edges between pixels, and edge x becomes ``width - x``.
    """
    edge = width - 1 if convention == "caffe" else width
    x1, y1, x2, y2 = boxes.T
    return np.stack([edge - x2, y1, edge - x1, y2], axis=1)


def _select(keep: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """Returns the rows of each array for which the whole row of ``keep`` [G, n] is true."""
    rows = keep.all(axis=1)
    return [array[rows] for array in arrays]
