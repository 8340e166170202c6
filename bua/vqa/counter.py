"""A layer that counts things by their boxes (Zhang, Hare and Prügel-Bennett, ICLR 2018; ban-vqa, counting.py)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bua.tasks.layers import at_least_float32

PIECES = 16


class Counter(nn.Module):
    """Counts the things that the attended boxes of an image show; a thing with several boxes is counted once.

    Boxes are the vertices of a graph whose edges are weighted by attention. Learned functions remove the edges between
    boxes of the same thing and scale down duplicate boxes; the number of things is the square root of the sum of the
    edges that remain.

    The count is always computed in float32: in bfloat16 it is off by half a thing, and the small constants that prevent
    a division by zero are 0 in float16.

    Args:
        objects: The largest number that can be counted, and the number of boxes that are used, those with the highest
            attention.

    Attributes:
        weight: [16, 17]; function i is piecewise linear with 16 pieces on [0, 1] and rises from 0 to 1, piece j in
            proportion to |weight[i, j]|. The functions have the paper's numbers. Functions 8 to 15 are never used; they
            are in ban-vqa's code, and so in its checkpoints and its number of parameters.
    """

    def __init__(self, objects: int = 10):
        super().__init__()
        self.objects = objects
        weight = torch.ones(16, PIECES + 1)
        weight[:, 0] = 0
        self.weight = nn.Parameter(weight)

    def forward(self, boxes: Tensor, logits: Tensor) -> Tensor:
        """Counts the things in N images.

        Args:
            boxes: [N, n, 4] float32 x1y1x2y2 in any unit; zeros for padding.
            logits: [N, n], logits of the attention; minus infinity, or the lowest finite value, for padding.

        Returns:
            [N, objects + 1] float32, the number as a one-hot vector times the confidence in it. A number between two
            integers is divided between both by linear interpolation.
        """
        with torch.autocast(logits.device.type, enabled=False):
            return self._count(at_least_float32(boxes), at_least_float32(logits))

    def _count(self, boxes: Tensor, logits: Tensor) -> Tensor:
        lacking = max(self.objects - logits.shape[1], 0)
        logits = F.pad(logits, (0, lacking), value=torch.finfo(logits.dtype).min)
        boxes = F.pad(boxes, (0, 0, 0, lacking))
        logits, chosen = logits.topk(self.objects, dim=1, sorted=False)
        boxes = boxes.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 4))

        attention = logits.sigmoid()
        relevance = attention.unsqueeze(2) * attention.unsqueeze(1)
        distance = 1 - _iou(boxes)

        within = self._function(0, relevance) * self._function(1, distance)
        copies = self._copies(attention, self._function(3, relevance) * self._function(4, distance))
        edges = (within / (copies.unsqueeze(2) * copies.unsqueeze(1))).sum(dim=(1, 2))
        loops = (self._function(0, attention * attention) / copies).sum(dim=1)
        # The constant keeps the gradient of the square root finite where no box is attended.
        number = (edges + loops + 1e-20).sqrt().clamp(max=self.objects)

        attention_doubt = (self._function(5, attention) - 0.5).abs().mean(dim=1)
        distance_doubt = (self._function(6, distance) - 0.5).abs().mean(dim=(1, 2))
        confidence = self._function(7, attention_doubt + distance_doubt)
        return self._one_hot(number) * confidence.unsqueeze(1)

    def _copies(self, attention: Tensor, edges: Tensor) -> Tensor:
        """Maps [N, k] and [N, k, k] to [N, k], the number of boxes that resemble each box, itself included."""
        alike = self._function(2, 1 - (attention.unsqueeze(2) - attention.unsqueeze(1)).abs())
        same_edges = _product(self._function(2, 1 - (edges.unsqueeze(3) - edges.unsqueeze(2)).abs()))
        return (alike * same_edges).sum(dim=2)

    def _function(self, i: int, x: Tensor) -> Tensor:
        rises = self.weight[i].abs()
        rises = rises / rises.sum()
        position = PIECES * x
        piece = position.detach().long().clamp(0, PIECES)
        before = rises.cumsum(0).index_select(0, piece.flatten()).view_as(x)
        slope = rises.index_select(0, (piece + 1).clamp(max=PIECES).flatten()).view_as(x)
        return before + position.frac() * slope

    def _one_hot(self, number: Tensor) -> Tensor:
        counts = torch.arange(self.objects + 1, device=number.device, dtype=number.dtype)
        return (1 - (number.unsqueeze(1) - counts).abs()).clamp(min=0)


def _product(factors: Tensor) -> Tensor:
    """Returns the product over dimension 1, as ``Tensor.prod``, whose gradient needs the number of zeros on the CPU and
    so waits for a GPU."""
    while factors.shape[1] > 1:
        half = factors.shape[1] // 2
        products = factors[:, :half] * factors[:, half : 2 * half]
        factors = torch.cat([products, factors[:, 2 * half :]], dim=1)
    return factors.squeeze(1)


def _iou(boxes: Tensor) -> Tensor:
    """Maps boxes [N, k, 4] to the intersection over union of all pairs, [N, k, k]."""
    first, second = boxes.unsqueeze(2), boxes.unsqueeze(1)
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    intersection = sides.clamp(min=0).prod(dim=-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)
    return intersection / (area.unsqueeze(2) + area.unsqueeze(1) - intersection + 1e-12)
