"""The detectors of grid-feats-vqa (Jiang et al. 2020, "In Defense of Grid Features for Visual Question Answering").

The backbone includes res5, which the region proposal network and the heads read. A region is pooled to one cell, from
which fully connected layers compute its feature. The grid features of an image are res5's output for the whole image.
"""

import copy
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from bua.modeling.backbone import STRIDE, Bottleneck, DeformableBottleneck, ResNetC4, make_stage, stage_channels
from bua.modeling.detector import Detector
from bua.modeling.roi_heads import ROIHeads


class GridDetector(Detector):
    """Faster R-CNN on res5 of the whole image, with an attribute head.

    Training and inference are those of ``Detector``. The feature of a region is the output of the last fully connected
    layer of the box head, 1024 numbers in the released models.
    """

    backbone: "ResNetC5"

    def grid_map(self, pixels: Tensor) -> Tensor:
        """Returns the features that grid-feats-vqa extracts: res5's output without its dilation, for normalised images
        [N, 3, H, W]. A cell covers 32 pixels."""
        return self.backbone.forward_undilated(pixels)


class ResNetC5(ResNetC4):
    """ResNet up to res5, whose output it returns.

    Attributes:
        stride: Number of pixels per cell of the feature map: 16 where MODEL.RESNETS.RES5_DILATION is 2, otherwise 32.
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        self.res5 = make_stage(cfg, 5)
        self.out_channels = stage_channels(cfg, 5)
        self.dilated = cfg.MODEL.RESNETS.RES5_DILATION > 1
        self.stride = STRIDE if self.dilated else 2 * STRIDE
        self.stride_in_1x1 = cfg.MODEL.RESNETS.STRIDE_IN_1X1

    def forward(self, x: Tensor) -> Tensor:
        """Returns the feature map [N, out_channels, ~H/stride, ~W/stride] of images [N, 3, H, W]."""
        return self.res5(super().forward(x))

    def forward_undilated(self, x: Tensor) -> Tensor:
        """Returns the feature map [N, out_channels, ~H/32, ~W/32] that the same weights give without dilation."""
        res5 = undilated(self.res5, self.stride_in_1x1) if self.dilated else self.res5
        return res5(super().forward(x))


class AttributeStandardROIHeads(ROIHeads):
    """Pools each region and computes its feature by a box head of fully connected layers."""

    def __init__(self, cfg, in_channels: int):
        super().__init__(cfg)
        head = cfg.MODEL.ROI_BOX_HEAD
        self.box_head = FullyConnectedHead(in_channels * head.POOLER_RESOLUTION**2, head.FC_DIM, head.NUM_FC)
        self.add_predictors(cfg, head.FC_DIM)

    def features(self, feature_map: Tensor, boxes: list[Tensor], stride: int) -> Tensor:
        # Where the backbone is in bfloat16, this layer is not.
        return self.box_head(self.pool(feature_map.float(), boxes, stride))


class FullyConnectedHead(nn.Module):
    """Fully connected layers ``fc1``, ``fc2``, ..., each followed by ReLU."""

    def __init__(self, in_features: int, hidden: int, layers: int):
        super().__init__()
        for number in range(1, layers + 1):
            layer = nn.Linear(in_features if number == 1 else hidden, hidden)
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
            self.add_module(f"fc{number}", layer)

    def forward(self, pooled: Tensor) -> Tensor:
        """Returns features [R, hidden], >= 0, for pooled regions [R, C, n, n]."""
        x = pooled.flatten(1)
        for layer in self.children():
            x = F.relu_(layer(x))
        return x


def undilated(stage: nn.Sequential, stride_in_1x1: bool) -> nn.Sequential:
    """Returns a dilated stage with stride 2 and without dilation. It shares the parameters of ``stage``, which is not
    changed.

    Args:
        stride_in_1x1: As for ``BlockShape``.
    """
    shared = {id(values): values for values in [*stage.parameters(), *stage.buffers()]}
    blocks = copy.deepcopy(stage, shared)
    for number, block in enumerate(cast("list[Bottleneck]", list(blocks))):
        convolutions: list[nn.Conv2d] = [block.conv2]
        if isinstance(block, DeformableBottleneck):
            convolutions.append(block.conv2_offset)
        for conv in convolutions:
            conv.dilation = conv.padding = (1, 1)
        if number == 0:
            assert block.shortcut is not None
            for conv in [block.shortcut, *([block.conv1] if stride_in_1x1 else convolutions)]:
                conv.stride = (2, 2)
    return blocks
