import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.modeling.matching import match, sample, take_rows


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
    for iou in (torch.zeros(3, 0), torch.full((3, 2), -1.0)):
        index, label = match(iou, 0.5, 0.5, keep_best=True)
        assert index.tolist() == [0, 0, 0]
        assert label.tolist() == [0, 0, 0]


def test_images_of_a_batch_are_matched_on_their_own():
    iou = torch.rand(3, 20, 4)
    for together, alone in zip(zip(*match(iou, 0.7, 0.3, keep_best=True)), iou):
        for values, expected in zip(together, match(alone, 0.7, 0.3, keep_best=True)):
            assert torch.equal(values, expected)


@settings(deadline=None)
@given(
    labels=st.lists(st.sampled_from([1, 0, -1]), max_size=80),
    number=st.integers(0, 64),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_sample_keeps_its_limits_and_fills_with_negatives(labels, number, fraction):
    other = [0] * len(labels)
    drawn = sample(torch.tensor([labels, other], dtype=torch.int64), number, fraction)
    assert drawn.index.shape == (2, min(number, len(labels)))
    for image, image_labels in enumerate((labels, other)):
        places, used = drawn.positive[image], drawn.used[image]
        positive = drawn.index[image][places].tolist()
        negative = drawn.index[image][used & ~places].tolist()
        assert len(positive) == min(image_labels.count(1), int(number * fraction)) == drawn.num_positive[image]
        assert len(negative) == min(image_labels.count(0), number - len(positive))
        assert drawn.number[image] == len(positive) + len(negative)
        assert places.tolist() == sorted(places.tolist(), reverse=True)
        assert used.tolist() == sorted(used.tolist(), reverse=True)
        assert all(image_labels[i] == 1 for i in positive)
        assert all(image_labels[i] == 0 for i in negative)
        assert len(set(positive + negative)) == len(positive) + len(negative)


def test_sample_draws_differently_and_repeatably():
    label = torch.zeros(1, 100, dtype=torch.int64)
    torch.manual_seed(3)
    first, second = sample(label, 10, 0.5).index, sample(label, 10, 0.5).index
    torch.manual_seed(3)
    assert sample(label, 10, 0.5).index.tolist() == first.tolist() != second.tolist()


def test_sample_draws_every_box_equally_often():
    label = torch.tensor([[1] * 4 + [0] * 12 + [-1]]).expand(4000, -1)
    torch.manual_seed(0)
    drawn = sample(label, 8, 0.25)
    share = torch.zeros(17).index_add_(0, drawn.index.flatten(), drawn.used.flatten().float()) / len(label)
    assert share[:4].tolist() == pytest.approx([2 / 4] * 4, abs=0.05)
    assert share[4:16].tolist() == pytest.approx([6 / 12] * 12, abs=0.05)
    assert share[16] == 0


def test_take_rows():
    values, index = torch.rand(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    assert torch.equal(take_rows(values, index), torch.stack([values[0, [4, 0]], values[1, [1, 1]]]))
