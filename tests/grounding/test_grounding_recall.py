"""Recall of grounding against loops that do what the definitions say."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.grounding.official import TYPES
from bua.grounding.recall import chance_recall, first_hits, grounding_recall, hits, recall_by_type


def iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def slow_is_right(region, boxes, protocol) -> bool:
    if protocol == "merged":
        corners = list(zip(*boxes))
        boxes = [(min(corners[0]), min(corners[1]), max(corners[2]), max(corners[3]))]
    return any(iou(region, box) >= 0.5 for box in boxes)


def slow_recall(ranked, truth, protocol) -> dict[str, float]:
    found = dict.fromkeys(("R@1", "R@5", "R@10", "bound"), 0)
    for regions, boxes in zip(ranked, truth):
        right = [slow_is_right(region, boxes, protocol) for region in regions.tolist()]
        for name, k in (("R@1", 1), ("R@5", 5), ("R@10", 10), ("bound", len(right))):
            found[name] += any(right[:k])
    return {name: 100 * count / len(truth) for name, count in found.items()}


def some_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns boxes with few different integers, so that boxes overlap, some of them with an IoU of exactly 0.5."""
    corners = np.sort(rng.integers(0, 7, (count, 2, 2)), axis=1)
    return corners.reshape(count, 4).astype(np.float32)


def examples(seed: int, phrases: int, most: int = 12) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    ranked = [some_boxes(rng, rng.integers(0, most + 1)) for _ in range(phrases)]
    return ranked, [some_boxes(rng, rng.integers(1, 4)) for _ in range(phrases)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), phrases=st.integers(1, 8), protocol=st.sampled_from(["any", "merged"]))
def test_equals_a_loop(seed, phrases, protocol):
    ranked, truth = examples(seed, phrases)
    found = grounding_recall(ranked, truth, protocol=protocol)
    assert found == pytest.approx(slow_recall(ranked, truth, protocol))
    assert found["R@1"] <= found["R@5"] <= found["R@10"] <= found["bound"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), protocol=st.sampled_from(["any", "merged"]))
def test_chance_is_the_mean_over_all_orders(seed, protocol):
    ranked, truth = examples(seed, 1, most=6)
    orders = [ranked[0][list(order)] for order in itertools.permutations(range(len(ranked[0])))]
    expected = slow_recall(orders, truth * len(orders), protocol)
    assert chance_recall(ranked, truth, protocol=protocol) == pytest.approx(expected)


def test_chance_of_many_phrases_is_their_mean():
    ranked, truth = examples(1, 9)
    each = [chance_recall([regions], [boxes]) for regions, boxes in zip(ranked, truth)]
    mean = {name: np.mean([one[name] for one in each]) for name in each[0]}
    assert chance_recall(ranked, truth) == pytest.approx(mean)


def test_the_protocols_differ():
    """For four people, the box of one person is right in one protocol, and the box around all in the other."""
    people = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 10, 20], [10, 10, 20, 20]])
    regions = np.array([people[0], [0, 0, 20, 20], [40, 40, 50, 50]], np.float32)
    assert hits(regions, people, "any").tolist() == [True, False, False]
    assert hits(regions, people, "merged").tolist() == [False, True, False]
    with pytest.raises(ValueError, match="protocol"):
        hits(regions, people, "both")


def test_overlap_is_without_the_one_of_pixels_and_includes_one_half():
    box = np.array([[0, 0, 10, 10]])
    regions = np.array([[0, 0, 10, 5], [0, 0, 10, 4.99], [3, 3, 3, 3]], np.float32)
    assert hits(regions, box).tolist() == [True, False, False]


def test_by_type():
    ranked, truth = examples(5, 40)
    types = np.random.default_rng(0).random((40, len(TYPES))) < 0.3
    types[:, TYPES.index("vehicles")] = False
    found = recall_by_type(first_hits(ranked, truth), types)
    assert "vehicles" not in found
    for column, kind in enumerate(TYPES):
        chosen = np.flatnonzero(types[:, column])
        if kind in found:
            expected = slow_recall([ranked[i] for i in chosen], [truth[i] for i in chosen], "any")
            assert found[kind] == pytest.approx(expected | {"phrases": len(chosen)})
