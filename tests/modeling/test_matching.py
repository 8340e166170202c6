import torch
from hypothesis import given
from hypothesis import strategies as st

from bua.modeling.matching import match, sample


def test_match_takes_the_ground_truth_of_largest_overlap():
    iou = torch.tensor([[0.8, 0.75], [0.1, 0.4], [0.0, 0.2], [0.1, 0.71]])
    index, label = match(iou, 0.7, 0.3)
    assert index.tolist() == [0, 1, 1, 1]
    assert label.tolist() == [1, -1, 0, 1]


def test_the_best_box_of_each_object_is_positive_where_asked_but_not_at_no_overlap():
    iou = torch.tensor([[0.2, 0.0], [0.2, 0.0], [0.1, 0.0]])
    assert match(iou, 0.7, 0.3)[1].tolist() == [0, 0, 0]
    assert match(iou, 0.7, 0.3, keep_best=True)[1].tolist() == [1, 1, 0]


def test_no_ground_truth_makes_all_negative():
    index, label = match(torch.zeros(3, 0), 0.5, 0.5, keep_best=True)
    assert index.tolist() == [0, 0, 0]
    assert label.tolist() == [0, 0, 0]


@given(
    labels=st.lists(st.sampled_from([1, 0, -1]), max_size=80),
    number=st.integers(0, 64),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_sample_keeps_its_limits_and_fills_with_negatives(labels, number, fraction):
    label = torch.tensor(labels, dtype=torch.int64)
    positive, negative = sample(label, number, fraction)
    assert len(positive) == min(labels.count(1), int(number * fraction))
    assert len(negative) == min(labels.count(0), number - len(positive))
    assert (label[positive] == 1).all()
    assert (label[negative] == 0).all()
    assert len(set(positive.tolist() + negative.tolist())) == len(positive) + len(negative)


def test_sample_draws_differently_and_repeatably():
    label = torch.zeros(100, dtype=torch.int64)
    torch.manual_seed(3)
    first, second = sample(label, 10, 0.5)[1], sample(label, 10, 0.5)[1]
    torch.manual_seed(3)
    assert sample(label, 10, 0.5)[1].tolist() == first.tolist() != second.tolist()
