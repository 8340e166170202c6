"""The original's rows of zeros, against a plain implementation of what its code does."""

import json

import cv2
import numpy as np
import pytest
import torch

from bua.detection.annotations import DetectionDataset, ImageAnnotations, write_annotations
from bua.detection.evaluation import VisualGenomeEvaluator, evaluate_detector
from bua.errors import InputError
from bua.structures import DetectorInput, RegionPredictions
from bua.vocabulary import Vocabulary

OBJECTS, ATTRIBUTES = ["cat", "dog"], ["red", "big", "wet", "old"]
SIDE = 64
LIMIT = 12  # detections of an image, of which there are more with the rows of zeros


def random_world(seed: int, num_images=6) -> list[dict]:
    """Returns images with boxes, attributes of each box, and a number of objects that are not in the vocabulary. The
    first image has an annotated box where the original writes its rows of zeros."""
    rng = np.random.default_rng(seed)
    world = []
    for image_id in range(1, num_images + 1):
        number = int(rng.integers(1, 5))
        corner = rng.integers(0, 30, (number, 2))
        boxes = np.concatenate([corner, corner + rng.integers(5, 30, (number, 2))], axis=1)
        if image_id == 1:
            boxes[0] = [1, 1, 1, 1]
        attributes = [np.flatnonzero(rng.random(len(ATTRIBUTES)) < 0.4).tolist() for _ in range(number)]
        world.append({"id": image_id, "boxes": boxes, "attributes": attributes, "zeros": int(rng.integers(0, 4))})
    world[0]["zeros"] = 2
    return world


def write_world(folder, world, with_zero_rows=True) -> DetectionDataset:
    images = []
    for image in world:
        cv2.imwrite(str(folder / f"{image['id']}.png"), np.full((SIDE, SIDE, 3), image["id"], np.uint8))
        classes = [0] * len(image["boxes"])
        zeros = image["zeros"] if with_zero_rows else None
        images.append(
            ImageAnnotations(
                image["id"], f"{image['id']}.png", SIDE, SIDE, image["boxes"], classes, image["attributes"], zeros
            )
        )
    write_annotations(folder / "world.json", images, Vocabulary(OBJECTS), Vocabulary(ATTRIBUTES))
    return DetectionDataset(folder / "world.json", folder)


def probabilities(image_id: int, boxes: np.ndarray) -> np.ndarray:
    """Returns what a detector predicts for boxes [G, 4]: the same numbers for the same box, with few distinct values,
    which are higher than most at the rows of zeros."""
    rows = []
    for box in np.asarray(boxes, dtype=np.int64):
        rng = np.random.default_rng([image_id, *box.tolist()])
        rows.append(rng.integers(1, 9, len(ATTRIBUTES)) / 10 + (0.1 if not box.any() else 0))
    return np.array(rows, dtype=np.float32).reshape(-1, len(ATTRIBUTES))


class PredictsByBox:
    def prepare(self, image, image_id=None):
        return DetectorInput(
            torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)), SIDE, SIDE, (1, 1), image_id
        )

    def infer(self, batch, boxes=None):
        given = [torch.zeros(1, 4)] * len(batch) if boxes is None else boxes
        return [
            RegionPredictions(
                width=SIDE,
                height=SIDE,
                proposals=at,
                objectness=torch.ones(len(at)),
                class_probs=torch.full((len(at), len(OBJECTS)), 0.1),
                boxes=at[:, None].expand(-1, len(OBJECTS), 4),
                features=torch.zeros(len(at), 1),
                attribute_probs=torch.from_numpy(probabilities(image.image_id, at.numpy())),
            )
            for image, at in zip(batch, given)
        ]


