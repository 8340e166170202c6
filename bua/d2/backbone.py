"""The backbone of bua's C4 detectors for Detectron2."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from bua.modeling.backbone import STRIDE, ResNetC4


class ResNetC4Backbone(ResNetC4, Backbone):
    """``bua.modeling.backbone.ResNetC4`` behind Detectron2's interface."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images [N, 3, H, W] to the feature map ``res4``."""
        return {"res4": super().forward(x)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res4": ShapeSpec(channels=self.out_channels, stride=STRIDE)}


@BACKBONE_REGISTRY.register()
def build_bua_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNetC4Backbone:
    """Unlike Detectron2's ``build_resnet_backbone`` it has the stem's pooling as MODEL.BUA.STEM_POOL says."""
    backbone = ResNetC4Backbone(cfg)
    backbone.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    return backbone
