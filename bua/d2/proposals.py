"""The region proposal network of bua's C4 detectors, for Detectron2."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY, build_anchor_generator
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from bua.d2.config import check_parts
from bua.d2.ground_truth import ground_truth_of
from bua.modeling.rpn import RPN
from bua.modeling.suppression import ROUNDS


@PROPOSAL_GENERATOR_REGISTRY.register()
class BUAProposalGenerator(RPN):
    """``bua.modeling.rpn.RPN`` with Detectron2's interface.

    Unlike Detectron2's ``RPN`` it can also code, filter and suppress boxes as the original does
    (MODEL.BUA.BOX_CONVENTION "caffe"). It takes one feature map.
    """

    def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
        check_parts(cfg)
        (in_feature,) = cfg.MODEL.RPN.IN_FEATURES
        shape = input_shape[in_feature]
        super().__init__(cfg, shape.channels, build_anchor_generator(cfg, [shape]))
        self.in_feature = in_feature

    # Detectron2 gives images and targets too, and wants Instances and losses.
    def forward(  # type: ignore[override]
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposes regions.

        Args:
            images: The images. In the "caffe" convention they need ``scales``, which ``AttributeRCNN`` sets.
            features: Feature maps by their names.
            gt_instances: Ground truth of each image, for training.

        Returns:
            The proposals of each image (``proposal_boxes`` in network pixels, ``objectness_logits``), and the losses,
            which are empty except in training.
        """
        anchors: Boxes  # BUAAnchorGenerator returns Boxes, as Detectron2's own generators do
        anchors, objectness, deltas = super().forward(features[self.in_feature])
        predictions = (anchors.tensor, objectness, deltas)
        scales = images.scales if self.convention == "caffe" else [1.0] * len(images)
        losses = {}
        if self.training:
            assert gt_instances is not None
            losses = self.losses(*predictions, images.image_sizes, ground_truth_of(gt_instances))
            proposals = self._propose_for_training(predictions, images.image_sizes, scales)
        else:
            proposals = self.propose(*predictions, images.image_sizes, scales)
        return [
            Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=logits)
            for size, (boxes, logits) in zip(images.image_sizes, proposals)
        ], losses

    def _propose_for_training(
        self, predictions: tuple[Tensor, Tensor, Tensor], sizes, scales
    ) -> list[tuple[Tensor, Tensor]]:
        """Returns the same as ``propose``, but waits for a GPU only once."""
        rounds = ROUNDS
        while True:
            proposals = self.propose_for_training(*predictions, sizes, scales, rounds=rounds)
            *counts, settled = torch.cat([proposals.valid.sum(dim=1), proposals.settled[None].long()]).tolist()
            if settled:
                rows = zip(proposals.boxes, proposals.objectness, counts)
                return [(boxes[:count], objectness[:count]) for boxes, objectness, count in rows]
            rounds *= 8
