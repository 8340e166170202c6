import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.detection.evaluation import PROTOCOLS, average_precision, mean_average_precision, precision_recall
from bua.errors import InputError


def random_rows(seed: int, images=4, num_classes=3, boxes=24, detections=120):
    """Returns float32 detections near the ground truth, some with equal scores, and the ground truth."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 30, (boxes, 2))
    ground_truth = np.column_stack(
        (
            rng.integers(0, images, boxes),
            rng.integers(0, num_classes, boxes),
            corner,
            corner + rng.integers(0, 25, (boxes, 2)),
        )
    ).astype(float)
    near = ground_truth[rng.integers(0, boxes, detections)] if boxes else np.zeros((detections, 6))
    near[:, 2:] += rng.normal(0, 2, (detections, 4))
    near[:, 4:] = np.maximum(near[:, 4:], near[:, 2:4])
    scores = np.round(rng.random(detections), 2) + rng.choice([0, 1e-4, 4e-4], detections)
    detections = np.column_stack((near[:, :2], scores, near[:, 2:]))
    return detections.astype(np.float32), ground_truth


def plain_average_precision(detections, ground_truth, num_classes, protocol):
    """Average precision by a loop over classes, detections and boxes."""
    one = 1.0 if protocol == "original" else 0.0
    result = []
    for label in range(num_classes):
        rows = []
        for image, _, score, *box in detections[detections[:, 1] == label].tolist():
            if protocol == "original":
                score, box = float(f"{score:.3f}"), [float(f"{value + 1:.1f}") for value in box]
            rows.append((image, score, box))
        rows.sort(key=lambda row: -row[1])
        truth = [(image, box) for image, gt_label, *box in ground_truth.tolist() if gt_label == label]
        taken, hits, precisions, recalls = set(), 0, [], []
        for admitted, (image, _, box) in enumerate(rows, start=1):
            overlaps = [plain_iou(box, gt, one) if image == gt_image else -1.0 for gt_image, gt in truth]
            best = int(np.argmax(overlaps)) if overlaps else None
            if best is not None and overlaps[best] > 0.5 and best not in taken:
                taken.add(best)
                hits += 1
            precisions.append(hits / admitted)
            recalls.append(hits / max(len(truth), 1))
        area, before = 0.0, 0.0
        for rank, recall in enumerate(recalls):
            area += (recall - before) * max(precisions[rank:])
            before = recall
        result.append(area)
    return np.array(result)


def plain_iou(a, b, one):
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + one, 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + one, 0.0)
    areas = sum((box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b))
    union = areas - width * height
    return width * height / union if union > 0 else 0.0


def test_golden_evaluation_of_the_original(shared_data):
    golden = np.load(shared_data / "golden" / "caffe_ops.npz")
    detections, ground_truth = golden["eval_dets"].copy(), golden["eval_gt"].copy()
    # Class 0 is background there.
    detections[:, 1] -= 1
    ground_truth[:, 1] -= 1
    ap, count = average_precision(detections, ground_truth, len(golden["eval_ap"]), protocol="original")
    np.testing.assert_allclose(ap, golden["eval_ap"], atol=1e-9, rtol=0)
    np.testing.assert_array_equal(count, golden["eval_npos"])


@pytest.mark.parametrize(
    ("table", "mean", "weighted"), [("eval_objects.tsv", 10.24, 15.07), ("eval_attributes.tsv", 7.79, 27.81)]
)
def test_published_tables_average_to_the_published_numbers(shared_data, table, mean, weighted):
    with open(shared_data / "published" / table, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    ap, count = np.array([float(row["ap"]) for row in rows]), np.array([int(row["npos"]) for row in rows])
    assert mean_average_precision(ap, count) == (
        pytest.approx(mean / 100, abs=1e-4),
        pytest.approx(weighted / 100, abs=1e-4),
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), boxes=st.integers(0, 40), detections=st.integers(0, 150))
def test_agrees_with_a_loop_over_detections(protocol, seed, boxes, detections):
    detections, ground_truth = random_rows(seed, boxes=boxes, detections=detections)
    ap, count = average_precision(detections, ground_truth, 4, protocol=protocol)
    np.testing.assert_allclose(ap, plain_average_precision(detections, ground_truth, 4, protocol), atol=1e-12)
    np.testing.assert_array_equal(count, np.bincount(ground_truth[:, 1].astype(int), minlength=4))


def test_the_size_of_blocks_of_pairs_does_not_change_the_result(monkeypatch):
    detections, ground_truth = random_rows(3, boxes=40, detections=200)
    whole = average_precision(detections, ground_truth, 3)
    monkeypatch.setattr("bua.overlap.BLOCK_PAIRS", 7)
    np.testing.assert_array_equal(average_precision(detections, ground_truth, 3), whole)


def test_the_originals_shift_loses_boxes_of_four_pixels_and_the_corrected_protocol_does_not():
    for side, original in ((4, 0.0), (5, 1.0)):
        box = [10, 10, 10 + side, 10 + side]
        detections, ground_truth = np.array([[0, 0, 0.9, *box]]), np.array([[0, 0, *box]])
        assert average_precision(detections, ground_truth, 1, protocol="original")[0] == [original]
        assert average_precision(detections, ground_truth, 1, protocol="corrected")[0] == [1.0]


def test_a_second_detection_of_a_box_is_wrong_and_scores_that_round_alike_are_equal():
    box = [0, 0, 20, 20]
    miss = [50, 50, 70, 70]
    ground_truth = np.array([[7, 0, *box]])
    detections = np.array([[7, 0, 0.5001, *miss], [7, 0, 0.5002, *box], [7, 0, 0.4, *box]])
    assert average_precision(detections, ground_truth, 1, protocol="corrected")[0] == [1.0]
    # Both are rounded to 0.500, so the miss stays in the first place, in which it was given.
    assert average_precision(detections, ground_truth, 1, protocol="original")[0] == [0.5]
    (curve,) = precision_recall(detections, ground_truth, 1, protocol="original")
    np.testing.assert_allclose(curve.precision, [0, 1 / 2, 1 / 3])
    np.testing.assert_allclose(curve.recall, [0, 1, 1])
    np.testing.assert_allclose(curve.scores, [0.5, 0.5, 0.4])


def test_classes_without_ground_truth_or_detections_count_as_zero():
    box = [0, 0, 20, 20]
    ap, count = average_precision(
        np.array([[0, 0, 0.9, *box], [0, 2, 0.9, *box]]), np.array([[0, 0, *box], [0, 1, *box]]), 3
    )
    assert ap.tolist() == [1, 0, 0]
    assert count.tolist() == [1, 1, 0]
    assert mean_average_precision(ap, count) == (pytest.approx(1 / 3), pytest.approx(1 / 2))


def test_nothing_at_all_is_zero():
    ap, count = average_precision(np.empty((0, 7)), np.empty((0, 6)), 2)
    assert ap.tolist() == count.tolist() == [0, 0]
    assert mean_average_precision(ap, count) == (0, 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_classes_and_images_does_not_matter(protocol, seed):
    detections, ground_truth = random_rows(seed)
    rng = np.random.default_rng(seed)
    ap, _ = average_precision(detections, ground_truth, 3, protocol=protocol)
    renamed, truth = detections.copy(), ground_truth.copy()
    images, classes = rng.permutation(4) + 1000, rng.permutation(3)
    for rows in (renamed, truth):
        rows[:, 0], rows[:, 1] = images[rows[:, 0].astype(int)], classes[rows[:, 1].astype(int)]
    np.testing.assert_array_equal(average_precision(renamed, truth, 3, protocol=protocol)[0][classes], ap)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:, :6], "detections: its shape is"),
        (lambda rows: rows + np.eye(7)[1] * 5, "detections: classes 5"),
        (lambda rows: rows * np.array([1, 1, np.nan, 1, 1, 1, 1]), "detections: row 0 contains NaN"),
    ],
)
def test_bad_arrays_are_named(change, message):
    detections, ground_truth = random_rows(0)
    with pytest.raises(InputError, match=message):
        average_precision(change(detections), ground_truth, 3)


def test_unknown_protocol_is_named():
    with pytest.raises(InputError, match="protocol: 'voc' is unknown"):
        average_precision(np.empty((0, 7)), np.empty((0, 6)), 2, protocol="voc")
