"""Anchors in the two conventions."""

import torch
from torch import Tensor, nn

# The original scales one 16x16 box, whose pixels are 0 to 15 (lib/rpn/generate_anchors.py).
CAFFE_BASE_SIZE = 16


def cell_anchors(sizes: list[float], aspect_ratios: list[float], convention: str = "caffe") -> Tensor:
    """The anchors of one cell of the feature map, before they are shifted to its place.

    Args:
        sizes: square roots of the anchors' areas, in network pixels; "caffe" takes them in units of 16.
        aspect_ratios: height over width.
        convention: "caffe": centred at (7.5, 7.5), sides rounded at 16 pixels and then scaled, all sizes of the first
            ratio first. "detectron2": centred at (0, 0), not rounded, all ratios of the first size first.

    Returns:
        [A, 4] float32 x1y1x2y2.
    """
    if convention == "caffe":
        boxes = [_caffe_anchor(size / CAFFE_BASE_SIZE, ratio) for ratio in aspect_ratios for size in sizes]
    else:
        boxes = [_centred_anchor(size, ratio) for size in sizes for ratio in aspect_ratios]
    return torch.tensor(boxes, dtype=torch.float32)


def grid_anchors(cell: Tensor, height: int, width: int, stride: int, offset: float = 0.0) -> Tensor:
    """Shifts a cell's anchors [A, 4] over a feature map of ``height`` x ``width`` cells.

    Args:
        stride: network pixels a cell.
        offset: of the first cell, in strides.

    Returns:
        [height * width * A, 4], rows ordered (y, x, anchor).
    """
    x = (torch.arange(width, device=cell.device) + offset) * stride
    y = (torch.arange(height, device=cell.device) + offset) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).to(cell.dtype)
    return (shifts[:, :, None] + cell).reshape(-1, 4)


class AnchorGenerator(nn.Module):
    """The anchors of whole feature maps, as cfg.MODEL.ANCHOR_GENERATOR says.

    Attributes:
        num_anchors: of a cell, for each feature map.
    """

    def __init__(self, cfg, strides: list[int]):
        """
        Args:
            strides: network pixels a cell, for each feature map. SIZES and ASPECT_RATIOS have a list for each of
                them, or one for all.
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
        """Feature maps [N, C, H, W] to their anchors [H*W*A, 4], as ``grid_anchors``."""
        return [
            grid_anchors(cell, *feature_map.shape[-2:], stride, self.offset)
            for cell, feature_map, stride in zip(self.buffers(), features, self.strides)
        ]


def _caffe_anchor(scale: float, ratio: float) -> list[float]:
    # round() takes halves to the even neighbour, as the original's np.round does.
    width = round((CAFFE_BASE_SIZE**2 / ratio) ** 0.5)
    height = round(width * ratio)
    centre = (CAFFE_BASE_SIZE - 1) / 2
    half_width, half_height = (width * scale - 1) / 2, (height * scale - 1) / 2
    return [centre - half_width, centre - half_height, centre + half_width, centre + half_height]


def _centred_anchor(size: float, ratio: float) -> list[float]:
    width = (size**2 / ratio) ** 0.5
    height = ratio * width
    return [-width / 2, -height / 2, width / 2, height / 2]
