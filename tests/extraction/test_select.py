from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.extraction import regions_from, regions_of_given, select_regions
from bua.extraction.select import choose_rows
from bua.structures import RegionPredictions

CONVENTIONS = ["caffe", "detectron2"]


def one_class_nms(boxes, scores, threshold, convention):
    """Indices that survive, box by box."""
    if convention == "detectron2":
        return torchvision.ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).tolist()
    kept, one = [], np.float32(1)
    areas = (boxes[:, 2] - boxes[:, 0] + one) * (boxes[:, 3] - boxes[:, 1] + one)
    for i in np.argsort(scores, kind="stable")[::-1]:
        for k in kept:
            width = max(0, min(boxes[i, 2], boxes[k, 2]) - max(boxes[i, 0], boxes[k, 0]) + one)
            height = max(0, min(boxes[i, 3], boxes[k, 3]) - max(boxes[i, 1], boxes[k, 1]) + one)
            intersection = np.float32(width * height)
            if float(intersection / (areas[i] + areas[k] - intersection)) >= threshold:
                break
        else:
            kept.append(i)
    return kept


def class_by_class(boxes, probs, min_boxes, max_boxes, score_threshold, nms_threshold, convention):
    """What select_regions computes, as the paper tells it."""
    confidence = np.zeros(len(boxes))
    for scores in probs.T:
        for i in one_class_nms(boxes, np.ascontiguousarray(scores), nms_threshold, convention):
            confidence[i] = max(confidence[i], scores[i])
    chosen = np.flatnonzero(confidence >= score_threshold)
    if convention == "caffe":
        best_first = np.argsort(confidence, kind="stable")[::-1]
    else:
        best_first = np.argsort(-confidence, kind="stable")
    if len(chosen) < min_boxes:
        return best_first[:min_boxes].tolist()
    if len(chosen) > max_boxes:
        return best_first[:max_boxes].tolist()
    return chosen.tolist()


def assert_as_class_by_class(boxes, probs, min_boxes, max_boxes, score_threshold, nms_threshold, convention):
    selected = select_regions(
        torch.from_numpy(boxes),
        torch.from_numpy(probs),
        min_boxes=min_boxes,
        max_boxes=max_boxes,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        convention=convention,
    )
    expected = class_by_class(boxes, probs, min_boxes, max_boxes, score_threshold, nms_threshold, convention)
    assert selected.tolist() == expected


@pytest.mark.parametrize(("min_boxes", "max_boxes"), [(10, 100), (36, 36)])
@pytest.mark.parametrize("case", ["many", "some", "few"])
def test_as_the_original(shared_data, case, min_boxes, max_boxes):
    golden = np.load(shared_data / "golden" / "caffe_ops.npz")
    selected = select_regions(
        torch.from_numpy(golden["select_boxes"]),
        torch.from_numpy(golden[f"select_{case}_prob"][:, 1:]),
        min_boxes=min_boxes,
        max_boxes=max_boxes,
    )
    assert selected.dtype == torch.int64
    assert selected.tolist() == golden[f"select_{case}_{min_boxes}_{max_boxes}_keep"].tolist()


