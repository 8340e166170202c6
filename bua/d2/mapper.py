"""From dataset dicts to what ``AttributeRCNN`` takes, for Detectron2's data loaders."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

import bua.detection.mapper
from bua.io.images import Resize, read_image
from bua.structures import DetectorInput


class TrainingMapper:
    """Images with ``instances``: ``gt_boxes``, ``gt_classes`` and ``gt_attributes`` ([G, M] int64, padded with -1).

    Flips and sizes are ``bua.detection.mapper.TrainingMapper``'s, drawn from torch's generator, which Detectron2 seeds
    in every worker.
    """

    def __init__(self, mapper: bua.detection.mapper.TrainingMapper):
        """
        Args:
            mapper: for example ``bua.detection.mapper.build_mapper(cfg, objects, attributes)``.
        """
        self.mapper = mapper

    def __call__(self, record: dict) -> dict:
        seed = torch.randint(2**31, ()).item()
        picture = self.mapper(record, np.random.default_rng(seed))
        instances = Instances(
            tuple(picture.image.shape[-2:]),
            gt_boxes=Boxes(picture.boxes),
            gt_classes=picture.classes,
            gt_attributes=picture.attributes,
        )
        return {**_input(record, picture), "instances": instances}


class InferenceMapper:
    """Images at test size; with ``boxes``, those of the ground truth in pixels of the original image, where they
    are to have their attributes predicted."""

    def __init__(self, cfg):
        self.resize = Resize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.MODEL.BUA.RESIZE)
        self.with_boxes = cfg.MODEL.BUA.ATTRIBUTES.ENABLED

    def __call__(self, record: dict) -> dict:
        image = self.resize(read_image(record["file_name"]), record["image_id"])
        mapped = _input(record, image)
        if self.with_boxes and record.get("annotations"):
            mapped["boxes"] = torch.tensor([annotation["bbox"] for annotation in record["annotations"]])
        return mapped


def _input(record: dict, picture: DetectorInput) -> dict:
    return {
        "file_name": record["file_name"],
        "image_id": picture.image_id,
        "image": picture.image,
        "width": picture.width,
        "height": picture.height,
        "scale": picture.scale,
    }
