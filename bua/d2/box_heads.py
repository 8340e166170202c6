"""What the box heads of Detectron2's detectors compute for regions.

The arithmetic is Detectron2's: its poolers, its heads, and ``predict_boxes`` and ``predict_probs`` of its
``FastRCNNOutputLayers``. What is added is that the output of the head is returned as the region's feature, and that all
regions are returned instead of detections.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from bua.errors import InputError
from bua.modeling.boxes import clip_boxes, constant_row
from bua.modeling.regions import RegionBoxes
from bua.structures import DetectorInput, RegionPredictions


class BoxOutputs(NamedTuple):
    """What a box head computes for the regions of one image.

    Attributes:
        pooled: [R, 4] x1y1x2y2 in network pixels: the boxes from which the features were pooled.
        features: [R, D] float32.
        class_probs: [R, C + 1] float32, background last.
        boxes: [R, C, 4] float32 x1y1x2y2 in network pixels, regressed for each class and not clipped. A detector that
            does not regress for each class has the same box for all.
        attribute_probs: [R, A] float32, or None without an attribute head.
    """

    pooled: Tensor
    features: Tensor
    class_probs: Tensor
    boxes: Tensor
    attribute_probs: Tensor | None = None


class BoxHead(Protocol):
    """Describes regions. ``feature_dim`` is D."""

    feature_dim: int

    def describe(
        self, feature_maps: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[tuple[int, int]], *, given: bool
    ) -> list[BoxOutputs]:
        """Returns the outputs for the regions of each image.

        Args:
            feature_maps: The backbone's output for the images, by names.
            boxes: Boxes [R, 4] of each image, in network pixels.
            sizes: Height and width of each image in network pixels.
            given: Whether the boxes are to be described as they are, and not to be refined.
        """


def box_head_of(heads: nn.Module, layer: str = "") -> BoxHead:
    """Returns the box head of ROI heads of Detectron2 or of ``bua.d2``.

    Args:
        layer: The fully connected layer whose output (after its ReLU) is the feature, such as "fc1"; by default the
            last one. Classes, boxes and attributes are those of the whole head in any case.

    Raises:
        InputError: The ROI heads are of a kind without a box head or with one of an unknown kind, or have no such
            layer.
    """
    if type(heads).__name__ == "RROIHeads":
        raise InputError("config: MODEL.ROI_HEADS.NAME is 'RROIHeads', whose boxes are rotated; use upright boxes")
    if isinstance(heads, CascadeROIHeads):
        return _CascadeBoxHead(heads, layer)
    if isinstance(heads, StandardROIHeads):
        return _StandardBoxHead(heads, layer)
    if isinstance(heads, Res5ROIHeads):
        if layer:
            raise InputError(f"feature layer {layer!r}: this detector has one layer of features, the mean over res5")
        return _Res5BoxHead(heads)
    raise InputError(
        f"config: MODEL.ROI_HEADS.NAME is {type(heads).__name__!r}; features are extracted from StandardROIHeads, "
        "CascadeROIHeads, Res5ROIHeads, those of bua, and classes derived from them"
    )


def predictions_of(inputs: DetectorInput, regions: RegionBoxes, outputs: BoxOutputs) -> RegionPredictions:
    """Returns the predictions for one image, with boxes clipped in network pixels and again in those of the original
    image, as Detectron2 clips its detections."""
    height, width = inputs.image.shape[-2:]
    scale = constant_row([*inputs.scale, *inputs.scale], outputs.boxes)
    pooled = regions.original if outputs.pooled is regions.network else outputs.pooled / scale
    boxes = clip_boxes(outputs.boxes, height, width, "detectron2") / scale
    return RegionPredictions(
        width=inputs.width,
        height=inputs.height,
        proposals=pooled,
        objectness=regions.objectness,
        class_probs=outputs.class_probs[:, :-1],
        boxes=clip_boxes(boxes, inputs.height, inputs.width, "detectron2"),
        features=outputs.features,
        attribute_probs=outputs.attribute_probs,
    )


class _Res5BoxHead:
    """Detectron2's ``Res5ROIHeads``. The feature is the mean over res5's output, of which the predictor computes class
    and boxes."""

    def __init__(self, heads: Res5ROIHeads):
        self.heads = heads
        self.feature_dim: int = heads.box_predictor.cls_score.in_features

    def describe(
        self, feature_maps: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[tuple[int, int]], *, given: bool
    ) -> list[BoxOutputs]:
        heads, regions = self.heads, _instances(boxes, sizes)
        maps = [feature_maps[name] for name in heads.in_features]
        features = heads.res5(heads.pooler(maps, [x.proposal_boxes for x in regions])).mean(dim=[2, 3])
        return _outputs(features, _predict(heads.box_predictor, features, regions), regions, heads.num_classes)


class _StandardBoxHead:
    """Detectron2's ``StandardROIHeads`` and ``bua.d2.AttributeStandardROIHeads``."""

    def __init__(self, heads: StandardROIHeads, layer: str):
        self.heads, self.layer = heads, layer
        self.feature_dim = _feature_dim(heads.box_head, heads.box_predictor, layer)

    def describe(
        self, feature_maps: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[tuple[int, int]], *, given: bool
    ) -> list[BoxOutputs]:
        heads, regions = self.heads, _instances(boxes, sizes)
        maps = [feature_maps[name] for name in heads.box_in_features]
        pooled = heads.box_pooler(maps, [x.proposal_boxes for x in regions])
        features, head_output = _run_head(heads.box_head, pooled, self.layer)
        predictions = _predict(heads.box_predictor, head_output, regions)
        outputs = _outputs(features, predictions, regions, heads.num_classes)
        predictor = getattr(heads, "attribute_predictor", None)
        if predictor is None:
            return outputs
        head_outputs = head_output.flatten(1).float().split([len(x) for x in regions])
        # The attributes of a region depend on its most probable class, which may be the background.
        return [
            output._replace(attribute_probs=predictor.probabilities(x, output.class_probs.argmax(dim=1)))
            for output, x in zip(outputs, head_outputs)
        ]


