"""The detector: from images to regions with features, classes, boxes and attributes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bua.io.images import Resize
from bua.modeling.backbone import ResNetC4
from bua.modeling.ground_truth import GroundTruth, batch_ground_truth
from bua.modeling.regions import RegionBoxes, given_regions, proposed_regions, region_predictions
from bua.modeling.roi_heads import AttributeRes5ROIHeads, ROIHeads, SampledRegions
from bua.modeling.rpn import RPN
from bua.modeling.suppression import ROUNDS
from bua.structures import DetectorInput, RegionPredictions


class Detector(nn.Module):
    """Faster R-CNN on ResNet C4 with an attribute head.

    In training it is called with a batch and returns losses. For inference, call ``predict`` with images, or
    ``prepare`` and ``infer`` where images are resized elsewhere, such as in the workers of a data loader.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: ResNetC4,
        proposal_generator: RPN,
        roi_heads: ROIHeads,
        resize: Resize,
        pixel_mean: Tensor,
        pixel_std: Tensor,
        box_weights: Sequence[float],
        convention: str,
    ):
        """
        Args:
            resize: Resizes an image [H, W, 3] uint8 BGR to the network's input; available as ``prepare``.
            pixel_mean, pixel_std: [3, 1, 1] float32, BGR.
            box_weights: Weights of the deltas, as ``decode_boxes`` takes them.
            convention: "caffe" or "detectron2".
        """
        super().__init__()
        self.convention = convention
        self.box_weights = box_weights
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.prepare = resize
        self.register_buffer("pixel_mean", pixel_mean, persistent=False)
        self.register_buffer("pixel_std", pixel_std, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def feature_dim(self) -> int:
        """Dimension of the regions' features."""
        return self.roi_heads.feature_dim

    def forward(self, batch: list[DetectorInput]) -> dict[str, Tensor]:
        """Returns the losses of a batch with ground truth: loss_rpn_cls, loss_rpn_loc, loss_cls, loss_box_reg,
        loss_attr."""
        feature_map = self.backbone(self._stack(batch))
        ground_truth = self._ground_truth(batch)
        outputs: tuple[Tensor, Tensor, Tensor] = self.proposal_generator(feature_map)
        losses = self.proposal_generator.losses(*outputs, _sizes(batch), ground_truth)
        regions = self._sample(outputs, batch, ground_truth)
        return losses | self.roi_heads.losses(feature_map, regions, self.backbone.stride)

    def predict(self, images: list[np.ndarray], boxes: list[Tensor] | None = None) -> list[RegionPredictions]:
        """Returns the regions of each image.

        Args:
            images: [H, W, 3] uint8 BGR, of any sizes.
            boxes: [N, 4] boxes of each image, in its pixels, to describe instead of the proposals.
        """
        return self.infer([self.prepare(image) for image in images], boxes)

    @torch.inference_mode()
    def infer(
        self, batch: list[DetectorInput], boxes: list[Tensor] | None = None, *, regress: bool = True
    ) -> list[RegionPredictions]:
        """Returns what ``predict`` returns, for images that ``prepare`` resized.

        Only images of the same size run through the backbone together, so that padding never changes a result. The
        regions of all images run through the heads together. On a GPU it waits a few times for the whole batch, and
        once or twice for the proposals of each image; the predictions may still be being computed when it returns.

        Args:
            regress: Whether to regress boxes for each class, which many uses ignore. If False, ``boxes`` of the
                predictions is None.
        """
        if not batch:
            return []
        groups, feature_maps = self._feature_maps(batch)
        if boxes is None:
            return self._infer_proposals(batch, groups, feature_maps, regress)
        return self._infer_boxes(batch, groups, feature_maps, boxes, regress)

    @torch.inference_mode()
    def infer_both(
        self, batch: list[DetectorInput], boxes: list[Tensor]
    ) -> tuple[list[RegionPredictions], list[RegionPredictions]]:
        """Returns what ``infer`` returns for the proposals and for ``boxes``. The backbone runs once."""
        if not batch:
            return [], []
        groups, feature_maps = self._feature_maps(batch)
        return (
            self._infer_proposals(batch, groups, feature_maps, True),
            self._infer_boxes(batch, groups, feature_maps, boxes, True),
        )

    def _feature_maps(self, batch: list[DetectorInput]) -> tuple[list[list[int]], list[Tensor]]:
        """Returns the positions of the images of each size, and their feature map."""
        self._begin_inference()
        groups = rows_of_one_size(batch)
        return groups, [self.backbone(self._stack([batch[i] for i in rows])) for rows in groups]

    def _infer_proposals(
        self, batch: list[DetectorInput], groups: list[list[int]], feature_maps: list[Tensor], regress: bool
    ) -> list[RegionPredictions]:
        regions = self._propose(feature_maps, [[batch[i] for i in rows] for rows in groups])
        return self._predict_regions(batch, groups, feature_maps, regions, regress)

    def _infer_boxes(
        self,
        batch: list[DetectorInput],
        groups: list[list[int]],
        feature_maps: list[Tensor],
        boxes: list[Tensor],
        regress: bool,
    ) -> list[RegionPredictions]:
        regions = [
            [given_regions(batch[i], boxes[i].to(self.device, non_blocking=True)) for i in rows] for rows in groups
        ]
        return self._predict_regions(batch, groups, feature_maps, regions, regress)

    def _predict_regions(
        self,
        batch: list[DetectorInput],
        groups: list[list[int]],
        feature_maps: list[Tensor],
        regions: list[list[RegionBoxes]],
        regress: bool,
    ) -> list[RegionPredictions]:
        """Returns the predictions for the regions of each image, in the order of the batch."""
        network_boxes = [[image.network for image in group] for group in regions]
        outputs = self.roi_heads.describe_maps(feature_maps, network_boxes, self.backbone.stride, regress=regress)
        rows = [i for group in groups for i in group]
        in_order = [image for group in regions for image in group]
        results = {
            i: region_predictions(batch[i], image_regions, image_outputs, self.box_weights, self.convention)
            for i, image_regions, image_outputs in zip(
                rows, in_order, outputs.split([len(image.network) for image in in_order])
            )
        }
        return [results[i] for i in range(len(batch))]

    @torch.inference_mode()
    def grid(self, batch: list[DetectorInput]) -> list[Tensor]:
        """Returns grid features (Jiang et al. 2020, "In Defense of Grid Features"): the output of res5 on each whole
        image that ``prepare`` resized, [D, h, w] float32, >= 0, on the detector's device.

        A cell covers 32 network pixels, or 16 where MODEL.RESNETS.RES5_DILATION is 2.
        """
        self._begin_inference()
        results: dict[int, Tensor] = {}
        for rows in rows_of_one_size(batch):
            feature_map = self.grid_map(self._stack([batch[i] for i in rows]))
            results.update(zip(rows, feature_map.float()))
        return [results[i] for i in range(len(batch))]

    def grid_map(self, pixels: Tensor) -> Tensor:
        """Returns the feature map [N, D, h, w] of ``grid`` for normalised images [N, 3, H, W]."""
        assert isinstance(self.roi_heads, AttributeRes5ROIHeads)
        return self.roi_heads.res5(self.backbone(pixels))

    def _begin_inference(self) -> None:
        # This visits each module, which takes a millisecond.
        if self.training:
            self.eval()

    def _propose(self, feature_maps: list[Tensor], groups: list[list[DetectorInput]]) -> list[list[RegionBoxes]]:
        """Returns the proposed regions of each image of each feature map."""
        scales = [[inputs.scale[0] for inputs in group] for group in groups]
        outputs = [self.proposal_generator(feature_map) for feature_map in feature_maps]
        proposals = self.proposal_generator.propose_groups(outputs, [_sizes(group) for group in groups], scales)
        return [
            [proposed_regions(inputs, *proposed) for inputs, proposed in zip(group, group_proposals)]
            for group, group_proposals in zip(groups, proposals)
        ]

    def _sample(
        self, outputs: tuple[Tensor, Tensor, Tensor], batch: list[DetectorInput], ground_truth: GroundTruth
    ) -> list[SampledRegions]:
        """Returns the regions of each image that the losses of the heads are computed from.

        Here a training step waits for the GPU, once: for the number of regions, and for whether suppression is done.
        """
        scales = [inputs.scale[0] for inputs in batch]
        rounds = ROUNDS
        while True:
            proposals = self.proposal_generator.propose_for_training(*outputs, _sizes(batch), scales, rounds=rounds)
            drawn = self.roi_heads.sample(proposals.boxes, proposals.valid, ground_truth)
            *counts, settled = torch.cat([drawn.counts.flatten(), proposals.settled[None].long()]).tolist()
            if settled:
                return drawn.split(list(zip(counts[::2], counts[1::2])))
            rounds *= 8

    def _ground_truth(self, batch: list[DetectorInput]) -> GroundTruth:
        """Returns the ground truth of training images on the detector's device."""
        images = []
        for inputs in batch:
            assert inputs.boxes is not None
            assert inputs.classes is not None
            assert inputs.attributes is not None
            images.append((inputs.boxes, inputs.classes, inputs.attributes))
        return batch_ground_truth(images, self.device)

    def _stack(self, batch: list[DetectorInput]) -> Tensor:
        """Returns the normalised images, padded with zeros to the largest: [N, 3, H, W], of the backbone's dtype."""
        height = max(inputs.image.shape[1] for inputs in batch)
        width = max(inputs.image.shape[2] for inputs in batch)
        # The mean becomes the zeros of the padding.
        stacked = self.pixel_mean.repeat(len(batch), 1, height, width)
        for row, inputs in zip(stacked, batch):
            image = inputs.image.to(self.device, non_blocking=True)
            row[:, : image.shape[1], : image.shape[2]] = image
        normalised = (stacked - self.pixel_mean) / self.pixel_std
        return normalised.to(self.backbone.stem.conv1.weight.dtype)


def _sizes(batch: list[DetectorInput]) -> list[tuple[int, int]]:
    """Returns the height and width of each image in network pixels."""
    return [(inputs.image.shape[1], inputs.image.shape[2]) for inputs in batch]


def rows_of_one_size(batch: list[DetectorInput]) -> list[list[int]]:
    """Returns the positions in ``batch`` of the images of each size."""
    sizes: dict[torch.Size, list[int]] = {}
    for i, inputs in enumerate(batch):
        sizes.setdefault(inputs.image.shape, []).append(i)
    return list(sizes.values())
