"""COCO's average precision, computed by pycocotools."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

MAX_DETECTIONS = 100  # of a class in an image; COCO leaves the others out
ELSEWHERE = -1
SECONDS_UNTIL_PROGRESS = 5


def coco_average_precision(detections: np.ndarray, ground_truth: np.ndarray) -> float:
    """COCO's AP: mean over IoU thresholds 0.50, 0.55, ..., 0.95 and over the classes that have ground truth.

    Args:
        detections: [N, 7] image (0 or more), class, score, x1, y1, x2, y2.
        ground_truth: [M, 6] image, class, x1, y1, x2, y2.

    Returns:
        0 to 1; NaN without ground truth. Where detections score exactly alike, those in images without the class
        rank first, which pycocotools orders by image id.
    """
    found = _by_class(_best_of_each_image(detections))
    truth = _by_class(ground_truth)
    per_class = [
        _class_average_precision(found.get(label, detections[:0]), truth[label])
        for label in tqdm(truth, desc="COCO AP", unit="class", delay=SECONDS_UNTIL_PROGRESS, leave=False)
    ]
    return float(np.mean(per_class)) if per_class else float("nan")


def _best_of_each_image(detections: np.ndarray) -> np.ndarray:
    ordered = detections[np.lexsort((-detections[:, 2], detections[:, 0], detections[:, 1]))]
    is_first = np.any(np.diff(ordered[:, :2], axis=0, prepend=np.nan) != 0, axis=1)
    position = np.arange(len(ordered))
    rank = position - np.maximum.accumulate(np.where(is_first, position, 0))
    return ordered[rank < MAX_DETECTIONS]


def _by_class(rows: np.ndarray) -> dict[int, np.ndarray]:
    rows = rows[np.argsort(rows[:, 1], kind="stable")]
    labels, first = np.unique(rows[:, 1], return_index=True)
    return {int(label): part for label, part in zip(labels, np.split(rows, first[1:]))}


def _class_average_precision(detections: np.ndarray, ground_truth: np.ndarray) -> float:
    # pycocotools visits every image for every class, which takes minutes with the 1,600 classes of Visual Genome.
    # So each class is given only the images that have it; detections in all the others are wrong whatever their
    # image, and are given as if they were in one.
    detections = detections.copy()
    detections[~np.isin(detections[:, 0], ground_truth[:, 0]), 0] = ELSEWHERE
    images = [ELSEWHERE, *np.unique(ground_truth[:, 0]).astype(int).tolist()]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(images, ground_truth), _coco(images, detections), "bbox")
        evaluation.params.maxDets = [max(len(detections), 1)]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return float(np.mean(evaluation.eval["precision"]))


def _coco(images: list[int], rows: np.ndarray) -> COCO:
    """Boxes of one class: rows end in x1, y1, x2, y2, and have a score before these where they are detections."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": 0}],
        "annotations": [
            {
                "id": number,
                "image_id": int(row[0]),
                "category_id": 0,
                "bbox": [row[-4], row[-3], row[-2] - row[-4], row[-1] - row[-3]],
                "area": (row[-2] - row[-4]) * (row[-1] - row[-3]),
                "iscrowd": 0,
                "score": row[2],
            }
            for number, row in enumerate(rows.tolist(), start=1)
        ],
    }
    coco.createIndex()
    return coco
