"""The region proposal network."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bua.modeling.anchors import AnchorGenerator
from bua.modeling.boxes import box_sizes, clip_boxes, decode_boxes, encode_boxes, nms, pairwise_iou
from bua.modeling.ground_truth import GroundTruth
from bua.modeling.losses import smooth_l1_loss
from bua.modeling.matching import match, sample, take_rows
from bua.modeling.suppression import ROUNDS, suppress
from bua.upload import upload

# Number of candidates of an image that are suppressed first. More of them only are if too few of these remain.
FIRST_CANDIDATES = 2000


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
    candidates = rank_candidates(
        anchors, objectness, deltas, height, width, pre_nms_topk, min_size, convention, weights
    )
    (proposals,) = suppress_candidates([candidates], post_nms_topk, nms_threshold, convention)
    return proposals


def rank_candidates(
    anchors: Tensor,
    objectness: Tensor,
    deltas: Tensor,
    height: float,
    width: float,
    pre_nms_topk: int,
    min_size: float,
    convention: str,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Returns the boxes of one image that take part in suppression, without waiting for a GPU: arguments as for
    ``select_proposals``.

    Returns:
        Boxes [K, 4] in network pixels and their objectness [K], best first. Boxes that are too small come last, with an
        objectness of minus infinity.
    """
    if convention == "caffe":
        boxes = clip_boxes(decode_boxes(anchors, deltas, weights, convention), height, width, convention)
        box_width, box_height = box_sizes(boxes, convention)
        objectness = objectness.masked_fill(~((box_width >= min_size) & (box_height >= min_size)), -torch.inf)
        objectness, best = _best(objectness, pre_nms_topk)
        return boxes[best], objectness
    objectness, best = _best(objectness, pre_nms_topk)
    boxes = clip_boxes(decode_boxes(anchors[best], deltas[best], weights, convention), height, width, convention)
    box_width, box_height = box_sizes(boxes, convention)
    objectness = objectness.masked_fill(~((box_width > min_size) & (box_height > min_size)), -torch.inf)
    objectness, best = _best(objectness, pre_nms_topk)
    return boxes[best], objectness


def suppress_candidates(
    candidates: list[tuple[Tensor, Tensor]], post_nms_topk: int, nms_threshold: float, convention: str
) -> list[tuple[Tensor, Tensor]]:
    """Returns what ``select_proposals`` returns for each image, from what ``rank_candidates`` returns for it.

    It waits for a GPU once or twice for each image, and once for all of them.
    """
    kept = [_suppress(*image, post_nms_topk, nms_threshold, convention) for image in candidates]
    if not kept:
        return []
    # The boxes that are too small, which suppress nothing that is better.
    counts = torch.stack([(objectness > -torch.inf).sum() for _, objectness in kept]).tolist()
    return [(boxes[:count], objectness[:count]) for (boxes, objectness), count in zip(kept, counts)]


def label_anchors(
    anchors: Tensor,
    ground_truth: Tensor,
    valid: Tensor,
    sizes: Tensor,
    *,
    positive_threshold: float,
    negative_threshold: float,
    boundary_threshold: float,
    convention: str,
) -> tuple[Tensor, Tensor]:
    """Assigns ground truth to the anchors of each of B images.

    Anchors that extend beyond the image by more than ``boundary_threshold`` pixels are ignored, unless the threshold is
    negative. "caffe" leaves them out before it looks for the best anchor of each object
    (lib/rpn/anchor_target_layer.py), "detectron2" afterwards.

    Args:
        anchors: [N, 4] in network pixels.
        ground_truth: [B, G, 4] in network pixels.
        valid: [B, G] bool: False for padding of the ground truth.
        sizes: [B, 2] (height, width) of the images in network pixels.
        positive_threshold, negative_threshold: As for ``bua.modeling.matching.match``.
        boundary_threshold: In network pixels.
        convention: "caffe" or "detectron2".

    Returns:
        Index [B, N] int64 into the ground truth, and label [B, N] int64: 1 positive, 0 negative, -1 neither.
    """
    inside = _inside(anchors, sizes, boundary_threshold)
    iou = pairwise_iou(anchors, ground_truth, convention).masked_fill_(~valid[:, None, :], -1.0)
    if convention == "caffe":
        iou.masked_fill_(~inside[:, :, None], -1.0)
    index, label = match(iou, positive_threshold, negative_threshold, True)
    return index, label.masked_fill_(~inside, -1)


