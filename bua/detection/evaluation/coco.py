"""Computes COCO's average precision with pycocotools."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

MAX_DETECTIONS = 100  # per class and image; COCO ignores the others
# Image id that stands for all images that do not contain the class.
OTHER_IMAGES = -1
SECONDS_UNTIL_PROGRESS = 5


def coco_average_precision(detections: np.ndarray, ground_truth: np.ndarray) -> float:
    """Returns COCO's AP: the mean over IoU thresholds 0.50, 0.55, ..., 0.95 and over classes that have ground truth.

    Args:
        detections: [N, 7] image (0 or more), class, score, x1, y1, x2, y2.
        ground_truth: [M, 6] image, class, x1, y1, x2, y2.

    Returns:
        A number from 0 to 1, or NaN without ground truth. Of detections with equal scores, those in images without the
        class are ranked first, while pycocotools ranks them by image id.
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
    # Therefore a class is evaluated only on the images that contain it. Detections in all other images are wrong
    # whichever image they are in, so they are all placed in one additional image.
    detections = detections.copy()
    detections[~np.isin(detections[:, 0], ground_truth[:, 0]), 0] = OTHER_IMAGES
    images = [OTHER_IMAGES, *np.unique(ground_truth[:, 0]).astype(int).tolist()]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(images, ground_truth), _coco(images, detections), "bbox")
        evaluation.params.maxDets = [max(len(detections), 1)]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return float(np.mean(evaluation.eval["precision"]))


def _coco(images: list[int], rows: np.ndarray) -> COCO:
    """Returns a pycocotools object with the boxes of one class.

    The last columns of ``rows`` are x1, y1, x2, y2. For detections the column before them is the score.
    """
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
