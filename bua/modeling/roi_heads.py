"""The heads that describe regions: pooling, res5, and the predictions of class, box and attributes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from bua.modeling.attributes import build_attribute_predictor
from bua.modeling.backbone import make_stage, stage_channels
from bua.modeling.boxes import encode_boxes, pairwise_iou
from bua.modeling.ground_truth import GroundTruth
from bua.modeling.losses import box_regression_loss
from bua.modeling.matching import match, sample, take_rows
from bua.modeling.regions import RegionOutputs


@dataclass
class SampledRegions:
    """The regions of one image that the losses are computed from, foreground first.

    Attributes:
        boxes: [N, 4] in network pixels.
        classes: [N] int64. The number of classes stands for background.
        targets: [F, 4] ground-truth box that each foreground region is assigned to, in network pixels.
        attributes: [F, M] int64 attributes of the foreground regions, padded with -1.
    """

    boxes: Tensor
    classes: Tensor
    targets: Tensor
    attributes: Tensor


@dataclass
class DrawnRegions:
    """The regions of B images, drawn on the device, with S places for each image (``bua.modeling.matching.Sample``).

    Attributes:
        boxes: [B, S, 4].
        classes: [B, S].
        targets: [B, S, 4]. Only the rows of foreground regions have a meaning.
        attributes: [B, S, M]. Likewise.
        counts: [B, 2] int64 number of foreground regions and of all regions of each image.
    """

    boxes: Tensor
    classes: Tensor
    targets: Tensor
    attributes: Tensor
    counts: Tensor

    def split(self, counts: Sequence[tuple[int, int]]) -> list[SampledRegions]:
        """Returns the regions of each image.

        Args:
            counts: Number of foreground regions and of all regions of each image: the values of ``self.counts``.
        """
        parts = zip(self.boxes, self.classes, self.targets, self.attributes, counts)
        return [
            SampledRegions(boxes[:number], classes[:number], targets[:foreground], attributes[:foreground])
            for boxes, classes, targets, attributes, (foreground, number) in parts
        ]


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


class ROIHeads(nn.Module):
    """Base of the heads: predicts class, box and attributes of each region from its feature (paper section 3.1), which
    a subclass computes."""

    def __init__(self, cfg):
        super().__init__()
        self.roi_heads, self.box_cfg, bua = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.BUA
        self.convention = bua.BOX_CONVENTION
        self.num_classes = self.roi_heads.NUM_CLASSES
        self.attribute_loss_weight = bua.ATTRIBUTES.LOSS_WEIGHT

    def add_predictors(self, cfg, feature_dim: int) -> None:
        """Adds the predictors for features [N, feature_dim]. A subclass calls it after it has made its own networks,
        whose parameters come first in checkpoints."""
        self.feature_dim = feature_dim
        self.box_predictor = BoxPredictor(feature_dim, self.num_classes)
        self.attribute_predictor = build_attribute_predictor(cfg, feature_dim)

    def features(self, feature_map: Tensor, boxes: list[Tensor], stride: int) -> Tensor:
        """Returns the features [sum of N, D], >= 0, of the boxes [N, 4] of each image, in network pixels."""
        raise NotImplementedError

    def pool(self, feature_map: Tensor, boxes: list[Tensor], stride: int) -> Tensor:
        """Returns the pooled part of the feature map under each box, as ``pool_regions`` with the settings in
        MODEL.ROI_BOX_HEAD."""
        return pool_regions(
            feature_map,
            boxes,
            self.box_cfg.POOLER_RESOLUTION,
            1.0 / stride,
            self.box_cfg.POOLER_TYPE,
            self.box_cfg.POOLER_SAMPLING_RATIO,
        )

    @torch.no_grad()
    def sample(self, proposals: Tensor, valid: Tensor, ground_truth: GroundTruth) -> DrawnRegions:
        """Draws the regions that the losses are computed from (lib/rpn/proposal_target_layer.py), without waiting for a
        GPU.

        Args:
            proposals: [B, R, 4].
            valid: [B, R] bool: False for padding.
            ground_truth: Of the same images.
        """
        if self.roi_heads.PROPOSAL_APPEND_GT:
            proposals = torch.cat([ground_truth.boxes, proposals], dim=1)
            valid = torch.cat([ground_truth.valid, valid], dim=1)
        iou = pairwise_iou(proposals, ground_truth.boxes, self.convention)
        threshold = self.roi_heads.IOU_THRESHOLDS[0]
        index, label = match(iou.masked_fill_(~ground_truth.valid[:, None, :], -1.0), threshold, threshold)
        label.masked_fill_(~valid, -1)
        drawn = sample(label, self.roi_heads.BATCH_SIZE_PER_IMAGE, self.roi_heads.POSITIVE_FRACTION)
        assigned = index.gather(1, drawn.index)
        return DrawnRegions(
            take_rows(proposals, drawn.index),
            ground_truth.classes.gather(1, assigned).masked_fill_(~drawn.positive, self.num_classes),
            take_rows(ground_truth.boxes, assigned),
            take_rows(ground_truth.attributes, assigned),
            torch.stack([drawn.num_positive, drawn.number], dim=1),
        )

    def losses(self, feature_map: Tensor, regions: list[SampledRegions], stride: int) -> dict[str, Tensor]:
        """Returns ``loss_cls``, ``loss_box_reg`` and ``loss_attr`` of the sampled regions."""
        numbers = [len(region.boxes) for region in regions]
        features = self.features(feature_map, [region.boxes for region in regions], stride)
        logits, deltas = self.box_predictor(features)
        classes = torch.cat([region.classes for region in regions])

        def foreground(values: Tensor) -> Tensor:
            parts = zip(values.split(numbers), regions)
            return torch.cat([part[: len(region.targets)] for part, region in parts])

        own_classes = foreground(classes)
        targets = encode_boxes(
            torch.cat([region.boxes[: len(region.targets)] for region in regions]),
            torch.cat([region.targets for region in regions]),
            self.box_cfg.BBOX_REG_WEIGHTS,
            self.convention,
        )
        loss_box_reg = box_regression_loss(
            foreground(deltas), own_classes, targets, self.num_classes, self.box_cfg.SMOOTH_L1_BETA
        )
        normalizer = max(len(classes), 1)
        losses = {
            "loss_cls": F.cross_entropy(logits, classes, reduction="sum") / normalizer,
            "loss_box_reg": self.box_cfg.BBOX_REG_LOSS_WEIGHT * loss_box_reg / normalizer,
        }
        if self.attribute_predictor is not None:
            attributes = torch.cat([region.attributes for region in regions])
            loss = self.attribute_predictor.loss(foreground(features), own_classes, attributes)
            losses["loss_attr"] = self.attribute_loss_weight * loss
        return losses

    def features_of_maps(self, feature_maps: list[Tensor], boxes: list[list[Tensor]], stride: int) -> Tensor:
        """Returns what ``features`` returns, for the images of several feature maps.

        Args:
            feature_maps: [P, C, H, W] each.
            boxes: For each feature map, the boxes [N, 4] of its P images.
        """
        return torch.cat([self.features(*of_map, stride) for of_map in zip(feature_maps, boxes)])

    def describe(self, feature_map: Tensor, boxes: list[Tensor], stride: int, *, regress: bool = True) -> RegionOutputs:
        """Returns the features and predictions of the boxes [N, 4] of each image, in network pixels. The regions of
        all images follow each other.

        Args:
            regress: Whether to predict box deltas.
        """
        return self.describe_maps([feature_map], [boxes], stride, regress=regress)

    def describe_maps(
        self, feature_maps: list[Tensor], boxes: list[list[Tensor]], stride: int, *, regress: bool = True
    ) -> RegionOutputs:
        """Returns what ``describe`` returns, for the images of several feature maps. Arguments are as for
        ``features_of_maps``."""
        features = self.features_of_maps(feature_maps, boxes, stride).float()
        logits, deltas = self.box_predictor(features, regress)
        attribute_probs = None
        if self.attribute_predictor is not None:
            attribute_probs = self.attribute_predictor.probabilities(features, logits.argmax(dim=1))
        return RegionOutputs(features, logits.softmax(dim=1), deltas, attribute_probs)


class AttributeRes5ROIHeads(ROIHeads):
    """Pools each region, runs res5 on it, and averages the result to the region's feature ("C4")."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.res5 = make_stage(cfg, 5)
        self.add_predictors(cfg, stage_channels(cfg, 5))

    def features(self, feature_map: Tensor, boxes: list[Tensor], stride: int) -> Tensor:
        return self.res5(self.pool(feature_map, boxes, stride)).mean(dim=(2, 3))


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
    # The original's layer has no bf16 or fp16 form, nor have torchvision's.
    values = feature_map.float()
    if pooler == "ROIPool":
        pooled = roi_pool(values, boxes, resolution, scale)
    else:
        pooled = roi_align(values, boxes, resolution, scale, sampling_ratio, aligned=pooler == "ROIAlignV2")
    return pooled.to(feature_map.dtype)
