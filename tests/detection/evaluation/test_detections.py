import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.detection.evaluation import attribute_detections, object_detections
from bua.structures import RegionPredictions


def random_predictions(seed: int, regions=30, classes=8, levels=50) -> RegionPredictions:
    """Returns overlapping regions with few distinct scores, so that many are equal."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 20, (regions, classes, 2)) * 2.0
    boxes = np.concatenate((corner, corner + rng.integers(5, 40, (regions, classes, 2))), axis=2)
    return RegionPredictions(
        width=100,
        height=100,
        proposals=torch.tensor(boxes[:, 0], dtype=torch.float32),
        objectness=torch.ones(regions),
        class_probs=torch.tensor(rng.integers(0, levels, (regions, classes)) / levels, dtype=torch.float32),
        boxes=torch.tensor(boxes, dtype=torch.float32),
        features=torch.zeros(regions, 4),
        attribute_probs=torch.tensor(rng.integers(0, levels, (regions, 5)) / levels, dtype=torch.float32),
    )


def plain_suppression(boxes: np.ndarray, scores: np.ndarray, threshold: float, convention: str) -> list[int]:
    one = np.float32(convention == "caffe")
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        for j in kept:
            width = max(min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0]) + one, np.float32(0))
            height = max(min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1]) + one, np.float32(0))
            area_i, area_j = ((b[2] - b[0] + one) * (b[3] - b[1] + one) for b in (boxes[i], boxes[j]))
            iou = width * height / (area_i + area_j - width * height)
            if float(iou) > threshold or (convention == "caffe" and float(iou) == threshold):
                break
        else:
            kept.append(int(i))
    return kept


def plain_object_detections(predictions, threshold, maximum, convention, score_threshold=-np.inf):
    rows = []
    for label in range(predictions.class_probs.shape[1]):
        regions = np.flatnonzero(predictions.class_probs[:, label].numpy() > score_threshold)
        boxes, scores = predictions.boxes[regions, label].numpy(), predictions.class_probs[regions, label].numpy()
        for i in plain_suppression(boxes, scores, threshold, convention):
            rows.append([label, scores[i], *boxes[i]])
    rows = np.array(rows, dtype=np.float32).reshape(-1, 6)
    if len(rows) > maximum:
        rows = rows[rows[:, 1] >= np.sort(rows[:, 1])[-maximum]]
    return rows


def as_set(rows: np.ndarray) -> list:
    return sorted(map(tuple, rows.tolist()))


@pytest.mark.parametrize("convention", ["caffe", "detectron2"])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    maximum=st.integers(1, 60),
    threshold=st.sampled_from([0.25, 0.3, 0.5]),
    levels=st.sampled_from([2, 10, 1000]),
)
def test_agrees_with_a_loop_over_classes(convention, seed, maximum, threshold, levels):
    predictions = random_predictions(seed, levels=levels)
    rows = object_detections(predictions, convention=convention, nms_threshold=threshold, max_detections=maximum)
    assert as_set(rows) == as_set(plain_object_detections(predictions, threshold, maximum, convention))
    assert (np.diff(rows[:, 1]) <= 0).all()


def test_agrees_with_torchvision_in_detectron2s_convention():
    predictions = random_predictions(5, regions=200, classes=40, levels=10**6)
    expected = []
    for label in range(40):
        scores, boxes = predictions.class_probs[:, label], predictions.boxes[:, label]
        kept = torchvision.ops.nms(boxes, scores, 0.5)
        expected += torch.column_stack((torch.full((len(kept),), label), scores[kept], boxes[kept])).tolist()
    rows = object_detections(predictions, convention="detectron2", nms_threshold=0.5, max_detections=10**6)
    assert as_set(rows) == sorted(map(tuple, expected))


def test_overlap_at_the_threshold_is_suppressed_in_the_originals_convention_only():
    predictions = random_predictions(0, regions=2, classes=1)
    predictions.class_probs = torch.tensor([[0.9], [0.8]])
    # The second box is half of the first: 10 x 10 pixels with both corners included, then 8 x 8 between edges.
    predictions.boxes = torch.tensor([[[0.0, 0, 9, 9]], [[0.0, 0, 9, 4]]])
    assert len(object_detections(predictions, convention="caffe", nms_threshold=0.5)) == 1
    predictions.boxes = torch.tensor([[[0.0, 0, 8, 8]], [[0.0, 0, 8, 4]]])
    assert len(object_detections(predictions, convention="detectron2", nms_threshold=0.5)) == 2


def test_equal_scores_at_the_limit_are_all_kept():
    predictions = random_predictions(1, regions=6, classes=2)
    predictions.boxes = torch.arange(6.0)[:, None, None].expand(6, 2, 4) * 100 + torch.tensor([0.0, 0, 50, 50])
    predictions.class_probs = torch.tensor([[0.9, 0.5]] + [[0.5, 0.5]] * 5)
    rows = object_detections(predictions, max_detections=3)
    assert len(rows) == 12
    assert rows[0, 1] == pytest.approx(0.9)


def test_score_threshold_is_exclusive():
    predictions = random_predictions(2, levels=4)
    rows = object_detections(predictions, score_threshold=0.5)
    assert len(rows)
    assert rows[:, 1].min() == 0.75
    assert as_set(rows) == as_set(plain_object_detections(predictions, 0.3, 400, "caffe", 0.5))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), maximum=st.integers(1, 200))
def test_attribute_detections_are_the_best_pairs_of_box_and_attribute(seed, maximum):
    predictions = random_predictions(seed)
    pairs = [
        (attribute, predictions.attribute_probs[region, attribute].item(), *predictions.proposals[region].tolist())
        for region in range(30)
        for attribute in range(5)
    ]
    limit = sorted((pair[1] for pair in pairs), reverse=True)[min(maximum, len(pairs)) - 1]
    rows = attribute_detections(predictions, max_detections=maximum)
    assert as_set(rows) == sorted(pair for pair in pairs if pair[1] >= limit)
    assert (np.diff(rows[:, 1]) <= 0).all()


def test_an_image_without_regions_has_no_detections():
    predictions = random_predictions(0, regions=0)
    assert object_detections(predictions).shape == (0, 6)
    assert attribute_detections(predictions).shape == (0, 6)
