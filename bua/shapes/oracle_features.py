"""Writes oracle features: those of a perfect detector, which encode the class, attributes and box of each object."""

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
    """Writes the oracle features of all images of the data sets. An unfinished output is continued.

    Args:
        datasets: Data sets with the annotations.
        output: File or folder of features.
        format: Format of the features, see ``bua.features.store.FORMATS``.
        image_id_of: Returns an image's id in the output, or None to leave the image out.
        progress: Whether to show progress bars.

    Returns:
        Number of images that were left out.
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
    """Returns one region for each annotated object, in the order of the annotations.

    Args:
        record: An item of ``DetectionDataset``.
        image_id: The image's id in the result.
        num_objects, num_attributes: Sizes of the vocabularies.

    Returns:
        Regions with a feature dimension of num_objects + num_attributes + 4. The first numbers are 1 for the object's
        class and for each of its attributes, else 0; the last four are its box x1y1x2y2, as fractions of the image's
        width and height.
    """
    width, height, annotations = record["width"], record["height"], record["annotations"]
    boxes = np.array([annotation["bbox"] for annotation in annotations], np.float32).reshape(-1, 4)
    features = np.zeros((len(annotations), num_objects + num_attributes + 4), np.float32)
    for row, annotation in zip(features, annotations):
        row[annotation["category_id"]] = 1
        row[[num_objects + attribute_id for attribute_id in annotation["attribute_ids"]]] = 1
    features[:, -4:] = boxes / np.array([width, height] * 2, np.float32)
    return Regions(image_id, width, height, boxes, features)


def coco_ids(image_data: str | Path, *, progress: bool = True) -> dict[int, int]:
    """Returns the COCO ids of Visual Genome's images: a dict from Visual Genome's id to COCO's.

    It has only the images that are in both data sets.

    Args:
        image_data: Visual Genome's image_data.json.
        progress: Whether to show a progress bar.

    Raises:
        InputError: The file is another one, or none of its images has a COCO id.
    """
    ids: dict[int, int] = {}
    for record in iter_records(image_data, progress):
        if record.get("coco_id") is None:
            continue
        image_id = record.get("image_id", record.get("id"))
        if not isinstance(image_id, int):
            raise InputError(f"{image_data}: an image has no 'image_id'; give Visual Genome's image_data.json")
        ids[image_id] = int(record["coco_id"])
    if not ids:
        raise InputError(f"{image_data}: no image has a coco_id; give Visual Genome's image_data.json")
    return ids
