"""A detector that several pipelines share, and that computes an image only once for all of them."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from bua.extraction.extractor_config import RegionChoice
from bua.extraction.image_detector import ImageDetector
from bua.structures import RegionPredictions

# Number of images of which the predictions are kept. Those of a detector of Visual Genome take about 12 MB an image.
KEPT = 8


class SharedDetector(ImageDetector):
    """A detector that keeps its predictions for the last images. It may be called from several threads.

    Args:
        opened: What ``open_detector`` returns.
        choice: Which regions of an image are kept.
    """

    def __init__(self, opened: ImageDetector, choice: RegionChoice):
        super().__init__(
            opened.detector,
            choice,
            name=opened.name,
            fingerprint=opened.fingerprint,
            objects=opened.objects,
            attributes=opened.attributes,
        )
        self._kept: OrderedDict[bytes, RegionPredictions] = OrderedDict()
        self._lock = threading.Lock()

    def predictions(self, images: Sequence[np.ndarray], *, regress: bool = True) -> list[RegionPredictions]:
        """Returns the predictions for all proposals of images [H, W, 3] uint8 BGR, always with regressed boxes."""
        with self._lock:
            return [self._predictions_of(image) for image in images]

    def _predictions_of(self, image: np.ndarray) -> RegionPredictions:
        key = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
        if key not in self._kept:
            self._kept[key] = super().predictions([image])[0]
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]
