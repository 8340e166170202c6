import csv
import json
import os
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from bua.detection.annotations import DetectionDataset, ImageAnnotations, write_annotations
from bua.detection.evaluation import VisualGenomeEvaluator, evaluate_detector
from bua.engine import connect, launch
from bua.errors import InputError
from bua.structures import DetectorInput, RegionPredictions
from bua.vocabulary import Vocabulary

OBJECTS, ATTRIBUTES = ["cat", "dog", "tree"], ["red", "big"]
# Boxes, classes and attributes of each image. The second has a box without attributes, the third no box at all.
ANNOTATIONS = {
    11: ([[10, 10, 60, 50], [30, 5, 90, 70]], [0, 1], [[0], [0, 1]]),
    7: ([[5, 20, 45, 60], [60, 10, 95, 75]], [1, 2], [[], [1]]),
    3: ([], [], []),
}


@pytest.fixture
def dataset(tmp_path) -> DetectionDataset:
    images = []
    for image_id, (boxes, classes, attributes) in ANNOTATIONS.items():
        cv2.imwrite(str(tmp_path / f"{image_id}.png"), np.full((80, 100, 3), image_id, np.uint8))
        boxes = np.array(boxes, dtype=np.int64).reshape(-1, 4)
        images.append(ImageAnnotations(image_id, f"{image_id}.png", 100, 80, boxes, classes, attributes))
    write_annotations(tmp_path / "all.json", images, Vocabulary(OBJECTS), Vocabulary(ATTRIBUTES))
    return DetectionDataset(tmp_path / "all.json", tmp_path, "pets")


def certain(ids, size: int) -> torch.Tensor:
    probabilities = torch.zeros(len(ids), size)
    for row, present in zip(probabilities, ids):
        row[present] = 0.9 / max(len(present), 1)
    return probabilities


class Oracle:
    """A detector that returns the annotations of an image. In images of ``wrong``, every box is a big tree in the
    middle instead."""

    def __init__(self, wrong=()):
        self.wrong = wrong

    def prepare(self, image, image_id=None):
        assert (image == image_id).all()
        tensor = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
        return DetectorInput(tensor, image.shape[1], image.shape[0], (1, 1), image_id)

    def infer(self, batch, boxes=None):
        return [self.see(image, None if boxes is None else boxes[i]) for i, image in enumerate(batch)]

    def see(self, image, given):
        boxes, classes, attributes = ANNOTATIONS[image.image_id]
        if image.image_id in self.wrong:
            number = len(boxes)
            boxes, classes, attributes = [[40, 30, 60, 50]] * number, [2] * number, [[1]] * number
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return RegionPredictions(
            width=image.width,
            height=image.height,
            proposals=boxes if given is None else given,
            objectness=torch.ones(len(boxes)),
            class_probs=certain([[label] for label in classes], len(OBJECTS)),
            boxes=boxes[:, None].expand(-1, len(OBJECTS), 4),
            features=torch.zeros(len(boxes), 4),
            attribute_probs=certain(attributes, len(ATTRIBUTES)),
        )


class WithoutAttributes(Oracle):
    def see(self, image, given):
        assert given is None
        return replace(super().see(image, given), attribute_probs=None)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_perfect_detector_scores_one_and_writes_its_tables(dataset, tmp_path, num_workers):
    evaluator = VisualGenomeEvaluator(dataset, output_dir=tmp_path / "out" / "tables")
    metrics = evaluate_detector(Oracle(), evaluator, batch_size=2, num_workers=num_workers, progress=False)
    assert metrics == {
        "objects/mAP50": 1,
        "objects/weighted_mAP50": 1,
        "objects/original/mAP50": 1,
        "objects/original/weighted_mAP50": 1,
        "objects/coco_AP": pytest.approx(1),
        "attributes/mAP50": 1,
        "attributes/weighted_mAP50": 1,
        "attributes/original/mAP50": 1,
        "attributes/original/weighted_mAP50": 1,
    }
    with open(tmp_path / "out" / "tables" / "objects_original.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert rows == [
        {"class": "cat", "ap": "1.0000", "npos": "1"},
        {"class": "dog", "ap": "1.0000", "npos": "2"},
        {"class": "tree", "ap": "1.0000", "npos": "1"},
    ]
    # The original's metrics come first, also in what is printed.
    assert [name for name in metrics if "weighted" not in name] == [
        *("objects/original/mAP50", "objects/mAP50", "objects/coco_AP", "attributes/original/mAP50", "attributes/mAP50")
    ]
    assert sorted(path.name for path in (tmp_path / "out" / "tables").iterdir()) == [
        f"{kind}{end}" for kind in ("attributes", "objects") for end in (".json", "_corrected.tsv", "_original.tsv")
    ]


