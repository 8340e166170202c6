"""Makes the labels of boxes, such as "red striped circle 0.93"."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bua.detection.annotations import DetectionDataset
from bua.detection.found_objects import FoundObject, found_objects
from bua.structures import RegionPredictions
from bua.visualization.draw import class_colors, draw_regions


@dataclass
class LabelledBoxes:
    """Boxes of one image with their labels.

    Attributes:
        boxes: [n, 4] float32 x1y1x2y2 in pixels of the original image.
        class_ids: [n] int64 object classes, from 0.
        labels: The label of each box.
    """

    boxes: np.ndarray
    class_ids: np.ndarray
    labels: list[str]


def region_label(object_name: str, attribute_names: Sequence[str] = (), score: float | None = None) -> str:
    """Returns the text of a label: the attributes, the object, and the score with two decimals."""
    words = [*attribute_names, object_name]
    return " ".join(words if score is None else [*words, f"{score:.2f}"])


def labelled_detections(
    predictions: RegionPredictions,
    objects: Sequence[str],
    attributes: Sequence[str],
    threshold: float = 0.4,
    *,
    attribute_threshold: float = 0.1,
    max_attributes: int = 3,
    convention: str = "caffe",
) -> LabelledBoxes:
    """Returns the objects found in an image, best first, with the attributes of the region of each.

    Args:
        predictions: Predictions of the detector for the image.
        objects, attributes: Names of the classes.
        threshold, attribute_threshold, max_attributes: As for ``found_objects``.
        convention: Convention of the boxes, "caffe" or "detectron2".
    """
    found = found_objects(
        predictions,
        threshold,
        attribute_threshold=attribute_threshold,
        max_attributes=max_attributes,
        convention=convention,
    )
    return labelled_objects(found, objects, attributes)


def labelled_objects(found: Sequence[FoundObject], objects: Sequence[str], attributes: Sequence[str]) -> LabelledBoxes:
    """Returns objects that a detector found, in their order.

    Args:
        objects, attributes: Names of the classes.
    """
    labels = [
        region_label(objects[one.class_id], [attributes[id] for id, _ in one.attributes], one.score) for one in found
    ]
    boxes = np.array([one.box for one in found], np.float32).reshape(-1, 4)
    return LabelledBoxes(boxes, np.array([one.class_id for one in found], np.int64), labels)


def labelled_annotations(dataset: DetectionDataset, index: int) -> LabelledBoxes:
    """Returns the annotated objects of one image of a data set, the largest first."""
    boxes, class_ids = dataset.boxes(index), dataset.classes(index)
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
    labels = _annotation_labels(dataset, index)
    return LabelledBoxes(boxes[order], class_ids[order], [labels[row] for row in order])


def relation_labels(dataset: DetectionDataset, index: int) -> list[str]:
    """Returns the annotated relations of one image of a data set, such as "tall man - on - brown horse"."""
    labels, names = _annotation_labels(dataset, index), dataset.relation_names.names
    return [
        f"{labels[subject]} - {names[relation]} - {labels[target]}"
        for subject, relation, target in dataset.relations(index).tolist()
    ]


def draw_labelled(image: np.ndarray, labelled: LabelledBoxes) -> np.ndarray:
    """Draws boxes with labels as ``draw_regions``, with one colour per object class: [H', W', 3] uint8 BGR."""
    return draw_regions(image, labelled.boxes, labelled.labels, class_colors(labelled.class_ids))


def _annotation_labels(dataset: DetectionDataset, index: int) -> list[str]:
    """Returns the label of each annotated box of an image, in the order of the data set."""
    labels = []
    for class_id, attribute_ids in zip(dataset.classes(index), dataset.attributes(index)):
        names = [dataset.attribute_names.names[attribute] for attribute in attribute_ids if attribute >= 0]
        labels.append(region_label(dataset.objects.names[class_id], names))
    return labels
