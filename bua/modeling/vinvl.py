"""VinVL's detector (Zhang et al. 2021): a ResNeXt-152 C4 with attributes, which chooses its own regions.

Source: microsoft/scene_graph_benchmark, which is built on maskrcnn-benchmark. The network is that of ``Detector``;
resizing, box coding, proposals, the choice of regions and the class that attributes depend on are VinVL's.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bua.config import check_device
from bua.errors import InputError
from bua.modeling.anchors import AnchorGenerator
from bua.modeling.backbone import ResNetC4
from bua.modeling.boxes import clip_boxes
from bua.modeling.detector import Detector, rows_of_one_size
from bua.modeling.regions import RegionBoxes, given_regions, scale_of
from bua.modeling.roi_heads import AttributeRes5ROIHeads
from bua.modeling.rpn import RPN
from bua.modeling.supported import C4_VALUES, Choices, check_network
from bua.modeling.vinvl_boxes import VinVLResize, decode, propose
from bua.modeling.vinvl_detections import PLACE_NUMBERS, Detections, regions_of
from bua.modeling.vinvl_filters import FILTERS, Chosen, choose_attributes, choose_detections
from bua.structures import DetectorInput, RegionPredictions, Regions

# MODEL.META_ARCHITECTURE, as the original names it.
META_ARCHITECTURE = "AttrRCNN"
NOT_TRAINED = "VinVL's detector is not trained by bua; extract features with it, or train configs/vg_x152.yaml"
# IoU of suppression in filter 1, which the original does not take from its configuration.
FILTER_1_NMS = 0.3


class Choice(Protocol):
    """What ``VinVLDetector.choose`` reads of a ``bua.extraction.RegionChoice``."""

    @property
    def min_boxes(self) -> int: ...
    @property
    def max_boxes(self) -> int: ...
    @property
    def score_threshold(self) -> float: ...
    @property
    def nms_threshold(self) -> float: ...
    @property
    def regressed(self) -> bool: ...


class PostProcessing(NamedTuple):
    """Settings of what follows the network.

    Attributes:
        nms_filter: One of ``bua.modeling.vinvl_filters.FILTERS``.
        nms_threshold: IoU of suppression in the filters 0 and 2.
        attribute_threshold, max_attributes_per_object, max_attributes_per_image: As for ``choose_attributes``.
        spatial_features: Whether the place of a region is a part of its feature, as for ``regions_of``.
    """

    nms_filter: int
    nms_threshold: float
    attribute_threshold: float
    max_attributes_per_object: int
    max_attributes_per_image: int
    spatial_features: bool


@dataclass
class _DescribedImage:
    """The regions of an image with the outputs of the heads: class_probs [R, C] without background, deltas
    [R, 4 * C] or None, and the feature map [1, C, h, w]."""

    inputs: DetectorInput
    regions: RegionBoxes
    features: Tensor
    class_probs: Tensor
    deltas: Tensor | None
    feature_map: Tensor


def build_vinvl(cfg) -> "VinVLDetector":
    """Returns the detector of VinVL that ``cfg`` describes, with random weights, on cfg.MODEL.DEVICE.

    Raises:
        InputError: ``cfg`` asks for something that this detector does not have.
    """
    _check(cfg)
    backbone = ResNetC4(cfg)
    vinvl = cfg.MODEL.BUA.VINVL
    detector = VinVLDetector(
        backbone=backbone,
        proposal_generator=RPN(cfg, backbone.out_channels, AnchorGenerator(cfg, [backbone.stride])),
        roi_heads=AttributeRes5ROIHeads(cfg),
        resize=VinVLResize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        pixel_mean=torch.tensor(cfg.MODEL.PIXEL_MEAN).view(3, 1, 1),
        pixel_std=torch.tensor(cfg.MODEL.PIXEL_STD).view(3, 1, 1),
        box_weights=cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS,
        convention="detectron2",
    )
    detector.post_processing = PostProcessing(
        vinvl.NMS_FILTER,
        cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        vinvl.POSTPROCESS_ATTRIBUTES_THRESHOLD,
        vinvl.MAX_NUM_ATTR_PER_OBJ,
        vinvl.MAX_NUM_ATTR_PER_IMG,
        vinvl.SPATIAL_FEATURES,
    )
    detector.requires_grad_(False).to(cfg.MODEL.DEVICE)
    return detector.to(memory_format=torch.channels_last)


class VinVLDetector(Detector):
    """VinVL's detector, which only infers.

    ``choose`` and ``describe`` return regions as extraction writes them, ``detect`` what VinVL's own program computes,
    with all attributes, and ``infer`` the predictions for all proposals, as ``Detector.infer`` does. The convention of
    its boxes is "detectron2" as far as suppression is concerned (``bua.modeling.vinvl_boxes``).

    Attributes:
        post_processing: Settings of what follows the network.
    """

    post_processing: PostProcessing

    @property
    def feature_dim(self) -> int:
        """Dimension of the regions' features."""
        return self.roi_heads.feature_dim + (PLACE_NUMBERS if self.post_processing.spatial_features else 0)

    def forward(self, batch: list[DetectorInput]) -> dict[str, Tensor]:
        raise InputError(NOT_TRAINED)

    def choose(self, batch: list[DetectorInput], choice: Choice) -> list[Regions]:
        """Returns the regions of each image, on the host, as VinVL's program for extraction chooses them.

        Args:
            batch: What ``prepare`` returned for the images.
            choice: min_boxes, max_boxes, score_threshold and regressed are VinVL's MIN_DETECTIONS_PER_IMG,
                DETECTIONS_PER_IMG, SCORE_THRESH and the opposite of IGNORE_BOX_REGRESSION. nms_threshold is used by
                filter 1.

        Raises:
            InputError: As ``check_choice``.
        """
        self.check_choice(choice)
        detections = self.detect(
            batch,
            min_detections=choice.min_boxes,
            max_detections=choice.max_boxes,
            score_threshold=choice.score_threshold,
            nms_threshold=choice.nms_threshold,
            regressed=choice.regressed,
        )
        return [
            regions_of(inputs, found, self.post_processing.spatial_features) for inputs, found in zip(batch, detections)
        ]

    def check_choice(self, choice: Choice) -> None:
        """Checks that the filter can choose regions in this way.

        Raises:
            InputError: It cannot.
        """
        number = self.post_processing.nms_filter
        if number != 1 and choice.nms_threshold != FILTER_1_NMS:
            raise InputError(
                f"NMS threshold {choice.nms_threshold}: MODEL.BUA.VINVL.NMS_FILTER {number} takes it from "
                "MODEL.ROI_HEADS.NMS_THRESH_TEST; set that key"
            )
        if number == 2 and choice.regressed:
            # The original returns boxes of other regions then.
            raise InputError("regressed: MODEL.BUA.VINVL.NMS_FILTER 2 has no regressed boxes; use filter 0 or 1")

    @torch.inference_mode()
    def describe(self, batch: list[DetectorInput], boxes: list[Tensor]) -> list[Regions]:
        """Returns the regions of given boxes, on the host, in their order (FORCE_BOXES in VinVL's configuration).

        Args:
            boxes: [N, 4] boxes of each image, in its pixels.
        """
        described = []
        for image in self._describe(batch, boxes, regress=False):
            scores, classes = image.class_probs.max(dim=1)
            chosen = Chosen(torch.arange(len(classes), device=classes.device), classes, scores)
            found = self._detections(image, chosen, image.regions.network, image.features)
            described.append(regions_of(image.inputs, found, self.post_processing.spatial_features))
        return described

    @torch.inference_mode()
    def detect(
        self,
        batch: list[DetectorInput],
        *,
        min_detections: int = 10,
        max_detections: int = 100,
        score_threshold: float = 0.2,
        nms_threshold: float = FILTER_1_NMS,
        regressed: bool = False,
    ) -> list[Detections]:
        """Returns the detections of each image.

        Args:
            min_detections, max_detections, score_threshold: As for ``choose_detections``.
            nms_threshold: IoU of suppression in filter 1. The other filters take it from ``post_processing``.
            regressed: Whether boxes are regressed for their class. Attributes are then predicted from the features of
                the regressed boxes; the features that are returned remain those of the proposals.
        """
        settings = self.post_processing
        results = []
        for image in self._describe(batch, None, regress=regressed):
            boxes = self._regressed(image) if regressed else image.regions.network
            chosen = choose_detections(
                boxes.cpu(),
                image.class_probs.cpu(),
                settings.nms_filter,
                min_detections=min_detections,
                max_detections=max_detections,
                score_threshold=score_threshold,
                nms_threshold=nms_threshold if settings.nms_filter == 1 else settings.nms_threshold,
            )
            chosen = Chosen(*(values.to(boxes.device) for values in chosen))
            features = image.features[chosen.regions]
            if regressed:
                boxes = boxes[chosen.regions, chosen.classes]
                features = self.roi_heads.features(image.feature_map, [boxes], self.backbone.stride).float()
            else:
                boxes = boxes[chosen.regions]
            results.append(self._detections(image, chosen, boxes, features))
        return results

    @torch.inference_mode()
    def infer(
        self, batch: list[DetectorInput], boxes: list[Tensor] | None = None, *, regress: bool = True
    ) -> list[RegionPredictions]:
        """Returns the predictions for all proposals of each image, or for its given boxes [N, 4], as
        ``Detector.infer``. The attributes are those of the most probable class without background."""
        results = []
        for image in self._describe(batch, boxes, regress=regress):
            regressed = None
            if regress:
                regressed = self._regressed(image) / scale_of(image.inputs, image.features)
            results.append(
                RegionPredictions(
                    width=image.inputs.width,
                    height=image.inputs.height,
                    proposals=image.regions.original,
                    objectness=image.regions.objectness,
                    class_probs=image.class_probs,
                    boxes=regressed,
                    features=image.features,
                    attribute_probs=self._attribute_probs(image.features, image.class_probs.argmax(dim=1)),
                )
            )
        return results

    def infer_both(
        self, batch: list[DetectorInput], boxes: list[Tensor]
    ) -> tuple[list[RegionPredictions], list[RegionPredictions]]:
        return self.infer(batch), self.infer(batch, boxes)

    def _describe(
        self, batch: list[DetectorInput], boxes: list[Tensor] | None, *, regress: bool
    ) -> list[_DescribedImage]:
        """Returns the proposals of each image, or its given boxes, with the outputs of the heads."""
        if not batch:
            return []
        self._begin_inference()
        groups = rows_of_one_size(batch)
        feature_maps = [self.backbone(self._stack([batch[i] for i in rows])) for rows in groups]
        if boxes is None:
            regions = [self._propose_in(*of_map) for of_map in zip(feature_maps, groups, [batch] * len(groups))]
        else:
            regions = [[given_regions(batch[i], boxes[i].to(self.device)) for i in rows] for rows in groups]
        features = self.roi_heads.features_of_maps(
            feature_maps, [[image.network for image in group] for group in regions], self.backbone.stride
        ).float()
        logits, deltas = self.roi_heads.box_predictor(features, regress)
        class_probs = logits.softmax(dim=1)[:, :-1]
        images: dict[int, _DescribedImage] = {}
        start = 0
        for feature_map, rows, group in zip(feature_maps, groups, regions):
            for place, (i, image) in enumerate(zip(rows, group)):
                own = slice(start, start + len(image.network))
                start = own.stop
                images[i] = _DescribedImage(
                    batch[i],
                    image,
                    features[own],
                    class_probs[own],
                    None if deltas is None else deltas[own],
                    feature_map[place : place + 1],
                )
        return [images[i] for i in range(len(batch))]

    def _propose_in(self, feature_map: Tensor, rows: list[int], batch: list[DetectorInput]) -> list[RegionBoxes]:
        """Returns the proposals of the images ``rows`` of the batch, of which ``feature_map`` is."""
        rpn = self.proposal_generator.rpn
        anchors, objectness, deltas = self.proposal_generator(feature_map)
        regions = []
        for place, i in enumerate(rows):
            boxes, scores = propose(
                anchors,
                objectness[place],
                deltas[place],
                *batch[i].image.shape[-2:],
                pre_nms_topk=rpn.PRE_NMS_TOPK_TEST,
                post_nms_topk=rpn.POST_NMS_TOPK_TEST,
                nms_threshold=rpn.NMS_THRESH,
            )
            regions.append(RegionBoxes(boxes, boxes / scale_of(batch[i], boxes), scores))
        return regions

    def _regressed(self, image: _DescribedImage) -> Tensor:
        """Returns the boxes [R, C, 4] of each class, in network pixels."""
        assert image.deltas is not None
        boxes = decode(image.regions.network, image.deltas, self.box_weights).unflatten(1, (-1, 4))
        return clip_boxes(boxes, *image.inputs.image.shape[-2:])

    def _detections(self, image: _DescribedImage, chosen: Chosen, boxes: Tensor, features: Tensor) -> Detections:
        """Returns detections with their attributes.

        Args:
            boxes: [n, 4] in network pixels.
            features: [n, D] of these boxes, which the attributes are predicted from.
        """
        attributes, attribute_scores = None, None
        probs = self._attribute_probs(features, chosen.classes)
        if probs is not None:
            settings = self.post_processing
            attributes, attribute_scores = choose_attributes(
                probs.cpu(),
                settings.attribute_threshold,
                settings.max_attributes_per_object,
                settings.max_attributes_per_image,
            )
        return Detections(
            chosen.regions,
            boxes,
            boxes / scale_of(image.inputs, boxes),
            image.features[chosen.regions],
            chosen.classes,
            chosen.scores,
            attributes,
            attribute_scores,
        )

    def _attribute_probs(self, features: Tensor, classes: Tensor) -> Tensor | None:
        predictor = self.roi_heads.attribute_predictor
        return None if predictor is None else predictor.probabilities(features, classes)


def _check(cfg) -> None:
    allowed: Choices = {
        **C4_VALUES,
        "MODEL.META_ARCHITECTURE": (META_ARCHITECTURE,),
        "MODEL.BUA.BOX_CONVENTION": ("caffe",),
        "MODEL.BUA.RESIZE": ("detectron2",),  # as by default: VinVL's own resizing has no value
        "MODEL.BUA.VINVL.NMS_FILTER": FILTERS,
        "MODEL.BUA.RESNET_VERSION": (1,),
        "MODEL.RESNETS.NORM": ("FrozenBN",),
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": (0,),
        "MODEL.RPN.BBOX_REG_WEIGHTS": ((1.0, 1.0, 1.0, 1.0),),
        "MODEL.ROI_HEADS.NAME": ("AttributeRes5ROIHeads", "Res5ROIHeads"),
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlign",),
    }
    check_network(cfg, allowed, "VinVL's detector has")
    check_device(cfg.MODEL.DEVICE)
