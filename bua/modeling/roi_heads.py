"""The heads that describe regions: pooling, res5, and the predictions of class, box and attributes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from bua.modeling.attributes import build_attribute_predictor
from bua.modeling.backbone import make_stage, stage_channels
from bua.modeling.boxes import encode_boxes, pairwise_iou
from bua.modeling.losses import box_regression_loss
from bua.modeling.matching import match, sample
from bua.modeling.regions import RegionOutputs


@dataclass
class SampledRegions:
    """The regions of one image that the losses are computed from, foreground first.

    Attributes:
        boxes: [N, 4] in network pixels.
        classes: [N] int64. The number of classes stands for background.
        targets: [N, 4] ground-truth box that each region is assigned to, in network pixels. The rows of background
            regions have no meaning.
        attributes: [F, M] int64 attributes of the foreground regions, padded with -1.
    """

    boxes: Tensor
    classes: Tensor
    targets: Tensor
    attributes: Tensor


class BoxPredictor(nn.Module):
    """Predicts class scores, with background last, and box deltas for each class (cls_score, bbox_pred)."""

    def __init__(self, feature_dim: int, num_classes: int):
        super().__init__()
        self.cls_score = nn.Linear(feature_dim, num_classes + 1)
        self.bbox_pred = nn.Linear(feature_dim, num_classes * 4)
        for layer in (self.cls_score, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, regress: bool = True) -> tuple[Tensor, Tensor | None]:
        """Returns logits [N, C + 1] and, if ``regress``, deltas [N, C * 4], else None, for features [N, D]."""
        return self.cls_score(features).float(), self.bbox_pred(features).float() if regress else None


class AttributeRes5ROIHeads(nn.Module):
    """Pools each region, runs res5 on it, averages the result to the region's feature, and predicts from the feature
    (paper section 3.1)."""

    def __init__(self, cfg):
        super().__init__()
        self.roi_heads, self.box_head, bua = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.BUA
        self.convention = bua.BOX_CONVENTION
        self.num_classes = self.roi_heads.NUM_CLASSES
        self.feature_dim = stage_channels(cfg, 5)
        self.res5 = make_stage(cfg, 5)
        self.box_predictor = BoxPredictor(self.feature_dim, self.num_classes)
        self.attribute_loss_weight = bua.ATTRIBUTES.LOSS_WEIGHT
        self.attribute_predictor = build_attribute_predictor(cfg, self.feature_dim)

    def features(self, feature_map: Tensor, boxes: list[Tensor], stride: int) -> Tensor:
        """Returns the features [sum of N, D], >= 0, of the boxes [N, 4] of each image, in network pixels."""
        pooled = pool_regions(
            feature_map,
            boxes,
            self.box_head.POOLER_RESOLUTION,
            1.0 / stride,
            self.box_head.POOLER_TYPE,
            self.box_head.POOLER_SAMPLING_RATIO,
        )
        return self.res5(pooled).mean(dim=(2, 3))

    @torch.no_grad()
    def sample(self, proposals: Tensor, boxes: Tensor, classes: Tensor, attributes: Tensor) -> SampledRegions:
        """Draws the regions of one image that the losses are computed from (lib/rpn/proposal_target_layer.py).

        Args:
            proposals: [R, 4].
            boxes: [G, 4] ground truth.
            classes: [G].
            attributes: [G, M].
        """
        if self.roi_heads.PROPOSAL_APPEND_GT:
            proposals = torch.cat([proposals, boxes])
        threshold = self.roi_heads.IOU_THRESHOLDS[0]
        index, label = match(pairwise_iou(proposals, boxes, self.convention), threshold, threshold)
        foreground, background = sample(label, self.roi_heads.BATCH_SIZE_PER_IMAGE, self.roi_heads.POSITIVE_FRACTION)
        sampled = torch.cat([foreground, background])
        region_classes = torch.full_like(sampled, self.num_classes)
        region_classes[: len(foreground)] = classes[index[foreground]]
        targets = boxes[index[sampled]] if len(boxes) else proposals[sampled]
        return SampledRegions(proposals[sampled], region_classes, targets, attributes[index[foreground]])

    def losses(self, feature_map: Tensor, regions: list[SampledRegions], stride: int) -> dict[str, Tensor]:
        """Returns ``loss_cls``, ``loss_box_reg`` and ``loss_attr`` of the sampled regions."""
        features = self.features(feature_map, [region.boxes for region in regions], stride)
        logits, deltas = self.box_predictor(features)
        classes = torch.cat([region.classes for region in regions])
        targets = encode_boxes(
            torch.cat([region.boxes for region in regions]),
            torch.cat([region.targets for region in regions]),
            self.box_head.BBOX_REG_WEIGHTS,
            self.convention,
        )
        beta = self.box_head.SMOOTH_L1_BETA
        loss_box_reg = box_regression_loss(deltas, classes, targets, self.num_classes, beta) / max(len(classes), 1)
        losses = {
            "loss_cls": F.cross_entropy(logits, classes, reduction="sum") / max(len(classes), 1),
            "loss_box_reg": self.box_head.BBOX_REG_LOSS_WEIGHT * loss_box_reg,
        }
        if self.attribute_predictor is not None:
            foreground = classes < self.num_classes
            attributes = torch.cat([region.attributes for region in regions])
            loss = self.attribute_predictor.loss(features[foreground], classes[foreground], attributes)
            losses["loss_attr"] = self.attribute_loss_weight * loss
        return losses

    def describe(self, feature_map: Tensor, boxes: list[Tensor], stride: int, *, regress: bool = True) -> RegionOutputs:
        """Returns the features and predictions of the boxes [N, 4] of each image, in network pixels. The regions of
        all images follow each other.

        Args:
            regress: Whether to predict box deltas.
        """
        features = self.features(feature_map, boxes, stride).float()
        logits, deltas = self.box_predictor(features, regress)
        attribute_probs = None
        if self.attribute_predictor is not None:
            attribute_probs = self.attribute_predictor.probabilities(features, logits.argmax(dim=1))
        return RegionOutputs(features, logits.softmax(dim=1), deltas, attribute_probs)


def pool_regions(
    feature_map: Tensor, boxes: list[Tensor], resolution: int, scale: float, pooler: str, sampling_ratio: int
) -> Tensor:
    """Returns the pooled part of the feature map under each box, [sum of N, C, resolution, resolution].

    Args:
        feature_map: [P, C, H, W] of P images.
        boxes: P tensors [N, 4] in network pixels.
        scale: Number of cells per network pixel.
        pooler: "ROIPool" (maximum over rounded bins, the original's), "ROIAlign", or "ROIAlignV2" (half-pixel
            corrected).
    """
    if pooler == "ROIPool":
        # The original's layer has no bf16 or fp16 form, nor has torchvision's.
        return roi_pool(feature_map.float(), boxes, resolution, scale).to(feature_map.dtype)
    return roi_align(feature_map, boxes, resolution, scale, sampling_ratio, aligned=pooler == "ROIAlignV2")
