"""What the users of a detector need of it, of whatever kind and engine it is."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from bua.structures import DetectorInput, RegionPredictions


class RegionDetector(Protocol):
    """A detector that describes regions: ``bua.modeling.Detector`` and those of other engines."""

    @property
    def device(self) -> torch.device: ...

    @property
    def convention(self) -> str:
        """Convention of the boxes, "caffe" or "detectron2"."""

    @property
    def feature_dim(self) -> int:
        """Dimension of the regions' features."""

    @property
    def prepare(self) -> Callable[..., DetectorInput]:
        """Converts an image [H, W, 3] uint8 BGR, and optionally its id, to the network's input."""

    def infer(
        self, batch: list[DetectorInput], boxes: list[Tensor] | None = None, *, regress: bool = True
    ) -> list[RegionPredictions]:
        """Returns the predictions for each image, as ``bua.modeling.Detector.infer`` does."""

    def grid(self, batch: list[DetectorInput]) -> list[Tensor]:
        """Returns the grid features of each image, as ``bua.modeling.Detector.grid`` does."""
