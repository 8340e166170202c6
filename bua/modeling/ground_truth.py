"""The annotated boxes of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bua.upload import upload


@dataclass
class GroundTruth:
    """The annotated boxes of B images, padded to the same number G, which is at least 1.

    Attributes:
        boxes: [B, G, 4] float32 x1y1x2y2 in network pixels.
        classes: [B, G] int64, counted from 0. -1 marks the padding.
        attributes: [B, G, M] int64, counted from 0, padded with -1.
    """

    boxes: Tensor
    classes: Tensor
    attributes: Tensor

    @property
    def valid(self) -> Tensor:
        """[B, G] bool: False for the padding."""
        return self.classes >= 0


def batch_ground_truth(images: Sequence[tuple[Tensor, Tensor, Tensor]], device: torch.device) -> GroundTruth:
    """Returns the annotated boxes of a batch on ``device``.

    Args:
        images: Boxes [G, 4] float32, classes [G] int64 and attributes [G, M] int64 of each image. G and M may differ.
            Tensors of the CPU are copied in one piece, without waiting for the device.
    """
    # One array for all. float32 has room for the numbers of 16 million classes.
    most_attributes = max(attributes.shape[1] for _, _, attributes in images)
    rows = [
        torch.cat(
            [
                boxes,
                classes[:, None].to(boxes.dtype),
                F.pad(attributes, (0, most_attributes - attributes.shape[1]), value=-1).to(boxes.dtype),
            ],
            dim=1,
        )
        for boxes, classes, attributes in images
    ]
    packed = pad_sequence(rows, batch_first=True, padding_value=-1.0)
    if packed.shape[1] == 0:
        packed = F.pad(packed, (0, 0, 0, 1), value=-1.0)
    packed = upload(packed, device)
    return GroundTruth(packed[:, :, :4], packed[:, :, 4].long(), packed[:, :, 5:].long())
