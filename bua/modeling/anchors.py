"""Anchors in the two conventions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# The original scales one 16x16 box, whose pixels are 0 to 15 (lib/rpn/generate_anchors.py).
CAFFE_BASE_SIZE = 16


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float], convention: str = "caffe") -> Tensor:
    """Returns the anchors of one cell of the feature map, before they are shifted to its place.

    Args:
        sizes: Square roots of the anchors' areas, in network pixels. "caffe" takes them in units of 16.
        aspect_ratios: Height divided by width.
        convention: "caffe": anchors are centred at (7.5, 7.5), their sides are rounded at 16 pixels and then scaled,
            and all sizes of the first ratio come first. "detectron2": anchors are centred at (0, 0) and not rounded,
            and all ratios of the first size come first.

    Returns:
        [A, 4] float32 x1y1x2y2.
    """
    if convention == "caffe":
        boxes = [_caffe_anchor(size / CAFFE_BASE_SIZE, ratio) for ratio in aspect_ratios for size in sizes]
    else:
        boxes = [_centred_anchor(size, ratio) for size in sizes for ratio in aspect_ratios]
    return torch.tensor(boxes, dtype=torch.float32)


def grid_anchors(cell: Tensor, height: int, width: int, stride: int, offset: float = 0.0) -> Tensor:
    """Returns a cell's anchors [A, 4] shifted to each cell of a feature map of ``height`` x ``width`` cells.

    Args:
        stride: Network pixels from one cell to the next.
        offset: Position of the first cell, in strides.

    Returns:
        [height * width * A, 4], rows ordered (y, x, anchor).
    """
    x = (torch.arange(width, device=cell.device) + offset) * stride
    y = (torch.arange(height, device=cell.device) + offset) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).to(cell.dtype)
    return (shifts[:, :, None] + cell).reshape(-1, 4)


class AnchorGenerator(nn.Module):
    """Generates the anchors of whole feature maps, as cfg.MODEL.ANCHOR_GENERATOR describes them.

    Attributes:
        num_anchors: Number of anchors per cell of each feature map.
    """

    def __init__(self, cfg, strides: list[int]):
        """
        Args:
            strides: Network pixels from one cell to the next, of each feature map. SIZES and ASPECT_RATIOS have one
                list for each feature map, or one for all.
        """
        super().__init__()
        generator = cfg.MODEL.ANCHOR_GENERATOR
        self.strides, self.offset = strides, generator.OFFSET
        for level in range(len(strides)):
            sizes = generator.SIZES[level if len(generator.SIZES) > 1 else 0]
            ratios = generator.ASPECT_RATIOS[level if len(generator.ASPECT_RATIOS) > 1 else 0]
            cell = cell_anchors(sizes, ratios, cfg.MODEL.BUA.BOX_CONVENTION)
            self.register_buffer(f"cell_anchors_{level}", cell, persistent=False)

    @property
    def num_anchors(self) -> list[int]:
        return [len(cell) for cell in self.buffers()]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns the anchors [H*W*A, 4] of each feature map [N, C, H, W], as ``grid_anchors``."""
        return [
            grid_anchors(cell, feature_map.shape[-2], feature_map.shape[-1], stride, self.offset)
            for cell, feature_map, stride in zip(self.buffers(), features, self.strides)
        ]


def _caffe_anchor(scale: float, ratio: float) -> list[float]:
    # round() rounds halves to the even neighbour, as np.round does in the original.
    width = round((CAFFE_BASE_SIZE**2 / ratio) ** 0.5)
    height = round(width * ratio)
    centre = (CAFFE_BASE_SIZE - 1) / 2
    half_width, half_height = (width * scale - 1) / 2, (height * scale - 1) / 2
    return [centre - half_width, centre - half_height, centre + half_width, centre + half_height]


def _centred_anchor(size: float, ratio: float) -> list[float]:
    width = (size**2 / ratio) ** 0.5
    height = ratio * width
    return [-width / 2, -height / 2, width / 2, height / 2]
