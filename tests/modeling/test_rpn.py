import numpy as np
import pytest
import torch

from bua.config import load_cfg
from bua.modeling import rpn
from bua.modeling.anchors import AnchorGenerator, cell_anchors, grid_anchors
from bua.modeling.boxes import encode_boxes, pairwise_iou
from bua.modeling.ground_truth import GroundTruth, batch_ground_truth
from bua.modeling.losses import smooth_l1_loss
from bua.modeling.rpn import RPN, RPNHead, label_anchors, select_proposals

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
    boxes = torch.tensor([[[0.0, 0, 9, 9], [90, 90, 99, 99]]])
    truth, sizes = (boxes, torch.ones(1, 2, dtype=torch.bool)), torch.tensor([[100.0, 100]])
    options = {"positive_threshold": 0.7, "negative_threshold": 0.3, "boundary_threshold": 0}
    index, label = label_anchors(anchors, *truth, sizes, convention="caffe", **options)
    # The last anchor leaves the image: it neither learns nor counts as the second object's best.
    assert label.tolist() == [[1, 0, 0, -1]]
    assert index[0, 0] == 0
    options["boundary_threshold"] = -1
    index, label = label_anchors(anchors, *truth, sizes, convention="detectron2", **options)
    assert label.tolist() == [[1, 0, 0, 1]]
    assert index[0, -1] == 1


@pytest.mark.parametrize("convention", ["caffe", "detectron2"])
def test_without_ground_truth_every_anchor_inside_is_negative(convention):
    anchors = torch.tensor([[0.0, 0, 9, 9], [95, 95, 104, 104]])
    truth = batch_ground_truth([(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0, 2).long())], anchors.device)
    _, label = label_anchors(
        anchors,
        truth.boxes,
        truth.valid,
        torch.tensor([[100.0, 100]]),
        positive_threshold=0.7,
        negative_threshold=0.3,
        boundary_threshold=0,
        convention=convention,
    )
    assert label.tolist() == [[0, -1]]


def training_rpn(convention, **rpn):
    """Returns an RPN in training, its outputs for two images, and their sizes, scales and ground truth."""
    cfg = load_cfg("configs/vg_r101.yaml", ["MODEL.BUA.BOX_CONVENTION", convention, "MODEL.RPN.CONV_DIMS", "[8]"])
    for name, value in rpn.items():
        cfg.MODEL.RPN[name] = value
    torch.manual_seed(0)
    network = RPN(cfg, 4, AnchorGenerator(cfg, [16])).train()
    anchors, objectness, deltas = network(torch.randn(2, 4, 15, 20))
    objectness, deltas = torch.randn_like(objectness), torch.randn_like(deltas) / 2
    outputs = (anchors, objectness.requires_grad_(), deltas.requires_grad_())
    return network, outputs, [(240, 320), (210, 300)], [1.0, 1.5], two_images()


def two_images():
    boxes = torch.tensor([[20.0, 20, 90, 120], [150, 60, 260, 200], [30, 100, 60, 130]])
    attributes = torch.tensor([[1, -1], [0, 2], [-1, -1]])
    images = [(boxes, torch.arange(3), attributes), (boxes[1:2], torch.arange(1), attributes[:1])]
    return batch_ground_truth(images, boxes.device)


@pytest.mark.parametrize("convention", ["caffe", "detectron2"])
@pytest.mark.parametrize("limits", [(10000, 2000), (150, 12)])
def test_training_proposals_are_those_of_each_image(convention, limits):
    network, outputs, sizes, scales, _ = training_rpn(
        convention, PRE_NMS_TOPK_TRAIN=limits[0], POST_NMS_TOPK_TRAIN=limits[1]
    )
    proposals = network.propose_for_training(*outputs, sizes, scales)
    assert proposals.settled
    for image, (boxes, objectness) in enumerate(network.propose(*outputs, sizes, scales)):
        number = int(proposals.valid[image].sum())
        assert number == len(boxes) > 5
        assert proposals.valid[image, :number].all()
        torch.testing.assert_close(proposals.boxes[image, :number], boxes, rtol=0, atol=0)
        assert torch.equal(proposals.objectness[image, :number], objectness)


