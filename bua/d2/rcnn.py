"""The meta-architecture of bua's detectors for Detectron2."""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList, Instances

from bua.modeling.backbone import freeze_parameters
from bua.modeling.regions import given_regions, proposed_regions
from bua.structures import DetectorInput


@META_ARCH_REGISTRY.register()
class AttributeRCNN(GeneralizedRCNN):
    """Detectron2's ``GeneralizedRCNN`` that knows the size of the original image and gives all regions.

    Detectron2's own shows its parts the resized image alone; the original filters proposals by their size in the
    original image, and regresses boxes there. The ROI heads are one of bua's. Parameters whose names begin with
    one of MODEL.BUA.FREEZE do not learn.

    An input may have, beside Detectron2's keys, ``scale`` (x, y), network pixels per original pixel, where it is not
    simply the ratio of the sizes, and for inference ``boxes`` [G, 4] in pixels of the original image. An output has

    - ``instances``: the detections, in pixels of the original image, as ``bua.d2.roi_heads`` describes them.
    - ``objects``: the ``RegionPredictions`` of all proposals.
    - ``attributes``: the ``RegionPredictions`` at ``boxes``, where the input has any.
    """

    @configurable
    def __init__(self, *, freeze: list[str] = (), **kwargs):
        super().__init__(**kwargs)
        freeze_parameters(self, freeze)

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {**super().from_config(cfg), "freeze": cfg.MODEL.BUA.FREEZE}

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        images = super().preprocess_image(batched_inputs)
        images.scales = [_image(x).scale[0] for x in batched_inputs]
        return images

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        if detected_instances is not None or not do_postprocess:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        pictures = [_image(x) for x in batched_inputs]
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        regions = [
            proposed_regions(picture, x.proposal_boxes.tensor, x.objectness_logits)
            for picture, x in zip(pictures, proposals)
        ]
        predictions = self.roi_heads.predict_regions(pictures, features, regions)
        outputs = [{"instances": self.roi_heads.detect(x), "objects": x} for x in predictions]

        if any("boxes" in x for x in batched_inputs):
            none = pictures[0].image.new_zeros(0, 4)
            given = [x.get("boxes", none).to(self.device) for x in batched_inputs]
            regions = [given_regions(picture, boxes) for picture, boxes in zip(pictures, given)]
            for output, predictions in zip(outputs, self.roi_heads.predict_regions(pictures, features, regions)):
                if len(predictions.proposals):
                    output["attributes"] = predictions
        return outputs


def _image(x: dict) -> DetectorInput:
    """An image of Detectron2's form in bua's."""
    height, width = x["image"].shape[-2:]
    original_height, original_width = x.get("height", height), x.get("width", width)
    scale = x.get("scale", (width / original_width, height / original_height))
    return DetectorInput(x["image"], original_width, original_height, scale, x.get("image_id"))
