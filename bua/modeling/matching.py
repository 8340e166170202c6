"""Matches boxes to ground truth and samples them for the loss."""

import torch
from torch import Tensor


def match(
    iou: Tensor, positive_threshold: float, negative_threshold: float, keep_best: bool = False
) -> tuple[Tensor, Tensor]:
    """Assigns each of N boxes to one of G ground-truth boxes.

    Args:
        iou: [N, G]; G may be 0.
        positive_threshold: A box is positive if its overlap reaches this value.
        negative_threshold: A box is negative if its overlap is below this value.
        keep_best: Whether the boxes with the largest overlap with a ground-truth box are positive too, however small
            that overlap is.

    Returns:
        Index [N] int64 of the ground truth (0 if G is 0), and label [N] int64: 1 positive, 0 negative, -1 neither.
    """
    if iou.shape[1] == 0:
        zeros = torch.zeros(len(iou), dtype=torch.int64, device=iou.device)
        return zeros, zeros.clone()
    overlap, index = iou.max(dim=1)
    label = torch.full_like(index, -1)
    label[overlap < negative_threshold] = 0
    label[overlap >= positive_threshold] = 1
    if keep_best and len(iou):
        best = iou.max(dim=0).values
        label[((iou == best) & (best > 0)).any(dim=1)] = 1
    return index, label


def sample(label: Tensor, number: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draws at most ``number`` boxes at random, of which at most ``positive_fraction`` are positive.

    Args:
        label: [N] int64: 1 positive, 0 negative, -1 never drawn.

    Returns:
        int64 indices of the positive and of the negative boxes that were drawn.
    """
    positive = _draw(torch.nonzero(label == 1).squeeze(1), int(number * positive_fraction))
    negative = _draw(torch.nonzero(label == 0).squeeze(1), number - len(positive))
    return positive, negative


def _draw(candidates: Tensor, number: int) -> Tensor:
    order = torch.randperm(len(candidates), device=candidates.device)
    return candidates[order[:number]]