@st.composite
def tied_regions(draw):
    """Few coordinates and few probabilities, so that boxes repeat, touch the threshold and tie."""
    count, classes = draw(st.integers(1, 14)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    corners = rng.integers(0, draw(st.sampled_from([2, 6, 20])), (count, 2))
    sizes = rng.integers(1, draw(st.sampled_from([3, 6, 20])), (count, 2))
    boxes = np.concatenate([corners, corners + sizes], axis=1).astype(np.float32)
    levels = np.array(draw(st.sampled_from([[0, 0.2, 0.5], [0.001, 0.1, 0.2, 0.9], [0.25], [0, 0, 0, 0.3]])))
    return boxes, rng.choice(levels, (count, classes)).astype(np.float32)


@pytest.mark.parametrize("convention", CONVENTIONS)
@given(
    regions=tied_regions(),
    limits=st.tuples(st.integers(0, 16), st.integers(1, 16)).map(sorted),
    score_threshold=st.sampled_from([0.0, 0.1, 0.2, 0.7]),
    nms_threshold=st.sampled_from([0.3, 0.5, 0.7]),
)
@settings(max_examples=200, deadline=None)
def test_as_a_loop_over_classes_with_ties(convention, regions, limits, score_threshold, nms_threshold):
    assert_as_class_by_class(*regions, *limits, score_threshold, nms_threshold, convention)


@pytest.mark.parametrize("convention", CONVENTIONS)
@given(
    regions=tied_regions(),
    empty_classes=st.integers(0, 300),
    limits=st.tuples(st.integers(0, 16), st.integers(1, 16)).map(sorted),
    score_threshold=st.sampled_from([0.1, 0.2, 0.7]),
)
@settings(max_examples=200, deadline=None)
def test_few_pairs_among_many_classes_with_ties(convention, regions, empty_classes, limits, score_threshold):
    """As after a softmax of a trained detector, most probabilities are below any that matters."""
    boxes, probs = regions
    probs = np.concatenate([probs, np.full((len(probs), empty_classes), 1e-7, np.float32)], axis=1)
    probs = probs[:, np.random.default_rng(0).permutation(probs.shape[1])]
    assert_as_class_by_class(boxes, probs, *limits, score_threshold, 0.3, convention)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("case", ["all alike", "flat", "one class"])
def test_scores_of_an_untrained_detector(convention, case):
    rng = np.random.default_rng(5)
    corners = rng.uniform(0, 200, (150, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 120, (150, 2))], axis=1).astype(np.float32)
    spread = {"all alike": 0.0, "flat": 0.02, "one class": 0.001}[case]
    logits = rng.normal(size=(150, 41)) * spread
    logits[:, 7] += 3.0 if case == "one class" else 0.0
    probs = torch.from_numpy(logits).softmax(dim=1)[:, 1:].float().numpy().copy()
    for limits in ((10, 100), (36, 36), (100, 100)):
        assert_as_class_by_class(boxes, probs, *limits, 0.2, 0.3, convention)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 4.0, 12.0])
@pytest.mark.parametrize("limits", [(10, 40), (36, 36)])
def test_as_a_loop_over_classes_after_a_softmax(convention, sharpness, limits):
    rng = np.random.default_rng(7)
    corners = rng.uniform(0, 150, (80, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 120, (80, 2))], axis=1).astype(np.float32)
    logits = torch.from_numpy(rng.normal(size=(80, 61)) * sharpness)
    probs = logits.softmax(dim=1)[:, 1:].float().numpy().copy()
    assert_as_class_by_class(boxes, probs, *limits, 0.2, 0.3, convention)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_regions_of_one_place(convention):
    boxes = np.tile(np.array([[3, 4, 30, 40]], np.float32), (40, 1))
    probs = np.random.default_rng(0).dirichlet(np.ones(30), 40).astype(np.float32)
    assert_as_class_by_class(boxes, probs, 36, 36, 0.2, 0.3, convention)


def test_overlap_at_the_threshold_counts_as_in_torchvision():
    # An IoU of 6 / 20, which single precision rounds above 0.3.
    boxes = np.array([[0, 0, 13, 1], [7, 0, 20, 1]], np.float32)
    assert_as_class_by_class(boxes, np.array([[0.9], [0.8]], np.float32), 0, 2, 0.2, 0.3, "detectron2")


def test_rows_keep_their_order_where_their_number_fits():
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]])
    probs = torch.tensor([[0.3], [0.1], [0.9]])
    assert select_regions(boxes, probs, min_boxes=1, max_boxes=2).tolist() == [0, 2]
    assert select_regions(boxes, probs, min_boxes=1, max_boxes=1).tolist() == [2]
    assert select_regions(boxes, probs, min_boxes=3, max_boxes=3).tolist() == [2, 0, 1]


def test_fewer_regions_than_wanted():
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9]])
    assert select_regions(boxes, torch.tensor([[0.3], [0.4]])).tolist() == [1, 0]
    assert select_regions(torch.zeros(0, 4), torch.zeros(0, 5)).tolist() == []


