"""ROI heads with attributes, for Detectron2.

In training they take ``gt_attributes`` ([G, M] int64, padded with -1) in addition to ``gt_boxes`` and ``gt_classes``,
and return ``loss_attr`` in addition to Detectron2's losses. Detections have these fields in addition to Detectron2's:

- ``features`` [n, D]: Features of the region that the detection comes from.
- ``proposal_boxes``: Box of this region, from which the features were pooled. ``pred_boxes`` is this box regressed for
  the class. With ``AttributeRCNN`` both are in pixels of the original image. Detectron2's ``GeneralizedRCNN`` converts
  only ``pred_boxes`` to these and leaves ``proposal_boxes`` in network pixels.
- ``attribute_classes`` [n] int64, ``attribute_scores`` [n]: The most probable attribute of the region.
"""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import bua.modeling.roi_heads
from bua.d2.box_heads import box_head_of, predictions_of
from bua.d2.config import check_parts
from bua.d2.ground_truth import ground_truth_of, gt_attributes
from bua.detection.evaluation.detections import find_objects
from bua.errors import InputError
from bua.modeling.attributes import build_attribute_predictor
from bua.modeling.regions import RegionBoxes, RegionOutputs, proposed_regions, region_predictions
from bua.structures import DetectorInput, RegionPredictions
from bua.upload import upload


