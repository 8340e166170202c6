"""Features that a detector without error would give: each annotated thing says what it is, and where."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bua.detection.annotations import DetectionDataset
from bua.errors import InputError
from bua.features import open_writer
from bua.io.json_records import iter_records
from bua.structures import Regions

logger = logging.getLogger(__name__)


def write_oracle_features(
    datasets: Iterable[DetectionDataset],
    output: str | Path,
    *,
    format: str = "flat",
    image_id_of: Callable[[int], int | None] = int,
    progress: bool = True,
) -> int:
    """Writes the features of all images of data sets; goes on with an output that is there.

    Args:
        image_id_of: what the output calls an image; None leaves it out.

    Returns:
        how many images were left out.
    """
    left_out = 0
    with open_writer(output, format) as writer:
        for dataset in datasets:
            for record in tqdm(dataset, dataset.name, unit="image", disable=not progress):
                image_id = image_id_of(record["image_id"])
                if image_id is None:
                    left_out += 1
                elif image_id not in writer.done:
                    writer.append(oracle_regions(record, image_id, len(dataset.objects), len(dataset.attribute_names)))
        writer.finish()
    return left_out


def oracle_regions(record: dict, image_id: int | str, num_objects: int, num_attributes: int) -> Regions:
    """A row for each thing, in the order of the annotations.

    Args:
        record: an item of ``DetectionDataset``.

    Returns:
        features of num_objects + num_attributes + 4 numbers: 1 for the thing's class and for each of its attributes, 0
        for others, and its box, x1y1x2y2 in fractions of the image.
    """
    width, height, things = record["width"], record["height"], record["annotations"]
    boxes = np.array([thing["bbox"] for thing in things], np.float32).reshape(-1, 4)
    features = np.zeros((len(things), num_objects + num_attributes + 4), np.float32)
    for row, thing in zip(features, things):
        row[thing["category_id"]] = 1
        row[[num_objects + attribute for attribute in thing["attribute_ids"]]] = 1
    features[:, -4:] = boxes / np.array([width, height] * 2, np.float32)
    return Regions(image_id, width, height, boxes, features)


def coco_ids(image_data: str | Path, *, progress: bool = True) -> dict[int, int]:
    """COCO's ids of Visual Genome's images by Visual Genome's, for those that COCO has.

    Args:
        image_data: Visual Genome's image_data.json.

    Raises:
        InputError: not that file, or none of COCO's images in it.
    """
    ids = {}
    for record in iter_records(image_data, progress):
        if record.get("coco_id") is not None:
            ids[record.get("image_id", record.get("id"))] = int(record["coco_id"])
    if not ids:
        raise InputError(f"{image_data}: has no coco_id; give Visual Genome's image_data.json")
    return ids
