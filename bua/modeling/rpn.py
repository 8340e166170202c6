"""The region proposal network."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bua.modeling.anchors import AnchorGenerator
from bua.modeling.boxes import box_sizes, clip_boxes, decode_boxes, encode_boxes, nms, pairwise_iou
from bua.modeling.losses import smooth_l1_loss
from bua.modeling.matching import match, sample


def select_proposals(
    anchors: Tensor,
    objectness: Tensor,
    deltas: Tensor,
    height: float,
    width: float,
    *,
    pre_nms_topk: int,
    post_nms_topk: int,
    nms_threshold: float,
    min_size: float,
    convention: str,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Turns the network's outputs for the anchors of one image into proposals, best first.

    "caffe" first drops the boxes with a side below ``min_size`` and then takes the best ``pre_nms_topk``
    (lib/rpn/proposal_layer.py). "detectron2" first takes the best and then drops the boxes with a side that is not
    above ``min_size``.

    Args:
        anchors: [N, 4] in network pixels.
        objectness: [N] logits or probabilities.
        deltas: [N, 4].
        height, width: Size of the image in network pixels.
        pre_nms_topk, post_nms_topk: Number of boxes kept before and after suppression.
        nms_threshold: IoU of suppression, as for ``bua.modeling.boxes.nms``.
        min_size: Smallest side of a proposal in network pixels.
        convention: "caffe" or "detectron2".
        weights: Weights of the deltas, as for ``decode_boxes``.

    Returns:
        Boxes [R, 4] in network pixels and their objectness [R].
    """
    if convention == "caffe":
        boxes = clip_boxes(decode_boxes(anchors, deltas, weights, convention), height, width, convention)
        box_width, box_height = box_sizes(boxes, convention)
        large = torch.nonzero((box_width >= min_size) & (box_height >= min_size)).squeeze(1)
        objectness, best = _best(objectness[large], pre_nms_topk)
        boxes = boxes[large[best]]
    else:
        objectness, best = _best(objectness, pre_nms_topk)
        boxes = decode_boxes(anchors[best], deltas[best], weights, convention)
        boxes = clip_boxes(boxes, height, width, convention)
        box_width, box_height = box_sizes(boxes, convention)
        large = (box_width > min_size) & (box_height > min_size)
        boxes, objectness = boxes[large], objectness[large]
    kept = nms(boxes, objectness, nms_threshold, convention)[:post_nms_topk]
    return boxes[kept], objectness[kept]


def label_anchors(
    anchors: Tensor,
    ground_truth: Tensor,
    height: float,
    width: float,
    *,
    positive_threshold: float,
    negative_threshold: float,
    boundary_threshold: float,
    convention: str,
) -> tuple[Tensor, Tensor]:
    """Assigns ground truth to the anchors of one image.

    Anchors that extend beyond the image by more than ``boundary_threshold`` pixels are ignored, unless the threshold is
    negative. "caffe" leaves them out before it looks for the best anchor of each object
    (lib/rpn/anchor_target_layer.py), "detectron2" afterwards.

    Args:
        anchors: [N, 4] in network pixels.
        ground_truth: [G, 4] in network pixels.
        height, width: Size of the image in network pixels.
        positive_threshold, negative_threshold: As for ``bua.modeling.matching.match``.
        boundary_threshold: In network pixels.
        convention: "caffe" or "detectron2".

    Returns:
        Index [N] int64 into the ground truth, and label [N] int64: 1 positive, 0 negative, -1 neither.
    """
    inside = _inside(anchors, height, width, boundary_threshold)
    if convention == "caffe":
        rows = torch.nonzero(inside).squeeze(1)
        index, label = match(
            pairwise_iou(anchors[rows], ground_truth, convention), positive_threshold, negative_threshold, True
        )
        all_index = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        all_label = torch.full_like(all_index, -1)
        all_index[rows], all_label[rows] = index, label
        return all_index, all_label
    index, label = match(pairwise_iou(anchors, ground_truth, convention), positive_threshold, negative_threshold, True)
    label[~inside] = -1
    return index, label