class AttributeROIHeads:
    """Base of both kinds of ROI heads: turns the outputs of ``describe_regions`` into predictions and detections."""

    training: bool  # of torch.nn.Module, which the subclasses derive from as well

    def configure(self, cfg) -> None:
        """Reads the settings of predictions and detections."""
        self.box_weights = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
        self.convention = cfg.MODEL.BUA.BOX_CONVENTION
        self.nms_threshold = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE
        self.score_threshold = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Returns detections in network pixels and no losses, or in training what ``training_step`` returns."""
        if not self.training:
            return self.detect_resized(images, features, proposals), {}
        assert targets is not None
        return self.training_step(features, proposals, targets)

    def training_step(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Returns proposals for heads that may follow, and the losses.

        Args:
            features: Feature maps by their names.
            proposals: Proposals of each image.
            targets: Ground truth of each image.
        """
        raise NotImplementedError

    def describe_regions(self, features: dict[str, Tensor], boxes: list[Tensor]) -> RegionOutputs:
        """Runs the heads on boxes [N, 4] of each image, in network pixels.

        Returns:
            The outputs for the regions of all images, one image after another.
        """
        raise NotImplementedError

    def predict_regions(
        self, images: list[DetectorInput], features: dict[str, Tensor], regions: list[RegionBoxes]
    ) -> list[RegionPredictions]:
        """Returns the predictions for the given regions of each image."""
        outputs = self.describe_regions(features, [boxes.network for boxes in regions])
        parts = zip(images, regions, outputs.split([len(boxes.network) for boxes in regions]))
        return [
            region_predictions(image, boxes, output, self.box_weights, self.convention)
            for image, boxes, output in parts
        ]

    def detect(self, predictions: RegionPredictions) -> Instances:
        """Returns the detections in an image, with the fields that the module's docstring describes."""
        regions, classes = find_objects(
            predictions,
            convention=self.convention,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            score_threshold=self.score_threshold,
        )
        assert predictions.boxes is not None
        instances = Instances(
            (predictions.height, predictions.width),
            pred_boxes=Boxes(predictions.boxes[regions, classes]),
            scores=predictions.class_probs[regions, classes],
            pred_classes=classes,
            proposal_boxes=Boxes(predictions.proposals[regions]),
            features=predictions.features[regions],
        )
        if predictions.attribute_probs is not None:
            _set_attributes(instances, predictions.attribute_probs[regions])
        return instances

    def detect_resized(
        self, images: ImageList, features: dict[str, Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        """Returns the detections in network pixels, for Detectron2's own meta-architectures."""
        inputs = [
            DetectorInput(images[i], width=width, height=height, scale=(1.0, 1.0))
            for i, (height, width) in enumerate(images.image_sizes)
        ]
        regions = [
            proposed_regions(image, x.proposal_boxes.tensor, x.objectness_logits) for image, x in zip(inputs, proposals)
        ]
        return [self.detect(predictions) for predictions in self.predict_regions(inputs, features, regions)]

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Adds ``features``, ``attribute_classes`` and ``attribute_scores`` of ``pred_boxes``, in network pixels."""
        outputs = self.describe_regions(features, [x.pred_boxes.tensor for x in instances])
        for x, output in zip(instances, outputs.split([len(x) for x in instances])):
            x.features = output.features
            if output.attribute_probs is not None:
                _set_attributes(x, output.attribute_probs)
        return instances


@ROI_HEADS_REGISTRY.register()
class AttributeRes5ROIHeads(AttributeROIHeads, bua.modeling.roi_heads.AttributeRes5ROIHeads):
    """``bua.modeling.roi_heads.AttributeRes5ROIHeads`` with Detectron2's interface.

    Unlike in Detectron2's ``Res5ROIHeads``, res5 keeps the resolution if MODEL.RESNETS.RES5_DILATION is 2, and both box
    conventions are supported. The arithmetic is that of the torch engine in both, which the tests hold to Detectron2's
    in its convention; pooling is torchvision's, as in Detectron2's ``ROIPooler``.
    """

    def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
        check_parts(cfg)
        super().__init__(cfg)
        self.configure(cfg)
        (self.in_feature,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
        self.stride = input_shape[self.in_feature].stride

    def training_step(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Returns the losses, and no proposals, because nothing after these heads needs them."""
        boxes = [x.proposal_boxes.tensor for x in proposals]
        valid = pad_sequence([torch.ones(len(x), dtype=torch.bool) for x in boxes], batch_first=True)
        padded = pad_sequence(boxes, batch_first=True)
        drawn = self.sample(padded, upload(valid, padded.device), ground_truth_of(targets))
        regions = drawn.split(drawn.counts.tolist())
        return [], self.losses(features[self.in_feature], regions, self.stride)

    def describe_regions(self, features: dict[str, Tensor], boxes: list[Tensor]) -> RegionOutputs:
        return self.describe(features[self.in_feature], boxes, self.stride)


@ROI_HEADS_REGISTRY.register()
class AttributeStandardROIHeads(AttributeROIHeads, StandardROIHeads):
    """Detectron2's ``StandardROIHeads`` with attributes, for FPN and other models with a box head.

    The features of a region are the box head's output. Pooling, box head, box coding and the losses of classes and
    boxes are Detectron2's; the attribute head and its loss are added, and all regions are returned
    (``predict_regions``).
    """

    def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
        check_parts(cfg)
        _check_standard_heads(cfg)
        super().__init__(cfg, input_shape)
        self.configure(cfg)
        shape = self.box_head.output_shape
        self.attribute_predictor = build_attribute_predictor(
            cfg, shape.channels * (shape.height or 1) * (shape.width or 1)
        )
        self.attribute_loss_weight = cfg.MODEL.BUA.ATTRIBUTES.LOSS_WEIGHT

    def training_step(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Returns the sampled proposals and the losses."""
        for target in targets:
            target.gt_attributes = gt_attributes(target)
        proposals = self.label_and_sample_proposals(proposals, targets)
        region_features = self._region_features(features, [x.proposal_boxes for x in proposals])
        losses = self.box_predictor.losses(self.box_predictor(region_features), proposals)
        if self.attribute_predictor is not None:
            losses["loss_attr"] = self.attribute_loss_weight * self._attribute_loss(region_features, proposals)
        return proposals, losses

    def predict_regions(
        self, images: list[DetectorInput], features: dict[str, Tensor], regions: list[RegionBoxes]
    ) -> list[RegionPredictions]:
        sizes = [(image.image.shape[-2], image.image.shape[-1]) for image in images]
        outputs = box_head_of(self).describe(features, [boxes.network for boxes in regions], sizes, given=True)
        return [predictions_of(*of_image) for of_image in zip(images, regions, outputs)]

    def describe_regions(self, features: dict[str, Tensor], boxes: list[Tensor]) -> RegionOutputs:
        region_features = self._region_features(features, [Boxes(x) for x in boxes]).float()
        logits, deltas = (values.float() for values in self.box_predictor(region_features))
        attribute_probs = None
        if self.attribute_predictor is not None:
            attribute_probs = self.attribute_predictor.probabilities(region_features, logits.argmax(dim=1))
        return RegionOutputs(region_features, logits.softmax(dim=1), deltas, attribute_probs)

    def _region_features(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        return self.box_head(pooled).flatten(1)

    def _attribute_loss(self, region_features: Tensor, proposals: list[Instances]) -> Tensor:
        assert self.attribute_predictor is not None
        foreground, masks = select_foreground_proposals(proposals, self.num_classes)
        classes = torch.cat([x.gt_classes for x in foreground])
        # Proposals of an image without ground truth do not have gt_attributes, and none of them is foreground.
        attributes = [x.gt_attributes for x in foreground if x.has("gt_attributes")] or [classes[:0, None]]
        return self.attribute_predictor.loss(region_features[torch.cat(masks)], classes, torch.cat(attributes))


def _set_attributes(instances: Instances, probs: Tensor) -> None:
    instances.attribute_scores, instances.attribute_classes = probs.max(dim=1)


def _check_standard_heads(cfg) -> None:
    switches = {
        "MODEL.MASK_ON": cfg.MODEL.MASK_ON,
        "MODEL.KEYPOINT_ON": cfg.MODEL.KEYPOINT_ON,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG,
        "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE,
        "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES,
    }
    for key, value in switches.items():
        if value:
            raise InputError(f"config: {key} is True, which AttributeStandardROIHeads does not support; use False")
