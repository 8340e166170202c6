import numpy as np
import torch

from bua.detection.annotations import DetectionDataset, ImageAnnotations, write_annotations
from bua.structures import RegionPredictions
from bua.visualization.labels import (
    draw_labelled,
    labelled_annotations,
    labelled_detections,
    region_label,
    relation_labels,
)
from bua.vocabulary import Vocabulary

OBJECTS = ["circle", "square", "star"]
ATTRIBUTES = ["red", "blue", "striped", "large"]


def predictions(class_probs, attribute_probs, boxes):
    boxes = torch.tensor(boxes, dtype=torch.float32)
    class_probs = torch.tensor(class_probs)
    return RegionPredictions(
        width=100,
        height=80,
        proposals=boxes,
        objectness=torch.ones(len(boxes)),
        class_probs=class_probs,
        boxes=boxes[:, None].expand(-1, class_probs.shape[1], -1),
        features=torch.zeros(len(boxes), 4),
        attribute_probs=None if attribute_probs is None else torch.tensor(attribute_probs),
    )


def test_region_label_says_attributes_first():
    assert region_label("circle", ["red", "striped"], 0.934) == "red striped circle 0.93"
    assert region_label("circle") == "circle"


def test_detections_carry_the_attributes_of_their_own_region():
    found = labelled_detections(
        predictions(
            [[0.9, 0.05, 0.0], [0.1, 0.2, 0.6], [0.2, 0.3, 0.1]],
            [[0.5, 0.05, 0.3, 0.1], [0.0, 0.7, 0.0, 0.2], [1.0, 0.0, 0.0, 0.0]],
            [[0, 0, 20, 20], [50, 50, 70, 70], [0, 40, 20, 60]],
        ),
        OBJECTS,
        ATTRIBUTES,
        threshold=0.4,
    )
    assert found.labels == ["red striped circle 0.90", "blue large star 0.60"]
    assert found.class_ids.tolist() == [0, 2]
    assert found.boxes.tolist() == [[0, 0, 20, 20], [50, 50, 70, 70]]


def test_of_overlapping_regions_of_one_class_the_best_is_shown():
    found = labelled_detections(
        predictions(
            [[0.6, 0.0, 0.0], [0.8, 0.0, 0.0]], [[0.9, 0, 0, 0], [0, 0.9, 0, 0]], [[0, 0, 20, 20], [1, 0, 21, 20]]
        ),
        OBJECTS,
        ATTRIBUTES,
    )
    assert found.labels == ["blue circle 0.80"]


def test_no_more_attributes_than_asked_for():
    probs = predictions([[0.9, 0.0, 0.0]], [[0.2, 0.3, 0.25, 0.15]], [[0, 0, 20, 20]])
    assert labelled_detections(probs, OBJECTS, ATTRIBUTES).labels == ["blue striped red circle 0.90"]
    assert labelled_detections(probs, OBJECTS, ATTRIBUTES, max_attributes=1).labels == ["blue circle 0.90"]


def test_a_detector_without_attributes_and_an_image_without_objects():
    without = labelled_detections(predictions([[0.9, 0.0, 0.0]], None, [[0, 0, 20, 20]]), OBJECTS, ATTRIBUTES)
    assert without.labels == ["circle 0.90"]
    nothing = labelled_detections(predictions([[0.1, 0.0, 0.0]], None, [[0, 0, 20, 20]]), OBJECTS, ATTRIBUTES)
    assert nothing.labels == []
    assert draw_labelled(np.zeros((80, 100, 3), np.uint8), nothing).shape == (640, 800, 3)


def test_annotations_are_labelled_largest_first(tmp_path):
    image = ImageAnnotations(
        image_id=7,
        file_name="7.jpg",
        width=100,
        height=80,
        boxes=np.array([[0, 0, 10, 10], [20, 20, 60, 60]]),
        classes=[1, 0],
        attributes=[[], [0, 2]],
        relations=[(0, 1, 1), (1, 0, 0)],
    )
    relations = Vocabulary(["on", "left of,to the left of"])
    write_annotations(tmp_path / "a.json", [image], Vocabulary(OBJECTS), Vocabulary(ATTRIBUTES), relations)
    dataset = DetectionDataset(tmp_path / "a.json", tmp_path)
    labelled = labelled_annotations(dataset, 0)
    assert labelled.labels == ["red striped circle", "square"]
    assert labelled.class_ids.tolist() == [0, 1]
    assert labelled.boxes.tolist() == [[20, 20, 60, 60], [0, 0, 10, 10]]
    # The ends of relations are rows of the data set, not of this order.
    assert relation_labels(dataset, 0) == ["square - left of - red striped circle", "red striped circle - on - square"]
