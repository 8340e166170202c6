"""The backbone of bua's C4 detectors, for Detectron2."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from bua.modeling.backbone import STRIDE, ResNetC4


class ResNetC4Backbone(ResNetC4, Backbone):
    """``bua.modeling.backbone.ResNetC4`` with Detectron2's interface."""

    # Detectron2 wants a dict of feature maps, where bua's own backbone returns its only one.
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Computes the feature map ``res4`` of images [N, 3, H, W]."""
        return {"res4": super().forward(x)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Returns the number of channels and the stride of ``res4``."""
        return {"res4": ShapeSpec(channels=self.out_channels, stride=STRIDE)}


@BACKBONE_REGISTRY.register()
def build_bua_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNetC4Backbone:
    """Builds the backbone.

    Unlike Detectron2's ``build_resnet_backbone`` it follows MODEL.BUA.STEM_POOL and MODEL.BUA.RESNET_VERSION.
    """
    backbone = ResNetC4Backbone(cfg)
    backbone.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    return backbone
