"""Matches boxes to ground truth and samples them for the loss, without waiting for a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Sample:
    """The boxes that were drawn in each of B images: first the positive ones, then the negative ones, then unused
    places, so that every image has the same number S of places.

    Attributes:
        index: [B, S] int64 index of the box. In unused places it has no meaning.
        num_positive: [B] int64 number of positive boxes.
        number: [B] int64 number of boxes.
    """

    index: Tensor
    num_positive: Tensor
    number: Tensor

    @property
    def positive(self) -> Tensor:
        """[B, S] bool: whether a place has a positive box."""
        return self._places < self.num_positive[:, None]

    @property
    def used(self) -> Tensor:
        """[B, S] bool: whether a place has a box."""
        return self._places < self.number[:, None]

    @property
    def _places(self) -> Tensor:
        return torch.arange(self.index.shape[1], device=self.index.device)


def match(
    iou: Tensor, positive_threshold: float, negative_threshold: float, keep_best: bool = False
) -> tuple[Tensor, Tensor]:
    """Assigns each of N boxes to one of G ground-truth boxes.

    Args:
        iou: [..., N, G]; G may be 0. Pairs that are to be ignored have a negative value.
        positive_threshold: A box is positive if its overlap reaches this value.
        negative_threshold: A box is negative if its overlap is below this value.
        keep_best: Whether the boxes with the largest overlap with a ground-truth box are positive too, however small
            that overlap is.

    Returns:
        Index [..., N] int64 of the ground truth (0 if G is 0), and label [..., N] int64: 1 positive, 0 negative,
        -1 neither.
    """
    if iou.shape[-1] == 0:
        zeros = torch.zeros(iou.shape[:-1], dtype=torch.int64, device=iou.device)
        return zeros, zeros.clone()
    overlap, index = iou.max(dim=-1)
    positive = overlap >= positive_threshold
    if keep_best and iou.shape[-2]:
        best = iou.amax(dim=-2, keepdim=True)
        positive |= ((iou == best) & (best > 0)).any(dim=-1)
    label = torch.where(overlap < negative_threshold, 0, -1)
    return index, label.masked_fill_(positive, 1)


def sample(label: Tensor, number: int, positive_fraction: float) -> Sample:
    """Draws in each image at most ``number`` boxes at random, of which at most ``positive_fraction`` are positive.
    Negative boxes take the places that positive ones leave.

    Args:
        label: [B, N] int64: 1 positive, 0 negative, -1 never drawn.

    Returns:
        The boxes, in min(number, N) places for each image.
    """
    # In this order, what is drawn does not depend on how many boxes are added to every image as padding.
    key = torch.rand(label.T.shape, device=label.device).T
    most_positive = min(int(number * positive_fraction), label.shape[1])
    positive, num_positive = _draw(key, label == 1, most_positive)
    negative, num_negative = _draw(key, label == 0, min(number, label.shape[1]))
    place = torch.arange(negative.shape[1], device=label.device).expand_as(negative)
    own = num_positive[:, None]
    candidates = torch.cat([positive, negative], dim=1)
    index = candidates.gather(1, torch.where(place < own, place, place - own + most_positive))
    return Sample(index, num_positive, (num_positive + num_negative).clamp(max=negative.shape[1]))


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Returns the rows ``index`` [B, S] of values [B, N, D] of each image, [B, S, D]."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[-1]))


def _draw(key: Tensor, wanted: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Returns the [B, most] indices of the wanted boxes with the largest keys, followed by others, and their number
    [B]."""
    index = torch.where(wanted, key, -1.0).topk(most, dim=1).indices
    return index, wanted.sum(dim=1).clamp(max=most)
