"""A detector that several pipelines share, and that computes an image only once for all of them."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from bua.extraction.batch_regions import RegionChooser
from bua.extraction.extractor_config import RegionChoice
from bua.extraction.image_detector import ImageDetector
from bua.extraction.select import regions_from
from bua.structures import RegionPredictions, Regions

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

    def regions(self, images: Sequence[np.ndarray]) -> list[Regions]:
        """Returns the chosen regions of images [H, W, 3] uint8 BGR, from the kept predictions, unless the detector
        chooses them in its own way."""
        if isinstance(self.detector, RegionChooser):
            with self._lock:
                return super().regions(images)
        choice = self.choice
        return [
            regions_from(
                predictions,
                number,
                min_boxes=choice.min_boxes,
                max_boxes=choice.max_boxes,
                score_threshold=choice.score_threshold,
                nms_threshold=choice.nms_threshold,
                convention=self.detector.convention,
                regressed=choice.regressed,
            )
            for number, predictions in enumerate(self.predictions(images))
        ]

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