def test_errors_lower_the_scores_of_their_classes_only(dataset):
    evaluator = VisualGenomeEvaluator(dataset, protocols=["original"], coco=False)
    metrics = evaluate_detector(Oracle(wrong=[7]), evaluator, num_workers=0, progress=False)
    # In image 7, the second of two dogs is missed, and the tree is in the wrong place. The box without attributes is
    # predicted to be big with the score of the tree, which is big: "big" has the detections 0.9 (wrong), 0.9 (correct)
    # and 0.45 (correct).
    assert metrics == {
        "objects/mAP50": pytest.approx((1 + 0.5 + 0) / 3),
        "objects/weighted_mAP50": pytest.approx((1 * 1 + 2 * 0.5 + 0) / 4),
        "attributes/mAP50": pytest.approx((1 + 2 / 3) / 2),
        "attributes/weighted_mAP50": pytest.approx((2 * 1 + 2 * 2 / 3) / 4),
    }
    curve = evaluator.precision_recall("attributes", ["big"])["big"]
    assert curve.count == 2
    np.testing.assert_allclose(curve.precision[:3], [0, 1 / 2, 2 / 3])
    np.testing.assert_allclose(curve.recall[:3], [0, 1 / 2, 1])
    assert list(evaluator.precision_recall("objects")) == OBJECTS


def test_each_processed_image_is_scored_once_and_no_other(dataset):
    evaluator = VisualGenomeEvaluator(dataset, coco=False)
    metrics = evaluate_detector(Oracle(wrong=[7]), evaluator, limit=1, num_workers=0, progress=False)
    assert metrics["objects/mAP50"] == pytest.approx(2 / 3)
    assert metrics["objects/weighted_mAP50"] == 1

    oracle = Oracle()
    image = oracle.prepare(np.full((80, 100, 3), 11, np.uint8), 11)
    evaluator.process([{"image_id": 11}, image], [{"objects": oracle.infer([image])[0]}] * 2)
    again = evaluator.evaluate()
    assert again["objects/mAP50"] == pytest.approx(2 / 3)
    assert again["objects/weighted_mAP50"] == 1

    evaluator.reset()
    with pytest.raises(InputError, match="no image was processed"):
        evaluator.evaluate()


def test_a_detector_without_attributes_is_scored_on_objects(dataset):
    evaluator = VisualGenomeEvaluator(dataset, protocols=["corrected"], coco=False)
    metrics = evaluate_detector(WithoutAttributes(), evaluator, num_workers=0, progress=False)
    assert metrics == {"objects/mAP50": 1, "objects/weighted_mAP50": 1}


def test_coco_ap_falls_with_the_overlap(dataset):
    class SmallerBoxes(Oracle):
        def see(self, image, given):
            predictions = super().see(image, given)
            # Without the right quarter of a box its IoU is 0.75.
            boxes = predictions.boxes.clone()
            boxes[..., 2] -= (boxes[..., 2] - boxes[..., 0]) / 4
            return replace(predictions, boxes=boxes)

    evaluator = VisualGenomeEvaluator(dataset, protocols=["corrected"])
    metrics = evaluate_detector(SmallerBoxes(), evaluator, num_workers=0, progress=False)
    assert metrics["objects/mAP50"] == 1
    # They are correct at the thresholds 0.50 to 0.75, which are six of ten.
    assert metrics["objects/coco_AP"] == pytest.approx(0.6)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_in_one_line(dataset, tmp_path, num_workers):
    (tmp_path / "7.png").write_bytes(b"not an image")
    evaluator = VisualGenomeEvaluator(dataset, coco=False)
    with pytest.raises(InputError) as error:
        evaluate_detector(Oracle(), evaluator, num_workers=num_workers, progress=False)
    assert "7.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_images_of_another_data_set_and_unknown_protocols_are_named(dataset):
    evaluator = VisualGenomeEvaluator(dataset)
    with pytest.raises(InputError, match="pets: has no image_id 99"):
        evaluator.process([{"image_id": 99}], [{}])
    with pytest.raises(InputError, match="voc"):
        VisualGenomeEvaluator(dataset, protocols=["voc"])


LIMITS = (None, 1)


def evaluate_in_this_process(folder, dataset):
    connect("cpu")
    evaluator = VisualGenomeEvaluator(dataset, output_dir=folder / os.environ["RANK"])
    found = []
    for limit in LIMITS:
        metrics = evaluate_detector(Oracle(wrong=[7]), evaluator, num_workers=0, limit=limit, progress=False)
        found.append([metrics, sorted(evaluator.detections["objects"])])
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


def test_processes_share_the_images_and_the_main_one_scores_them(dataset, tmp_path):
    evaluator = VisualGenomeEvaluator(dataset)
    expected = [
        evaluate_detector(Oracle(wrong=[7]), evaluator, num_workers=0, limit=limit, progress=False) for limit in LIMITS
    ]
    launch(evaluate_in_this_process, (tmp_path, dataset), num_processes=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == [[expected[0], [0, 1, 2]], [expected[1], [0]]]
    assert second == [[{}, [1]], [{}, []]]
    assert not list((tmp_path / "1").iterdir())
