"""Any of Detectron2's detectors with proposals and a box head, as the detector of an extraction."""

from collections.abc import Callable
from dataclasses import replace

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn

from bua.d2.box_heads import box_head_of, predictions_of
from bua.d2.rcnn import detector_input
from bua.d2.roi_heads import AttributeRes5ROIHeads
from bua.errors import InputError
from bua.io.images import Resize
from bua.modeling.detector import rows_of_one_size
from bua.modeling.regions import given_regions, proposed_regions
from bua.structures import DetectorInput, RegionPredictions


class Detectron2Detector:
    """Describes the proposals of a model of Detectron2, as ``bua.modeling.Detector`` does for those of bua.

    It takes Detectron2's ``GeneralizedRCNN``, ``AttributeRCNN`` and what is derived from them, with the ROI heads that
    ``bua.d2.box_heads`` names. The model's regions are the proposals of its RPN; those of a cascade are the boxes of
    its last stage. Features of C4 models are the mean over res5's output, those of other models the output of the box
    head.

    Attributes:
        model: The model. Its parameters may change between two calls.
        convention: "caffe" or "detectron2".
        feature_dim: Dimension of the features.
        prepare: Resizes an image [H, W, 3] uint8 BGR to a ``DetectorInput``, as the model's test does.
    """

    def __init__(self, cfg, model: nn.Module, *, layer: str = "", precision: str = "fp32"):
        """
        Args:
            cfg: The model's configuration.
            layer: As for ``bua.d2.box_heads.box_head_of``.
            precision: With "bf16", backbone and heads run in bfloat16 where torch.autocast has them do so.

        Raises:
            InputError: The model has no proposals, no box head, or no such layer.
        """
        if not isinstance(model, GeneralizedRCNN) or model.proposal_generator is None:
            kind = cfg.MODEL.META_ARCHITECTURE
            raise InputError(
                f"config: MODEL.META_ARCHITECTURE {kind} with MODEL.PROPOSAL_GENERATOR.NAME "
                f"{cfg.MODEL.PROPOSAL_GENERATOR.NAME} has no proposals with a box head, so it has no features of "
                "regions; use a detector of the kind of Faster R-CNN"
            )
        self.model = model
        self.convention: str = cfg.MODEL.BUA.BOX_CONVENTION
        self.prepare: Callable[..., DetectorInput] = Resize(
            cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.MODEL.BUA.RESIZE
        )
        self.feature_dim: int
        self._rgb = cfg.INPUT.FORMAT == "RGB"
        self._bf16 = precision == "bf16"
        self._res5_heads = model.roi_heads if isinstance(model.roi_heads, AttributeRes5ROIHeads) else None
        if self._res5_heads is not None:
            if layer:
                raise InputError(
                    f"feature layer {layer!r}: this detector has one layer of features, the mean over res5"
                )
            self.feature_dim = self._res5_heads.feature_dim
        else:
            self._box_head = box_head_of(model.roi_heads, layer)
            self.feature_dim = self._box_head.feature_dim

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.inference_mode()
    def infer(
        self, batch: list[DetectorInput], boxes: list[Tensor] | None = None, *, regress: bool = True
    ) -> list[RegionPredictions]:
        """Returns the predictions for all proposals, or for given boxes, of images that ``prepare`` resized. Arguments
        and result are those of ``bua.modeling.Detector.infer``.

        Only images of the same size run through the model together, so that padding never changes a result.
        """
        # Detectron2's loaders give images in the order that the model takes, ``prepare`` always gives BGR.
        ordered = [replace(x, image=x.image.flip(0)) for x in batch] if self._rgb else batch
        predictions = self._infer(ordered, boxes)
        return predictions if regress else [replace(x, boxes=None) for x in predictions]

    @torch.inference_mode()
    def __call__(self, batched_inputs: list[dict]) -> list[dict]:
        """Returns the predictions for inputs of the model, as Detectron2's data loaders give them: for each image a
        dict with ``objects``, as ``AttributeRCNN`` returns it."""
        return [{"objects": x} for x in self._infer([detector_input(x) for x in batched_inputs], None)]

    def grid(self, batch: list[DetectorInput]) -> list[Tensor]:
        """Raises InputError: the grid features of bua's models are extracted by the torch engine, and a pyramid of
        feature maps has no single grid."""
        raise InputError(NO_GRID)

    def _infer(self, batch: list[DetectorInput], boxes: list[Tensor] | None) -> list[RegionPredictions]:
        if self.model.training:
            self.model.eval()
        results: dict[int, RegionPredictions] = {}
        for rows in rows_of_one_size(batch):
            inputs = [batch[i] for i in rows]
            given = None if boxes is None else [boxes[i].to(self.device, non_blocking=True) for i in rows]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
                predictions = self._describe(inputs, given)
            results.update(zip(rows, predictions))
        return [results[i] for i in range(len(batch))]

    def _describe(self, inputs: list[DetectorInput], given: list[Tensor] | None) -> list[RegionPredictions]:
        """Returns the predictions for images of one size."""
        model = self.model
        images = model.preprocess_image([self._model_input(x) for x in inputs])
        feature_maps = model.backbone(images.tensor)
        if given is None:
            proposals, _ = model.proposal_generator(images, feature_maps, None)
            regions = [
                proposed_regions(x, found.proposal_boxes.tensor.float(), found.objectness_logits.float())
                for x, found in zip(inputs, proposals)
            ]
        else:
            regions = [given_regions(x, boxes) for x, boxes in zip(inputs, given)]
        if self._res5_heads is not None:
            return self._res5_heads.predict_regions(inputs, feature_maps, regions)
        outputs = self._box_head.describe(
            feature_maps, [x.network for x in regions], images.image_sizes, given=given is not None
        )
        return [predictions_of(*values) for values in zip(inputs, regions, outputs)]

    def _model_input(self, inputs: DetectorInput) -> dict:
        return {
            "image": inputs.image.to(self.device, non_blocking=True),
            "width": inputs.width,
            "height": inputs.height,
            "scale": inputs.scale,
            "image_id": inputs.image_id,
        }


NO_GRID = (
    "--grid: Detectron2's models give features of regions, and a feature pyramid (FPN) has no single grid; leave out "
    "--grid, or for a C4 model or one of grid-feats-vqa take --engine torch"
)
