"""Suppression for all classes at once, compared with one class at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.extraction.class_suppression import overlap_bits, suppressed_of_pairs, suppressed_of_scores
from bua.modeling.boxes import pairwise_iou

CONVENTIONS = ["caffe", "detectron2"]


def overlaps_of(boxes, threshold, convention):
    """[R, R] bool, from the IoUs that the rest of the project computes."""
    iou = pairwise_iou(torch.from_numpy(boxes), torch.from_numpy(boxes), convention).double().numpy()
    overlaps = iou >= threshold if convention == "caffe" else iou > threshold
    np.fill_diagonal(overlaps, False)
    return overlaps


def one_class(scores, overlaps, later_first):
    """Which regions are suppressed, region by region."""
    order = np.argsort(-scores, kind="stable")
    if later_first:
        order = np.argsort(scores, kind="stable")[::-1]
    suppressed = np.zeros(len(scores), bool)
    for region in order:
        if not suppressed[region]:
            suppressed |= overlaps[region]
    return suppressed


def random_boxes(rng, count, spread):
    corners = rng.integers(0, spread, (count, 2))
    return np.concatenate([corners, corners + rng.integers(1, 20, (count, 2))], axis=1).astype(np.float32)


def unpacked(bits, count):
    return np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little", count=count).astype(bool)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("count", [1, 8, 63, 64, 65, 300])
def test_overlaps_are_those_of_the_ious(convention, count):
    boxes = random_boxes(np.random.default_rng(count), count, 60)
    for threshold in (0.3, 0.5, 0.7, 1.0):
        bits = overlap_bits(boxes, threshold, convention)
        assert bits.shape == (count + 1, count // 64 + 1)
        expected = overlaps_of(boxes, threshold, convention)
        assert np.array_equal(unpacked(bits, count)[:-1], expected)
        assert not bits[-1].any()


def test_boxes_without_an_area_overlap_nothing():
    boxes = np.array([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]], np.float32)
    assert not overlap_bits(boxes, 0.3, "detectron2").any()
    assert unpacked(overlap_bits(boxes, 0.3, "caffe"), 3)[0].tolist() == [False, True, False]


@st.composite
def scores_with_ties(draw):
    count, classes = draw(st.integers(1, 140)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    boxes = random_boxes(rng, count, draw(st.sampled_from([1, 10, 60])))
    levels = draw(st.sampled_from([2, 5, 1000]))
    scores = rng.integers(1, levels, (count, classes)).astype(np.float32) / np.float32(levels)
    return boxes, scores, rng


@pytest.mark.parametrize("later_first", [False, True])
@given(scores_with_ties())
@settings(max_examples=60, deadline=None)
def test_all_classes_at_once_are_as_one_by_one(later_first, drawn):
    boxes, scores, rng = drawn
    bits, overlaps = overlap_bits(boxes, 0.3, "caffe"), overlaps_of(boxes, 0.3, "caffe")
    expected = np.stack([one_class(column, overlaps, later_first) for column in scores.T], axis=1)
    assert np.array_equal(suppressed_of_scores(scores, bits, later_first=later_first), expected)

    # The same from a list of the pairs, which has no order, and from the pairs above a level.
    regions, classes = np.nonzero(scores)
    shuffled = rng.permutation(len(regions))
    regions, classes = regions[shuffled], classes[shuffled]
    suppressed = suppressed_of_pairs(regions, classes, scores[regions, classes], bits, later_first=later_first)
    assert np.array_equal(suppressed, expected[regions, classes])
    above = scores[regions, classes] >= np.median(scores)
    regions, classes = regions[above], classes[above]
    suppressed = suppressed_of_pairs(regions, classes, scores[regions, classes], bits, later_first=later_first)
    assert np.array_equal(suppressed, expected[regions, classes])


def test_no_pairs():
    nothing = np.zeros(0, np.int64)
    bits = overlap_bits(np.array([[0, 0, 9, 9]], np.float32), 0.3, "caffe")
    assert suppressed_of_pairs(nothing, nothing, np.zeros(0, np.float32), bits, later_first=True).shape == (0,)