def losses_of_all_anchors(network, outputs, sizes, truth: GroundTruth):
    """Returns the sums of the losses over all anchors with a label, computed image by image and box by box."""
    anchors, objectness, deltas = outputs
    negative, positive = network.rpn.IOU_THRESHOLDS
    loss_cls, loss_loc = 0.0, 0.0
    for image, (height, width) in enumerate(sizes):
        boxes = truth.boxes[image][truth.classes[image] >= 0]
        inside = (anchors >= 0).all(1) & (anchors[:, 2] < width) & (anchors[:, 3] < height)
        iou = pairwise_iou(anchors, boxes, network.convention)
        rivals = iou[inside] if network.convention == "caffe" else iou
        best = rivals.max(dim=0).values
        for row in torch.nonzero(inside).flatten().tolist():
            is_best = any(iou[row, g] == best[g] > 0 for g in range(len(boxes)))
            overlap, match = iou[row].max(dim=0)
            if overlap >= positive or is_best:
                loss_cls += torch.nn.functional.softplus(-objectness[image, row])
                target = encode_boxes(anchors[row][None], boxes[match][None], convention=network.convention)
                loss_loc += smooth_l1_loss(deltas[image, row][None], target, network.rpn.SMOOTH_L1_BETA)
            elif overlap < negative:
                loss_cls += torch.nn.functional.softplus(objectness[image, row])
    return loss_cls, loss_loc


@pytest.mark.parametrize("convention", ["caffe", "detectron2"])
def test_losses_are_the_sums_over_the_sampled_anchors(convention):
    network, outputs, sizes, _, truth = training_rpn(convention, BATCH_SIZE_PER_IMAGE=100000)
    losses = network.losses(*outputs, sizes, truth)
    expected_cls, expected_loc = losses_of_all_anchors(network, outputs, sizes, truth)
    torch.testing.assert_close(losses["loss_rpn_cls"], expected_cls / 200000)
    torch.testing.assert_close(losses["loss_rpn_loc"], expected_loc / 200000)
    gradients = torch.autograd.grad(sum(losses.values()), outputs[1:])
    expected = torch.autograd.grad((expected_cls + expected_loc) / 200000, outputs[1:])
    for gradient, wanted in zip(gradients, expected):
        torch.testing.assert_close(gradient, wanted)


def test_losses_are_finite_where_images_have_fewer_anchors_than_are_drawn():
    network, outputs, sizes, _, truth = training_rpn("detectron2", BATCH_SIZE_PER_IMAGE=100000, BOUNDARY_THRESH=-1)
    empty = GroundTruth(torch.full_like(truth.boxes, -1), torch.full_like(truth.classes, -1), truth.attributes)
    losses = network.losses(*outputs, sizes, empty)
    assert losses["loss_rpn_loc"] == 0
    assert losses["loss_rpn_cls"] > 0
    for gradient in torch.autograd.grad(sum(losses.values()), outputs[1:]):
        assert gradient.isfinite().all()


def test_head_rows_are_those_of_the_anchors():
    torch.manual_seed(0)
    head = RPNHead(8, 16, 3)
    features = torch.randn(2, 8, 4, 5)
    objectness, deltas = head(features)
    hidden = torch.relu(head.conv(features))
    row = (2 * 5 + 3) * 3 + 1
    torch.testing.assert_close(objectness[1, row], head.objectness_logits(hidden)[1, 1, 2, 3])
    torch.testing.assert_close(deltas[1, row], head.anchor_deltas(hidden)[1, 4:8, 2, 3])


@pytest.mark.parametrize("convention", ["caffe", "detectron2"])
def test_suppressing_the_best_candidates_first_changes_nothing(convention, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    anchors = grid_anchors(cell_anchors([32, 64], [1.0], convention), 12, 15, 16)
    objectness = (torch.randn(len(anchors), generator=generator) * 4).round()  # many ties
    deltas = torch.randn(len(anchors), 4, generator=generator) * 0.2

    def propose(first, number, min_size=8):
        monkeypatch.setattr(rpn, "FIRST_CANDIDATES", first)
        limits = {"pre_nms_topk": 200, "post_nms_topk": number, "nms_threshold": 0.5, "min_size": min_size}
        return select_proposals(anchors, objectness, deltas, 190, 240, convention=convention, **limits)

    for number in (1, 20, 200):
        expected = propose(1000, number)
        for first in (1, 30, 100, 199, 200):
            found = propose(first, number)
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    boxes, objectness = propose(10, 50, min_size=10_000)
    assert boxes.shape == (0, 4)
    assert objectness.shape == (0,)
