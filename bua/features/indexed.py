"""The base of the readers that keep a dictionary from the id of an image to its place in the files."""

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from bua.errors import InputError
from bua.features.checks import size_problem
from bua.features.ids import parse_id
from bua.structures import Regions

Place = TypeVar("Place")

logger = logging.getLogger(__name__)

# What the files of some programs lack. ``IndexedFeatures._note`` says it.
NO_BOXES = "has no boxes; they are read as zeros, and the sizes of the images as 0"
NO_SIZES = "does not have the sizes of the images, which are read as 0"


class IndexedFeatures(Mapping[int | str, Regions], Generic[Place]):
    """A mapping from image ids to ``Regions``, which are read from files when they are asked for.

    Subclasses set ``path`` and ``_places``, the place of each image by its id, in the order of the images, and
    implement ``_read``.
    """

    path: Path
    _places: dict[int | str, Place]

    @abstractmethod
    def _read(self, image_id: int | str, place: Place) -> Regions:
        """Reads one image."""

    def _note(self, message: str) -> None:
        """Logs something that all images of the files have in common. Each message is logged once."""
        noted: set[str] = self.__dict__.setdefault("_noted", set())
        if message not in noted:
            noted.add(message)
            logger.warning("%s: %s", self.path, message)

    def __getitem__(self, image_id: int | str) -> Regions:
        image_id = parse_id(image_id)
        regions = self._read(image_id, self._places[image_id])
        if problem := size_problem(regions):
            raise InputError(f"{self.path}: image {str(image_id)[:40]}: {problem}; extract this image again")
        return regions

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, image_id: object) -> bool:
        return parse_id(image_id) in self._places


def without_boxes(image_id: int | str, features: np.ndarray) -> Regions:
    """Returns regions whose boxes and image size are unknown: zeros take their place."""
    return Regions(image_id, 0, 0, np.zeros((len(features), 4), np.float32), np.asarray(features, np.float32))