class _CascadeBoxHead:
    """Detectron2's ``CascadeROIHeads``, whose stages refine the boxes one after the other.

    As in Detectron2, the class probabilities are the means over all stages, and the regressed boxes are those of the
    last stage. The feature is the output of the last stage's head, which is pooled from the boxes that the stage before
    it has refined: these are the regions. Given boxes are not refined: every stage describes the boxes as they are.
    """

    def __init__(self, heads: CascadeROIHeads, layer: str):
        self.heads, self.layer = heads, layer
        self.feature_dim = _feature_dim(heads.box_head[-1], heads.box_predictor[-1], layer)

    def describe(
        self, feature_maps: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[tuple[int, int]], *, given: bool
    ) -> list[BoxOutputs]:
        heads, regions = self.heads, _instances(boxes, sizes)
        maps = [feature_maps[name] for name in heads.box_in_features]
        probs: list[Sequence[Tensor]] = []
        refined: Sequence[Tensor] = ()
        for stage, (head, predictor) in enumerate(zip(heads.box_head, heads.box_predictor)):
            if stage > 0 and not given:
                regions = _instances(refined, sizes, clip=True)
            pooled = heads.box_pooler(maps, [x.proposal_boxes for x in regions])
            features, head_output = _run_head(head, pooled, self.layer)
            stage_probs, refined = _predict(predictor, head_output, regions)
            probs.append(stage_probs)
        means = [torch.stack(of_stages).mean(dim=0) for of_stages in zip(*probs)]
        return _outputs(features, (means, refined), regions, heads.num_classes)


def _instances(boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]], *, clip: bool = False) -> list[Instances]:
    instances = []
    for image_boxes, size in zip(boxes, sizes):
        proposal_boxes = Boxes(image_boxes)
        if clip:
            proposal_boxes.clip(size)
        instances.append(Instances(size, proposal_boxes=proposal_boxes))
    return instances


def _run_head(head: nn.Module, pooled: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Returns the features of the regions of all images and the head's output."""
    features = x = pooled
    if not layer:
        output = head(pooled)
        return output, output
    for name, module in head.named_children():
        x = module(x)
        # Each fully connected layer is followed by its ReLU.
        if name == f"fc_relu{layer.removeprefix('fc')}":
            features = x
    return features, x


def _feature_dim(head: nn.Module, predictor: FastRCNNOutputLayers, layer: str) -> int:
    """Returns the dimension of the features. Raises InputError if the head has no such layer."""
    if not layer:
        return predictor.cls_score.in_features
    layers = [name for name, module in head.named_children() if isinstance(module, nn.Linear)]
    if not isinstance(head, FastRCNNConvFCHead) or layer not in layers:
        raise InputError(
            f"feature layer {layer!r}: the box head {type(head).__name__} has {', '.join(layers) or 'no such layers'}"
        )
    return head.get_submodule(layer).out_features


def _predict(
    predictor: FastRCNNOutputLayers, head_output: Tensor, regions: list[Instances]
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Returns the class probabilities [R, C + 1] and the regressed boxes [R, C * 4] or [R, 4] of each image."""
    scores, deltas = (values.float() for values in predictor(head_output))
    return predictor.predict_probs((scores, deltas), regions), predictor.predict_boxes((scores, deltas), regions)


def _outputs(
    features: Tensor, predictions: tuple[Sequence[Tensor], Sequence[Tensor]], regions: list[Instances], num_classes: int
) -> list[BoxOutputs]:
    """Returns the outputs of each image.

    Args:
        features: [R, ...], of the regions of all images.
        predictions: What ``_predict`` returns.
    """
    parts = features.flatten(1).float().split([len(x) for x in regions])
    return [
        BoxOutputs(x.proposal_boxes.tensor, part, probs, boxes.unflatten(1, (-1, 4)).expand(-1, num_classes, -1))
        for x, part, probs, boxes in zip(regions, parts, *predictions)
    ]
