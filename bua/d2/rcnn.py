"""The meta-architecture of bua's detectors, for Detectron2."""

from collections.abc import Sequence

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList, Instances

from bua.modeling.backbone import freeze_parameters
from bua.modeling.regions import given_regions, proposed_regions
from bua.structures import DetectorInput


@META_ARCH_REGISTRY.register()
class AttributeRCNN(GeneralizedRCNN):
    """A ``GeneralizedRCNN`` that takes the size of the original image into account and returns all regions.

    The parts of Detectron2's own ``GeneralizedRCNN`` get only the resized image, while the original filters proposals
    by their size in the original image, and regresses boxes in its pixels. The ROI heads must be those of
    ``bua.d2.roi_heads``. Parameters whose names begin with one of MODEL.BUA.FREEZE are frozen.

    In addition to Detectron2's keys, an input may have ``scale``, (x, y) network pixels per original pixel, if this is
    not simply the ratio of the sizes. For inference it may have ``boxes`` [G, 4] in pixels of the original image. The
    output for an image has

    - ``instances``: The detections in pixels of the original image, as ``bua.d2.roi_heads`` describes them.
    - ``objects``: The ``RegionPredictions`` of all proposals.
    - ``attributes``: The ``RegionPredictions`` of ``boxes``, if the input has any.
    """

    @configurable
    def __init__(self, *, freeze: Sequence[str] = (), **kwargs):
        super().__init__(**kwargs)
        freeze_parameters(self, list(freeze))

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Returns the arguments of the constructor."""
        return {**super().from_config(cfg), "freeze": cfg.MODEL.BUA.FREEZE}

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalises and batches images. The result also has ``scales``, network pixels per original pixel."""
        images = super().preprocess_image(batched_inputs)
        images.scales = [detector_input(x).scale[0] for x in batched_inputs]
        return images

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """Returns the outputs that the class describes.

        With ``detected_instances``, or without postprocessing, it does what Detectron2's own ``GeneralizedRCNN`` does.
        """
        if detected_instances is not None or not do_postprocess:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        inputs = [detector_input(x) for x in batched_inputs]
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        regions = [
            proposed_regions(image, x.proposal_boxes.tensor, x.objectness_logits) for image, x in zip(inputs, proposals)
        ]
        predictions = self.roi_heads.predict_regions(inputs, features, regions)
        outputs = [{"instances": self.roi_heads.detect(x), "objects": x} for x in predictions]

        if any("boxes" in x for x in batched_inputs):
            no_boxes = inputs[0].image.new_zeros(0, 4)
            given = [x.get("boxes", no_boxes).to(self.device) for x in batched_inputs]
            regions = [given_regions(image, boxes) for image, boxes in zip(inputs, given)]
            for output, at_boxes in zip(outputs, self.roi_heads.predict_regions(inputs, features, regions)):
                if len(at_boxes.proposals):
                    output["attributes"] = at_boxes
        return outputs


def detector_input(x: dict) -> DetectorInput:
    """Converts one of Detectron2's inputs to bua's form."""
    height, width = x["image"].shape[-2:]
    original_height, original_width = x.get("height", height), x.get("width", width)
    scale = x.get("scale", (width / original_width, height / original_height))
    return DetectorInput(x["image"], original_width, original_height, scale, x.get("image_id"))
