import pytest
import torch

from bua.modeling.anchors import cell_anchors, grid_anchors
from bua.modeling.boxes import nms
from bua.modeling.suppression import _suppress_in_blocks, suppress

CONVENTIONS = ("caffe", "detectron2")


def one_by_one(boxes, valid, iou_threshold, convention):
    """Suppresses in each image on its own, by torchvision's operator."""
    remains = torch.zeros_like(valid)
    for image, kept in enumerate(remains):
        rows = [i for i in range(len(kept)) if valid[image, i]]
        scores = torch.linspace(1, 0, len(rows))
        for i in nms(boxes[image, rows], scores, iou_threshold, convention).tolist():
            kept[rows[i]] = True
    return remains


def scattered_boxes(images, number):
    corner, side = torch.rand(images, number, 2) * 60, 10 + torch.rand(images, number, 2) * 30
    return torch.cat([corner, corner + side], dim=2), torch.rand(images, number) > 0.1


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_both_ways_agree_with_torchvision(convention, threshold, monkeypatch):
    monkeypatch.setattr("bua.modeling.suppression._LARGEST_BLOCK", 96)  # several blocks
    torch.manual_seed(0)
    boxes, valid = scattered_boxes(3, 250)
    boxes[1] = boxes[1].round()  # overlaps that lie on the threshold
    expected = one_by_one(boxes, valid, threshold, convention)
    assert torch.equal(suppress(boxes, valid, threshold, convention)[0], expected)
    remains, settled = _suppress_in_blocks(boxes, valid, threshold, convention, 32)
    assert settled
    assert torch.equal(remains, expected)


@pytest.mark.parametrize(("convention", "second"), [("caffe", False), ("detectron2", True)])
def test_an_overlap_of_the_threshold_suppresses_in_caffe_only(convention, second):
    end = 9.0 if convention == "caffe" else 10.0
    boxes = torch.tensor([[[0, 0, end, end], [0, 0, end, end - 5]]])  # 10x10 and 10x5
    valid = torch.ones(1, 2, dtype=torch.bool)
    assert suppress(boxes, valid, 0.5, convention)[0].tolist() == [[True, second]]
    assert _suppress_in_blocks(boxes, valid, 0.5, convention, 4)[0].tolist() == [[True, second]]


def test_too_few_rounds_are_reported():
    # Each box suppresses the next: the first, the third and so on remain, which takes a round for each.
    start = torch.arange(40.0)
    boxes = torch.stack([start, torch.zeros(40), start + 4, torch.full((40,), 10.0)], dim=1)[None]
    valid = torch.ones(1, 40, dtype=torch.bool)
    expected = one_by_one(boxes, valid, 0.55, "detectron2")
    assert expected[0].tolist() == [True, False] * 20
    assert not _suppress_in_blocks(boxes, valid, 0.55, "detectron2", 4)[1]
    remains, settled = _suppress_in_blocks(boxes, valid, 0.55, "detectron2", 40)
    assert settled
    assert torch.equal(remains, expected)


def test_the_proposals_of_a_feature_map_need_few_rounds():
    torch.manual_seed(0)
    boxes = grid_anchors(cell_anchors([64, 128], [0.5, 1.0, 2.0]), 12, 16, 16)
    boxes = boxes[torch.randperm(len(boxes))][None]
    remains, settled = _suppress_in_blocks(boxes, torch.ones(1, len(boxes[0]), dtype=torch.bool), 0.7, "caffe", 8)
    assert settled
    assert 0 < remains.sum() < len(boxes[0])


def test_no_boxes():
    remains, settled = _suppress_in_blocks(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), 0.5, "caffe", 8)
    assert remains.shape == (2, 0)
    assert settled
