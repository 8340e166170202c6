"""Anchors in either box convention, for Detectron2."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.structures import Boxes
from torch import Tensor

from bua.modeling.anchors import AnchorGenerator


@ANCHOR_GENERATOR_REGISTRY.register()
class BUAAnchorGenerator(AnchorGenerator):
    """Generates anchors in the convention MODEL.BUA.BOX_CONVENTION.

    Unlike Detectron2's ``DefaultAnchorGenerator`` it can also generate the original's anchors.
    """

    box_dim = 4

    def __init__(self, cfg, input_shape: list[ShapeSpec]):
        super().__init__(cfg, [shape.stride for shape in input_shape])

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """Returns the anchors of each feature map."""
        return [Boxes(anchors) for anchors in super().forward(features)]
