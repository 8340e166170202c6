import pytest
import torch
import torch.nn.functional as F
from test_detector import slim_detector

from bua.modeling.boxes import encode_boxes, pairwise_iou
from bua.modeling.ground_truth import batch_ground_truth
from bua.modeling.losses import attribute_loss, smooth_l1_loss
from bua.modeling.roi_heads import SampledRegions

NO_CLASS = 7  # the number of classes of the slim detector
BOXES = torch.tensor([[10.0, 10, 60, 70], [40, 30, 120, 110], [0, 0, 30, 30]])
CLASSES = torch.tensor([3, 0, 6])
ATTRIBUTES = torch.tensor([[0, 4], [-1, -1], [2, -1]])


def ground_truth():
    """Returns three boxes in the first image, one in the second and none in the third."""
    counts = (3, 1, 0)
    return batch_ground_truth([(BOXES[:n], CLASSES[:n], ATTRIBUTES[:n]) for n in counts], torch.device("cpu"))


def proposals(padding=0):
    """Returns proposals near the boxes and elsewhere, of which the second image has fewer."""
    generator = torch.Generator().manual_seed(0)
    near = BOXES.repeat(20, 1) + torch.randn(60, 4, generator=generator) * 6
    corner = torch.rand(60, 2, generator=generator) * 100
    boxes = torch.cat([near, torch.cat([corner, corner + 25], dim=1)]).expand(3, -1, -1)
    boxes = torch.cat([boxes, torch.full((3, padding, 4), 5000.0)], dim=1)
    valid = torch.arange(120 + padding) < torch.tensor([[120], [9], [120]])
    return boxes, valid


def sampled(heads, padding=0):
    torch.manual_seed(0)
    drawn = heads.sample(*proposals(padding), ground_truth())
    return drawn.split(drawn.counts.tolist())


@pytest.mark.parametrize("convention", ["caffe", "detectron2"])
def test_sampled_regions_have_the_labels_of_their_ground_truth(convention):
    heads = slim_detector("MODEL.BUA.BOX_CONVENTION", convention).roi_heads
    regions = sampled(heads)
    assert [len(region.boxes) for region in regions] == [64, 10, 64]  # of the second, all nine and its own box
    assert len(regions[2].targets) == 0
    for region, number in zip(regions, (3, 1, 0)):
        iou = pairwise_iou(region.boxes, BOXES[:number], convention)
        foreground = len(region.targets)
        assert foreground <= 32
        assert (region.classes[foreground:] == NO_CLASS).all()
        if number:
            overlap, match = iou.max(dim=1)
            assert (overlap[:foreground] >= 0.5).all()
            assert (overlap[foreground:] < 0.5).all()
            assert torch.equal(region.classes[:foreground], CLASSES[match[:foreground]])
            assert torch.equal(region.targets, BOXES[match[:foreground]])
            assert torch.equal(region.attributes, ATTRIBUTES[match[:foreground]])
    assert len(regions[0].targets) == 32


def test_what_is_drawn_does_not_depend_on_padding():
    heads = slim_detector().roi_heads
    for region, padded in zip(sampled(heads), sampled(heads, padding=50)):
        assert torch.equal(region.boxes, padded.boxes)
        assert torch.equal(region.classes, padded.classes)


def losses_region_by_region(heads, feature_map, regions):
    """Returns the losses of the heads, computed from one region after another."""
    number = sum(len(region.boxes) for region in regions)
    loss_cls, loss_box, per_region = 0.0, 0.0, []
    for image, region in enumerate(regions):
        for i in range(len(region.boxes)):
            boxes = [region.boxes[i : i + 1] if j == image else region.boxes[:0] for j in range(len(regions))]
            features = heads.features(feature_map, boxes, 16)
            logits, deltas = heads.box_predictor(features)
            loss_cls += F.cross_entropy(logits, region.classes[i : i + 1], reduction="sum")
            if i < len(region.targets):
                place = int(region.classes[i]) * 4
                target = encode_boxes(
                    region.boxes[i : i + 1], region.targets[i : i + 1], (10.0, 10.0, 5.0, 5.0), heads.convention
                )
                loss_box += smooth_l1_loss(deltas[:, place : place + 4], target, 1.0)
                attribute_logits = heads.attribute_predictor(features, region.classes[i : i + 1])
                per_region.append(attribute_loss(attribute_logits, region.attributes[i : i + 1], 5))
    return {
        "loss_cls": loss_cls / number,
        "loss_box_reg": loss_box / number,
        "loss_attr": 0.5 * torch.stack(per_region).mean(),
    }


def test_losses_agree_with_those_of_one_region_after_another():
    heads = slim_detector("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8").roi_heads
    for parameter in (heads.box_predictor.bbox_pred.weight, heads.box_predictor.cls_score.weight):
        torch.nn.init.normal_(parameter, std=0.1)
    feature_map = torch.randn(3, 64, 8, 9)
    regions = sampled(heads)
    losses = heads.losses(feature_map, regions, 16)
    for name, expected in losses_region_by_region(heads, feature_map, regions).items():
        torch.testing.assert_close(losses[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_losses_without_any_region_are_zero_and_reach_the_weights():
    heads = slim_detector().roi_heads
    none = SampledRegions(BOXES[:0], CLASSES[:0], BOXES[:0], ATTRIBUTES[:0])
    losses = heads.losses(torch.randn(1, 64, 8, 9), [none], 16)
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert heads.box_predictor.cls_score.weight.grad is not None
