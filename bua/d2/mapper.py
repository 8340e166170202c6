"""Makes inputs of ``AttributeRCNN`` from dataset dicts, for Detectron2's data loaders."""

from collections.abc import Mapping

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from bua.detection.mapper import TrainingMapper
from bua.io.images import Resize, naming_image, read_image
from bua.structures import DetectorInput


class AttributeDatasetMapper:
    """Makes training inputs whose ``instances`` have ``gt_boxes``, ``gt_classes`` and ``gt_attributes``.

    ``gt_attributes`` is [G, M] int64, padded with -1. Images are flipped and resized by
    ``bua.detection.mapper.TrainingMapper``. Its random seeds are drawn from torch's generator, whose own seed
    Detectron2 sets in every worker.

    Args:
        mapper: For example ``bua.detection.mapper.build_mapper(cfg, objects, attributes)``.
    """

    def __init__(self, mapper: TrainingMapper):
        self.mapper = mapper

    def __call__(self, record: dict) -> dict:
        """Reads the image of a dataset dict and makes the input."""
        seed = int(torch.randint(2**31, ()).item())
        sample = self.mapper(record, np.random.default_rng(seed))
        instances = Instances(
            tuple(sample.image.shape[-2:]),
            gt_boxes=Boxes(sample.boxes),
            gt_classes=sample.classes,
            gt_attributes=sample.attributes,
        )
        return {**_input(record, sample), "instances": instances}


class InferenceMapper:
    """Makes inputs for inference, with images at test size.

    If the model has attributes, the input has ``boxes``: the boxes of the ground truth in pixels of the original image,
    and the original's rows of zeros if these are wanted, for which attributes are predicted. An image without any has
    no ``boxes``.

    Args:
        cfg: The configuration.
        zero_rows: Image id -> number of boxes [0, 0, 0, 0] after those of the ground truth
            (``bua.detection.evaluation.zero_rows``). By default there are none.
    """

    def __init__(self, cfg, zero_rows: Mapping[int, int] | None = None):
        self.zero_rows = zero_rows or {}
        self.resize = Resize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.MODEL.BUA.RESIZE)
        self.with_boxes = cfg.MODEL.BUA.ATTRIBUTES.ENABLED

    def __call__(self, record: dict) -> dict:
        """Reads the image of a dataset dict and makes the input."""
        with naming_image(record["file_name"]):
            sample = self.resize(read_image(record["file_name"]), record["image_id"])
        mapped = _input(record, sample)
        boxes = [annotation["bbox"] for annotation in record.get("annotations", ())]
        boxes += [[0.0] * 4] * self.zero_rows.get(record["image_id"], 0)
        if self.with_boxes and boxes:
            mapped["boxes"] = torch.tensor(boxes)
        return mapped


def _input(record: dict, sample: DetectorInput) -> dict:
    return {
        "file_name": record["file_name"],
        "image_id": sample.image_id,
        "image": sample.image,
        "width": sample.width,
        "height": sample.height,
        "scale": sample.scale,
    }
