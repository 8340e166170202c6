import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bua.detection.evaluation import coco_average_precision


def random_rows(seed: int, images=6, num_classes=4, boxes=40, detections=1500):
    """Has more than a hundred detections of a class in an image, and detections of classes that an image lacks."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 60, (boxes, 2))
    ground_truth = np.column_stack(
        (
            rng.integers(0, images, boxes),
            rng.integers(0, num_classes - 1, boxes),
            corner,
            corner + rng.integers(5, 40, (boxes, 2)),
        )
    ).astype(float)
    near = ground_truth[rng.integers(0, boxes, detections)]
    near[:, 2:] += rng.normal(0, 1.5, (detections, 4))
    near[:, 4:] = np.maximum(near[:, 4:], near[:, 2:4])
    moved = rng.random(detections) < 0.4
    near[moved, 0], near[moved, 1] = 0, rng.integers(0, num_classes, moved.sum())
    return np.column_stack((near[:, :2], rng.random(detections), near[:, 2:])), ground_truth


def pycocotools_on_everything(detections, ground_truth, images, num_classes) -> float:
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": label} for label in range(num_classes)],
        "annotations": [
            {
                "id": number + 1,
                "image_id": int(image),
                "category_id": int(label),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for number, (image, label, x1, y1, x2, y2) in enumerate(ground_truth.tolist())
        ],
    }
    results = np.column_stack(
        (detections[:, [0, 3, 4]], detections[:, 5:] - detections[:, 3:5], detections[:, 2], detections[:, 1])
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_pycocotools_on_all_images_and_classes_at_once(seed):
    detections, ground_truth = random_rows(seed)
    expected = pycocotools_on_everything(detections, ground_truth, 6, 4)
    assert 0.05 < expected < 0.95
    assert coco_average_precision(detections, ground_truth) == pytest.approx(expected, abs=1e-12)


def test_prints_nothing_and_accepts_empty_arrays(capsys):
    detections, ground_truth = random_rows(0)
    coco_average_precision(detections, ground_truth)
    assert coco_average_precision(detections[:0], ground_truth) == 0
    assert math.isnan(coco_average_precision(detections, ground_truth[:0]))
    assert capsys.readouterr().out == ""
