import numpy as np
import pytest
import torch

from bua.modeling.anchors import cell_anchors, grid_anchors
from bua.modeling.rpn import RPNHead, label_anchors, select_proposals

LIMITS = {"test": (6000, 300), "small": (6000, 300), "train": (12000, 2000)}


@pytest.mark.parametrize("case", LIMITS)
def test_proposals_agree_with_the_original(shared_data, case):
    golden = np.load(shared_data / "golden" / "caffe_ops.npz")
    probs = torch.from_numpy(golden[f"rpn_{case}_fg_prob"][0])
    num_anchors, rows, columns = probs.shape
    deltas = torch.from_numpy(golden[f"rpn_{case}_deltas"][0]).view(num_anchors, 4, rows, columns)
    height, width, scale = golden[f"rpn_{case}_im_info"].tolist()
    pre_nms_topk, post_nms_topk = LIMITS[case]
    boxes, objectness = select_proposals(
        grid_anchors(cell_anchors([64, 128, 256, 512], [0.5, 1.0, 2.0], "caffe"), rows, columns, 16),
        probs.permute(1, 2, 0).flatten(),
        deltas.permute(2, 3, 0, 1).reshape(-1, 4),
        height,
        width,
        pre_nms_topk=pre_nms_topk,
        post_nms_topk=post_nms_topk,
        nms_threshold=0.7,
        min_size=16 * scale,
        convention="caffe",
    )
    assert len(boxes) == len(golden[f"rpn_{case}_rois"])
    np.testing.assert_allclose(boxes, golden[f"rpn_{case}_rois"], atol=1.5e-4)
    np.testing.assert_array_equal(objectness, golden[f"rpn_{case}_scores"])


def proposals(convention, min_size, pre_nms_topk):
    anchors = torch.tensor([[0.0, 0, 5, 5], [20, 20, 60, 60], [70, 70, 90, 99]])
    return select_proposals(
        anchors,
        torch.tensor([3.0, 2.0, 1.0]),
        torch.zeros(3, 4),
        100,
        100,
        pre_nms_topk=pre_nms_topk,
        post_nms_topk=10,
        nms_threshold=0.7,
        min_size=min_size,
        convention=convention,
    )[1].tolist()


def test_caffe_drops_small_boxes_before_the_best_are_taken_and_detectron2_after():
    assert proposals("caffe", 16, pre_nms_topk=2) == [2.0, 1.0]
    assert proposals("detectron2", 16, pre_nms_topk=2) == [2.0]


def test_the_smallest_side_itself_stays_in_caffe_and_goes_in_detectron2():
    # Zero deltas: caffe gives 0 to 6 (7 pixels with both ends), Detectron2 0 to 5.
    assert proposals("caffe", 7, 3) == [3.0, 2.0, 1.0]
    assert proposals("caffe", 8, 3) == [2.0, 1.0]
    assert proposals("detectron2", 5, 3) == [2.0, 1.0]


def test_anchor_labels():
    anchors = torch.tensor([[0.0, 0, 9, 9], [0, 0, 19, 19], [50, 50, 59, 59], [95, 95, 104, 104]])
    ground_truth = torch.tensor([[0.0, 0, 9, 9], [90, 90, 99, 99]])
    options = {"positive_threshold": 0.7, "negative_threshold": 0.3, "boundary_threshold": 0}
    index, label = label_anchors(anchors, ground_truth, 100, 100, convention="caffe", **options)
    # The last anchor leaves the image: it neither learns nor counts as the second object's best.
    assert label.tolist() == [1, 0, 0, -1]
    assert index[0] == 0
    options["boundary_threshold"] = -1
    index, label = label_anchors(anchors, ground_truth, 100, 100, convention="detectron2", **options)
    assert label.tolist() == [1, 0, 0, 1]
    assert index.tolist()[-1] == 1


@pytest.mark.parametrize("convention", ["caffe", "detectron2"])
def test_without_ground_truth_every_anchor_inside_is_negative(convention):
    anchors = torch.tensor([[0.0, 0, 9, 9], [95, 95, 104, 104]])
    _, label = label_anchors(
        anchors,
        torch.zeros(0, 4),
        100,
        100,
        positive_threshold=0.7,
        negative_threshold=0.3,
        boundary_threshold=0,
        convention=convention,
    )
    assert label.tolist() == [0, -1]


def test_head_rows_are_those_of_the_anchors():
    torch.manual_seed(0)
    head = RPNHead(8, 16, 3)
    features = torch.randn(2, 8, 4, 5)
    objectness, deltas = head(features)
    hidden = torch.relu(head.conv(features))
    row = (2 * 5 + 3) * 3 + 1
    torch.testing.assert_close(objectness[1, row], head.objectness_logits(hidden)[1, 1, 2, 3])
    torch.testing.assert_close(deltas[1, row], head.anchor_deltas(hidden)[1, 4:8, 2, 3])