def average_precision_of_the_original(world, attribute: int) -> tuple[float, int]:
    """What lib/fast_rcnn/test.py, lib/datasets/vg.py and lib/datasets/vg_eval.py compute for one attribute."""
    positives = {image["id"]: [] for image in world}
    detections = []
    for image in world:
        # The arrays have a row for each object of the XML file. Those of the vocabulary come first.
        rows = np.zeros((len(image["boxes"]) + image["zeros"], 4))
        rows[: len(image["boxes"])] = image["boxes"]
        for box, attributes in zip(image["boxes"].tolist(), image["attributes"]):
            if attribute in attributes:
                positives[image["id"]].append([box, False])
        scores = probabilities(image["id"], rows)
        best = np.sort(scores.flatten())[::-1]
        limit = best[LIMIT - 1] if len(best) > LIMIT else -np.inf
        kept = [(scores[row, attribute], rows[row]) for row in range(len(rows)) if scores[row, attribute] >= limit]
        for score, box in sorted(kept, key=lambda pair: -pair[0]):
            detections.append((float(f"{score:.3f}"), image["id"], [float(f"{value + 1:.1f}") for value in box]))
    count = sum(map(len, positives.values()))
    detections.sort(key=lambda detection: -detection[0])
    correct = []
    for _, image_id, (x1, y1, x2, y2) in detections:
        overlaps = []
        for (a1, b1, a2, b2), _ in positives[image_id]:
            common = max(min(x2, a2) - max(x1, a1) + 1, 0) * max(min(y2, b2) - max(y1, b1) + 1, 0)
            areas = (x2 - x1 + 1) * (y2 - y1 + 1) + (a2 - a1 + 1) * (b2 - b1 + 1)
            overlaps.append(common / (areas - common))
        best = int(np.argmax(overlaps)) if overlaps else None
        is_correct = best is not None and overlaps[best] > 0.5 and not positives[image_id][best][1]
        if is_correct:
            positives[image_id][best][1] = True
        correct.append(is_correct)
    area, before = 0.0, 0.0
    hits = np.cumsum(correct)
    precision = hits / np.arange(1, len(hits) + 1)
    for rank, found in enumerate(hits):
        recall = found / max(count, 1)
        area += (recall - before) * precision[rank:].max()
        before = recall
    return area, count


@pytest.mark.parametrize("seed", range(4))
def test_the_originals_protocol_with_its_rows_of_zeros(seed, tmp_path):
    world = random_world(seed)
    dataset = write_world(tmp_path, world)
    options = {"coco": False, "max_detections": LIMIT}
    plain = VisualGenomeEvaluator(dataset, **options)
    without = evaluate_detector(PredictsByBox(), plain, num_workers=0, progress=False)
    evaluator = VisualGenomeEvaluator(dataset, output_dir=tmp_path / "out", zero_rows=True, **options)
    metrics = evaluate_detector(PredictsByBox(), evaluator, batch_size=2, num_workers=0, progress=False)

    expected = [average_precision_of_the_original(world, attribute) for attribute in range(len(ATTRIBUTES))]
    ap, count = np.array(expected).T
    assert metrics["attributes/original/mAP50"] == pytest.approx(ap.mean(), abs=1e-12)
    assert metrics["attributes/original/weighted_mAP50"] == pytest.approx(np.average(ap, weights=count), abs=1e-12)
    # Nothing else changes, and the files hold the detections at annotated boxes only.
    assert metrics["attributes/original/mAP50"] != without["attributes/original/mAP50"]
    changed = {name for name, value in metrics.items() if value != without[name]}
    assert changed == {"attributes/original/mAP50", "attributes/original/weighted_mAP50"}
    kept = json.loads((tmp_path / "out" / "attributes.json").read_text())
    assert len(kept) == sum(map(len, plain.detections["attributes"].values()))
    assert all(any(one["bbox"]) for one in kept)


def test_without_rows_of_zeros_in_the_annotation_file_they_cannot_be_asked_for(tmp_path):
    dataset = write_world(tmp_path, random_world(0), with_zero_rows=False)
    with pytest.raises(InputError, match=r"world: MODEL\.BUA\.EVALUATION\.ZERO_ROWS is True, but the annotation file"):
        VisualGenomeEvaluator(dataset, zero_rows=True)


@pytest.mark.parametrize("value", [-1, 10**6, 1.5, True])
def test_a_wrong_number_of_rows_is_refused(tmp_path, value):
    write_world(tmp_path, random_world(0))
    content = json.loads((tmp_path / "world.json").read_text())
    content["images"][2]["zero_rows"] = value
    (tmp_path / "world.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"images\[2\]: zero_rows"):
        DetectionDataset(tmp_path / "world.json", tmp_path)