class TrainingProposals(NamedTuple):
    """The proposals of B images, best first, followed by padding to the same number R for each image.

    Attributes:
        boxes: [B, R, 4] in network pixels.
        objectness: [B, R] logits.
        valid: [B, R] bool: False for padding.
        settled: [] bool, as ``bua.modeling.suppression.suppress`` returns it.
    """

    boxes: Tensor
    objectness: Tensor
    valid: Tensor
    settled: Tensor


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
        (proposals,) = self.propose_groups([(anchors, objectness, deltas)], [sizes], [scales])
        return proposals

    @torch.no_grad()
    def propose_groups(self, outputs, sizes, scales) -> list[list[tuple[Tensor, Tensor]]]:
        """Returns what ``propose`` returns for the images of several feature maps.

        Args:
            outputs: For each feature map, what ``forward`` returns.
            sizes, scales: For each feature map, what ``propose`` takes.
        """
        mode = "TRAIN" if self.training else "TEST"
        candidates = [
            rank_candidates(
                anchors,
                objectness[i],
                deltas[i],
                height,
                width,
                self.rpn[f"PRE_NMS_TOPK_{mode}"],
                self.min_size * (scale if self.convention == "caffe" else 1),
                self.convention,
                self.rpn.BBOX_REG_WEIGHTS,
            )
            for (anchors, objectness, deltas), map_sizes, map_scales in zip(outputs, sizes, scales)
            for i, ((height, width), scale) in enumerate(zip(map_sizes, map_scales))
        ]
        proposals = iter(
            suppress_candidates(candidates, self.rpn[f"POST_NMS_TOPK_{mode}"], self.rpn.NMS_THRESH, self.convention)
        )
        return [list(islice(proposals, len(map_sizes))) for map_sizes in sizes]

    @torch.no_grad()
    def propose_for_training(
        self, anchors: Tensor, objectness: Tensor, deltas: Tensor, sizes, scales, *, rounds: int = ROUNDS
    ) -> TrainingProposals:
        """Returns the proposals of all images, as ``select_proposals``, without waiting for a GPU.

        Args:
            anchors, objectness, deltas: What ``forward`` returns.
            sizes, scales: As for ``propose``.
            rounds: As for ``bua.modeling.suppression.suppress``.
        """
        caffe = self.convention == "caffe"
        image = upload(
            [
                (width - caffe, height - caffe, self.min_size * (scale if caffe else 1))
                for (height, width), scale in zip(sizes, scales)
            ],
            objectness.device,
        )
        anchors = anchors.expand(len(objectness), -1, -1)
        if caffe:
            boxes, valid = self._decode(anchors, deltas, image)
            logits = objectness.masked_fill(~valid, -torch.inf)
            order = _order(logits, self.rpn.PRE_NMS_TOPK_TRAIN)
            boxes, valid = take_rows(boxes, order), valid.gather(1, order)
        else:
            order = _order(objectness, self.rpn.PRE_NMS_TOPK_TRAIN)
            boxes, valid = self._decode(take_rows(anchors, order), take_rows(deltas, order), image)
        remains, settled = suppress(boxes, valid, self.rpn.NMS_THRESH, self.convention, rounds=rounds)
        first = _order(remains.to(torch.uint8), self.rpn.POST_NMS_TOPK_TRAIN)
        objectness = objectness.gather(1, order.gather(1, first))
        return TrainingProposals(take_rows(boxes, first), objectness, remains.gather(1, first), settled)

    def losses(self, anchors, objectness, deltas, sizes, ground_truth: GroundTruth) -> dict[str, Tensor]:
        """Returns ``loss_rpn_cls`` and ``loss_rpn_loc``: sums over the sampled anchors, divided by their intended
        number.

        Args:
            anchors, objectness, deltas: What ``forward`` returns.
            sizes: (height, width) of each image in network pixels, without padding.
        """
        index, label = self._label(anchors, ground_truth, upload(sizes, anchors.device))
        drawn = sample(label, self.rpn.BATCH_SIZE_PER_IMAGE, self.rpn.POSITIVE_FRACTION)
        loss_cls = F.binary_cross_entropy_with_logits(
            objectness.gather(1, drawn.index), drawn.positive.float(), drawn.used.float(), reduction="sum"
        )
        most_positive = int(self.rpn.BATCH_SIZE_PER_IMAGE * self.rpn.POSITIVE_FRACTION)
        rows, positive = drawn.index[:, :most_positive], drawn.positive[:, :most_positive, None]
        sources = anchors[rows]
        # Without a target, an anchor is its own, so that its deltas are finite.
        targets = torch.where(positive, take_rows(ground_truth.boxes, index.gather(1, rows)), sources)
        targets = encode_boxes(
            sources.flatten(0, 1), targets.flatten(0, 1), self.rpn.BBOX_REG_WEIGHTS, self.convention
        ).view_as(sources)
        loss_loc = smooth_l1_loss(take_rows(deltas, rows), targets, self.rpn.SMOOTH_L1_BETA, positive.float())
        # The original divides by the number of sampled anchors, which is smaller than the intended number only where an
        # image has too few anchors.
        normalizer = self.rpn.BATCH_SIZE_PER_IMAGE * len(sizes)
        weight_loc = self.rpn.LOSS_WEIGHT * self.rpn.BBOX_REG_LOSS_WEIGHT
        return {
            "loss_rpn_cls": self.rpn.LOSS_WEIGHT * loss_cls / normalizer,
            "loss_rpn_loc": weight_loc * loss_loc / normalizer,
        }

    @torch.no_grad()
    def _label(self, anchors: Tensor, ground_truth: GroundTruth, sizes: Tensor) -> tuple[Tensor, Tensor]:
        negative_threshold, positive_threshold = self.rpn.IOU_THRESHOLDS
        return label_anchors(
            anchors,
            ground_truth.boxes,
            ground_truth.valid,
            sizes,
            positive_threshold=positive_threshold,
            negative_threshold=negative_threshold,
            boundary_threshold=self.rpn.BOUNDARY_THRESH,
            convention=self.convention,
        )

    def _decode(self, anchors: Tensor, deltas: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns boxes [B, N, 4] clipped to their image, and whether they are large enough [B, N].

        Args:
            anchors, deltas: [B, N, 4].
            image: [B, 3] largest x, largest y and smallest side of a box.
        """
        limits, min_size = image[:, None, :2].repeat(1, 1, 2), image[:, 2:]
        boxes = decode_boxes(anchors.flatten(0, 1), deltas.flatten(0, 1), self.rpn.BBOX_REG_WEIGHTS, self.convention)
        boxes = torch.minimum(boxes.view_as(deltas).clamp(min=0), limits)
        box_width, box_height = box_sizes(boxes, self.convention)
        if self.convention == "caffe":
            return boxes, (box_width >= min_size) & (box_height >= min_size)
        return boxes, (box_width > min_size) & (box_height > min_size)


def _suppress(
    boxes: Tensor, objectness: Tensor, post_nms_topk: int, nms_threshold: float, convention: str
) -> tuple[Tensor, Tensor]:
    """Returns the first ``post_nms_topk`` of the boxes [K, 4], best first, that no better one suppresses, and their
    objectness.

    Which of the best boxes remain does not depend on the others, so often it is enough to look at the best.
    """
    first = max(FIRST_CANDIDATES, 2 * post_nms_topk)
    kept = nms(boxes[:first], objectness[:first], nms_threshold, convention)
    if len(kept) < post_nms_topk and first < len(boxes):
        kept = nms(boxes, objectness, nms_threshold, convention)
    kept = kept[:post_nms_topk]
    return boxes[kept], objectness[kept]


def _best(objectness: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Returns the ``number`` largest values, the largest first and equal ones in their order, and their indices."""
    objectness, order = objectness.sort(descending=True, stable=True)
    return objectness[:number], order[:number]


def _order(values: Tensor, number: int) -> Tensor:
    """Returns the indices [B, number] of the largest values [B, N] of each image, the largest first."""
    return values.sort(dim=1, descending=True, stable=True).indices[:, :number]


def _inside(anchors: Tensor, sizes: Tensor, threshold: float) -> Tensor:
    """Returns [B, N] bool: whether the anchors lie in images of sizes [B, 2]."""
    if threshold < 0:
        return torch.ones(len(sizes), len(anchors), dtype=torch.bool, device=anchors.device)
    x1, y1, x2, y2 = anchors.unbind(1)
    height, width = sizes[:, :, None].unbind(1)
    return (x1 >= -threshold) & (y1 >= -threshold) & (x2 < width + threshold) & (y2 < height + threshold)