def test_a_probability_that_is_not_a_number_counts_as_zero():
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]])
    probs = torch.tensor([[float("nan"), 0.3], [float("nan"), float("nan")], [0.5, 0.1]])
    assert select_regions(boxes, probs, min_boxes=1).tolist() == [0, 2]
    assert select_regions(boxes, probs, min_boxes=3).tolist() == [2, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_taken_as_float32(dtype):
    detected = predictions()
    boxes, probs = detected.proposals.to(dtype), detected.class_probs.to(dtype)
    expected = choose_rows(boxes.float().numpy(), probs.float().numpy(), min_boxes=5, max_boxes=9)
    assert select_regions(boxes, probs, min_boxes=5, max_boxes=9).tolist() == expected.tolist()
    assert expected.dtype == np.int64
    doubles = (boxes.double().numpy(), probs.double().numpy())
    assert choose_rows(*doubles, min_boxes=5, max_boxes=9).tolist() == expected.tolist()


def test_threads_select_at_the_same_time():
    rng = np.random.default_rng(0)
    images = [(rng.random((50, 4), np.float32).cumsum(axis=1) * 50, rng.random((50, 30), np.float32)) for _ in range(8)]
    expected = [choose_rows(*image).tolist() for image in images]
    with ThreadPoolExecutor(4) as threads:
        assert [rows.tolist() for rows in threads.map(lambda image: choose_rows(*image), images)] == expected


def test_limits_that_cross():
    with pytest.raises(ValueError, match="min_boxes 11"):
        select_regions(torch.zeros(1, 4), torch.ones(1, 1), min_boxes=11, max_boxes=10)


def predictions(attributes=True):
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(20, 2, generator=generator) * 50
    return RegionPredictions(
        width=120,
        height=90,
        proposals=torch.cat([corners, corners + 20], dim=1),
        objectness=torch.ones(20),
        class_probs=(torch.randn(20, 7, generator=generator) * 3).softmax(1)[:, :-1],
        boxes=torch.tensor([10.0, 10, 50, 50]) + torch.rand(20, 6, 4, generator=generator),
        features=torch.rand(20, 8, generator=generator),
        attribute_probs=torch.rand(20, 5, generator=generator) if attributes else None,
    )


def test_regions_carry_proposals_features_and_labels():
    detected = predictions()
    keep = select_regions(detected.proposals, detected.class_probs, min_boxes=5, max_boxes=5).numpy()
    regions = regions_from(detected, "a", min_boxes=5, max_boxes=5)
    assert (regions.image_id, regions.width, regions.height, len(regions)) == ("a", 120, 90, 5)
    assert np.array_equal(regions.boxes, detected.proposals.numpy()[keep])
    assert np.array_equal(regions.features, detected.features.numpy()[keep])
    assert np.array_equal(regions.object_ids, detected.class_probs.numpy()[keep].argmax(1))
    assert np.array_equal(regions.object_scores, detected.class_probs.numpy()[keep].max(1))
    assert np.array_equal(regions.attribute_ids, detected.attribute_probs.numpy()[keep].argmax(1))
    assert np.array_equal(regions.attribute_scores, detected.attribute_probs.numpy()[keep].max(1))
    for array in (regions.boxes, regions.features, regions.object_scores, regions.attribute_scores):
        assert array.dtype == np.float32
    assert regions.object_ids.dtype == regions.attribute_ids.dtype == np.int64


def test_regions_of_a_detector_without_attributes():
    regions = regions_from(predictions(attributes=False), 1)
    assert regions.attribute_ids is None
    assert regions.attribute_scores is None


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_regressed_boxes_of_each_regions_best_class(convention):
    detected = predictions()
    best = detected.class_probs.argmax(1)
    boxes = torch.stack([detected.boxes[region, class_] for region, class_ in enumerate(best)])
    keep = select_regions(boxes, detected.class_probs, min_boxes=5, max_boxes=9, convention=convention)
    assert keep.tolist() != select_regions(detected.proposals, detected.class_probs, min_boxes=5, max_boxes=9).tolist()
    regions = regions_from(detected, 1, min_boxes=5, max_boxes=9, convention=convention, regressed=True)
    assert np.array_equal(regions.boxes, boxes.numpy()[keep])
    assert np.array_equal(regions.features, detected.features.numpy()[keep])
    assert np.array_equal(regions.object_ids, best.numpy()[keep])


def test_no_limits_give_every_region_above_the_threshold():
    detected = predictions()
    regions = regions_from(detected, 1, min_boxes=0, max_boxes=20, score_threshold=0.7, nms_threshold=1.0)
    above = np.flatnonzero(detected.class_probs.numpy().max(1) >= 0.7)
    assert 0 < len(above) < 20
    assert np.array_equal(regions.features, detected.features.numpy()[above])
    assert len(regions_from(detected, 1, min_boxes=0, max_boxes=20, score_threshold=1.0)) == 0
    assert len(regions_from(detected, 1, min_boxes=0, max_boxes=20, score_threshold=0.0)) == 20


def test_given_boxes_are_all_kept_in_their_order():
    detected = predictions()
    regions = regions_of_given(detected, "a")
    assert (regions.image_id, regions.width, regions.height) == ("a", 120, 90)
    assert np.array_equal(regions.boxes, detected.proposals)
    assert np.array_equal(regions.features, detected.features)
    assert np.array_equal(regions.object_scores, detected.class_probs.max(1).values)
    assert np.array_equal(regions.attribute_ids, detected.attribute_probs.argmax(1))
