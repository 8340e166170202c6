#!/usr/bin/env python3
"""Compares the time of the evaluation with that of plain loops, at the size of Visual Genome's validation set.

    python benchmarks/evaluation.py

It makes random data once: 4,945 images with 400 detections each, and 1,600 classes as unequal as Visual Genome's. Both
implementations get the same arrays, and their results must agree.
"""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision

from bua.detection.evaluation import average_precision, object_detections
from bua.structures import RegionPredictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4945, help="number of images")
    parser.add_argument("--detections", type=int, default=400, help="number of detections per image")
    parser.add_argument("--boxes", type=int, default=31, help="number of boxes of the ground truth per image")
    parser.add_argument("--classes", type=int, default=1600, help="number of classes")
    parser.add_argument("--regions", type=int, default=300, help="number of regions for object_detections")
    parser.add_argument("--threads", type=int, default=1, help="number of torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)

    print(f"{'what':<40} {'bua':>10} {'loop':>10} {'ratio':>7}")
    detections, ground_truth = random_evaluation(rng, args.images, args.detections, args.boxes, args.classes)
    for protocol in ("original", "corrected"):
        fast, (ap, _) = timed(average_precision, detections, ground_truth, args.classes, protocol=protocol)
        slow, plain = timed(loop_over_classes_and_detections, detections, ground_truth, args.classes, protocol)
        np.testing.assert_allclose(ap, plain, atol=1e-9)
        report(f"average_precision, {protocol}", fast, slow)

    predictions = random_predictions(rng, args.regions, args.classes)
    object_detections(predictions, convention="detectron2")
    fast, rows = timed(object_detections, predictions, convention="detectron2")
    slow, plain = timed(loop_over_classes_with_torchvision, predictions)
    assert sorted(rows.tolist()) == sorted(plain.tolist())
    report(f"object_detections, {args.regions} regions", fast, slow)


def loop_over_classes_and_detections(detections, ground_truth, num_classes: int, protocol: str) -> np.ndarray:
    """The baseline: a loop over classes and detections as in the original (lib/datasets/vg_eval.py).

    Unlike the original, it takes arrays instead of result files, and does not visit every image for every class.
    """
    one = 1.0 if protocol == "original" else 0.0
    result = np.zeros(num_classes)
    for label in range(num_classes):
        truth = ground_truth[ground_truth[:, 1] == label]
        found = detections[detections[:, 1] == label]
        if not len(truth) or not len(found):
            continue
        scores, boxes = found[:, 2], found[:, 3:]
        if protocol == "original":
            scores = np.array([float(f"{score:.3f}") for score in scores])
            boxes = np.array([[float(f"{value + 1:.1f}") for value in box] for box in boxes])
        boxes_in = {image: truth[truth[:, 0] == image, 2:] for image in np.unique(truth[:, 0])}
        taken = {image: np.zeros(len(rows), dtype=bool) for image, rows in boxes_in.items()}
        correct = np.zeros(len(found))
        for rank, row in enumerate(np.argsort(-scores, kind="stable")):
            image, box = found[row, 0], boxes[row]
            if image not in boxes_in:
                continue
            others = boxes_in[image]
            width = np.minimum(others[:, 2], box[2]) - np.maximum(others[:, 0], box[0]) + one
            height = np.minimum(others[:, 3], box[3]) - np.maximum(others[:, 1], box[1]) + one
            shared = np.maximum(width, 0) * np.maximum(height, 0)
            area = (box[2] - box[0] + one) * (box[3] - box[1] + one)
            areas = (others[:, 2] - others[:, 0] + one) * (others[:, 3] - others[:, 1] + one)
            overlap = shared / (area + areas - shared)
            best = np.argmax(overlap)
            if overlap[best] > 0.5 and not taken[image][best]:
                taken[image][best] = True
                correct[rank] = 1
        hits = np.cumsum(correct)
        precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        result[label] = np.sum(precision * correct) / len(truth)
    return result


def loop_over_classes_with_torchvision(predictions: RegionPredictions) -> np.ndarray:
    """The baseline: torchvision's nms for each class, then the 400 best detections."""
    rows = []
    for label in range(predictions.class_probs.shape[1]):
        scores, boxes = predictions.class_probs[:, label], predictions.boxes[:, label]
        kept = torchvision.ops.nms(boxes, scores, 0.3)
        rows.append(torch.column_stack((torch.full((len(kept),), label), scores[kept], boxes[kept])))
    rows = torch.cat(rows)
    return rows[rows[:, 1] >= torch.topk(rows[:, 1], 400).values[-1]].numpy()


def random_evaluation(rng, images: int, per_image: int, boxes: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns detections, a quarter of which are near a box of their class, and the ground truth."""
    frequency = 1 / (np.arange(num_classes) + 10.0)
    frequency /= frequency.sum()
    total = images * boxes
    truth = np.column_stack(
        (np.repeat(np.arange(images), boxes), rng.choice(num_classes, total, p=frequency), random_boxes(rng, total))
    )
    near = truth.reshape(images, boxes, 6)[:, rng.integers(0, boxes, per_image // 4)].reshape(-1, 6)
    near[:, 2:] += rng.normal(0, 8, (len(near), 4))
    rest = images * (per_image - per_image // 4)
    far = np.column_stack(
        (
            np.repeat(np.arange(images), per_image - per_image // 4),
            rng.choice(num_classes, rest, p=frequency),
            random_boxes(rng, rest),
        )
    )
    rows = np.concatenate((near, far))
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    scores = rng.random(len(rows)) ** 3
    rows = np.column_stack((rows[:, :2], scores, rows[:, 2:4], np.maximum(rows[:, 2:4], rows[:, 4:])))
    return rows.astype(np.float32).astype(np.float64), truth


def random_boxes(rng, number: int) -> np.ndarray:
    corner = rng.integers(0, 400, (number, 2))
    return np.column_stack((corner, corner + rng.integers(10, 300, (number, 2)))).astype(float)


def random_predictions(rng, regions: int, num_classes: int) -> RegionPredictions:
    """Returns regions in groups of ten that overlap each other, with high scores for a few classes."""
    corner = np.repeat(rng.random((regions // 10 + 1, 1, 2)) * 400, 10, axis=0)[:regions]
    size = np.repeat(20 + rng.random((regions // 10 + 1, 1, 2)) * 200, 10, axis=0)[:regions]
    boxes = np.concatenate((corner, corner + size), axis=2) + rng.normal(0, 8, (regions, num_classes, 4))
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    logits = (
        rng.normal(0, 1, (regions, num_classes))
        + np.repeat(rng.normal(0, 2, (regions // 10 + 1, num_classes)), 10, axis=0)[:regions]
    )
    return RegionPredictions(
        width=640,
        height=640,
        proposals=torch.tensor(boxes[:, 0], dtype=torch.float32),
        objectness=torch.ones(regions),
        class_probs=torch.tensor(logits, dtype=torch.float32).softmax(1),
        boxes=torch.tensor(boxes, dtype=torch.float32),
        features=torch.zeros(regions, 1),
    )


def timed(function: Callable, *args, **kwargs):
    begin = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - begin, result


def report(what: str, fast: float, slow: float) -> None:
    print(f"{what:<40} {fast:>9.3f}s {slow:>9.3f}s {slow / fast:>6.1f}x", flush=True)


if __name__ == "__main__":
    sys.exit(main())