class RPNHead(nn.Module):
    """A 3x3 convolution, and for each anchor of each cell one objectness logit and four deltas.

    The original has two logits per anchor and a softmax. One logit, their difference, is the same function.
    """

    def __init__(self, in_channels: int, hidden_channels: int, num_anchors: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(hidden_channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(hidden_channels, num_anchors * 4, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns objectness logits [N, H*W*A] and deltas [N, H*W*A, 4], with rows as in ``grid_anchors``, for features
        [N, C, H, W]."""
        # optimize_for_inference leaves these two in float32: bfloat16 would tie the logits of hundreds of anchors.
        hidden = F.relu_(self.conv(features)).to(self.objectness_logits.weight.dtype)
        objectness = self.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1)
        deltas = self.anchor_deltas(hidden).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
        return objectness.float(), deltas.float()


class RPN(nn.Module):
    """Makes proposals from a feature map and computes the losses of the RPN (paper section 3.1; cfg.MODEL.RPN)."""

    def __init__(self, cfg, in_channels: int, anchor_generator: AnchorGenerator):
        """
        Args:
            anchor_generator: Generates the anchors of one feature map.
        """
        super().__init__()
        rpn = cfg.MODEL.RPN
        self.rpn = rpn
        self.convention = cfg.MODEL.BUA.BOX_CONVENTION
        self.min_size = cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE
        self.anchor_generator = anchor_generator
        hidden_channels = in_channels if rpn.CONV_DIMS[0] == -1 else rpn.CONV_DIMS[0]
        (num_anchors,) = anchor_generator.num_anchors
        self.rpn_head = RPNHead(in_channels, hidden_channels, num_anchors)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns anchors [H*W*A, 4], objectness logits [N, H*W*A] and deltas [N, H*W*A, 4] for features
        [N, C, H, W]."""
        (anchors,) = self.anchor_generator([features])
        objectness, deltas = self.rpn_head(features)
        return anchors, objectness, deltas

    @torch.no_grad()
    def propose(self, anchors, objectness, deltas, sizes, scales) -> list[tuple[Tensor, Tensor]]:
        """Returns the proposals of each image and their objectness logits, as ``select_proposals``.

        Args:
            sizes: (height, width) of each image in network pixels, without padding.
            scales: Network pixels per original pixel of each image. "caffe" measures the minimum size in original
                pixels.
        """
        mode = "TRAIN" if self.training else "TEST"
        return [
            select_proposals(
                anchors,
                objectness[i],
                deltas[i],
                height,
                width,
                pre_nms_topk=self.rpn[f"PRE_NMS_TOPK_{mode}"],
                post_nms_topk=self.rpn[f"POST_NMS_TOPK_{mode}"],
                nms_threshold=self.rpn.NMS_THRESH,
                min_size=self.min_size * (scales[i] if self.convention == "caffe" else 1),
                convention=self.convention,
                weights=self.rpn.BBOX_REG_WEIGHTS,
            )
            for i, (height, width) in enumerate(sizes)
        ]

    def losses(self, anchors, objectness, deltas, sizes, ground_truth: list[Tensor]) -> dict[str, Tensor]:
        """Returns ``loss_rpn_cls`` and ``loss_rpn_loc``: sums over the sampled anchors, divided by their intended
        number."""
        logits, labels, regressions = [], [], []
        for i, (height, width) in enumerate(sizes):
            index, label = self._label(anchors, ground_truth[i], height, width)
            positive, negative = sample(label, self.rpn.BATCH_SIZE_PER_IMAGE, self.rpn.POSITIVE_FRACTION)
            sampled = torch.cat([positive, negative])
            logits.append(objectness[i, sampled])
            labels.append(label[sampled].float())
            target = encode_boxes(
                anchors[positive], ground_truth[i][index[positive]], self.rpn.BBOX_REG_WEIGHTS, self.convention
            )
            regressions.append(smooth_l1_loss(deltas[i, positive], target, self.rpn.SMOOTH_L1_BETA))
        # The original divides by the number of sampled anchors, which is smaller than the intended number only where an
        # image has too few anchors.
        normalizer = self.rpn.BATCH_SIZE_PER_IMAGE * len(sizes)
        loss_cls = F.binary_cross_entropy_with_logits(torch.cat(logits), torch.cat(labels), reduction="sum")
        weight_loc = self.rpn.LOSS_WEIGHT * self.rpn.BBOX_REG_LOSS_WEIGHT
        return {
            "loss_rpn_cls": self.rpn.LOSS_WEIGHT * loss_cls / normalizer,
            "loss_rpn_loc": weight_loc * sum(regressions) / normalizer,
        }

    @torch.no_grad()
    def _label(self, anchors, ground_truth, height, width):
        negative_threshold, positive_threshold = self.rpn.IOU_THRESHOLDS
        return label_anchors(
            anchors,
            ground_truth,
            height,
            width,
            positive_threshold=positive_threshold,
            negative_threshold=negative_threshold,
            boundary_threshold=self.rpn.BOUNDARY_THRESH,
            convention=self.convention,
        )


def _best(objectness: Tensor, number: int) -> tuple[Tensor, Tensor]:
    objectness, order = objectness.sort(descending=True, stable=True)
    return objectness[:number], order[:number]


def _inside(anchors: Tensor, height: float, width: float, threshold: float) -> Tensor:
    if threshold < 0:
        return torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
    x1, y1, x2, y2 = anchors.unbind(1)
    return (x1 >= -threshold) & (y1 >= -threshold) & (x2 < width + threshold) & (y2 < height + threshold)
