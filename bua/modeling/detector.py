"""The detector: from images to regions with features, classes, boxes and attributes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bua.config import check_device
from bua.errors import InputError
from bua.io.images import Resize
from bua.modeling.anchors import AnchorGenerator
from bua.modeling.backbone import BLOCKS, STRIDE, ResNetC4, freeze_parameters
from bua.modeling.ground_truth import GroundTruth, batch_ground_truth
from bua.modeling.regions import given_regions, proposed_regions, region_predictions
from bua.modeling.roi_heads import AttributeRes5ROIHeads, SampledRegions
from bua.modeling.rpn import RPN
from bua.modeling.suppression import ROUNDS
from bua.structures import DetectorInput, RegionPredictions


def build_detector(cfg) -> "Detector":
    """Returns the detector that ``cfg`` describes, with random weights, on cfg.MODEL.DEVICE.

    Raises:
        InputError: ``cfg`` asks for something that this engine does not have.
    """
    _check(cfg)
    backbone = ResNetC4(cfg)
    detector = Detector(
        backbone=backbone,
        proposal_generator=RPN(cfg, backbone.out_channels, AnchorGenerator(cfg, [STRIDE])),
        roi_heads=AttributeRes5ROIHeads(cfg),
        resize=Resize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.MODEL.BUA.RESIZE),
        pixel_mean=torch.tensor(cfg.MODEL.PIXEL_MEAN).view(3, 1, 1),
        pixel_std=torch.tensor(cfg.MODEL.PIXEL_STD).view(3, 1, 1),
        box_weights=cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS,
        convention=cfg.MODEL.BUA.BOX_CONVENTION,
    )
    detector.backbone.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    freeze_parameters(detector, cfg.MODEL.BUA.FREEZE)
    detector.to(cfg.MODEL.DEVICE)
    if detector.device.type == "cpu":
        # On a CPU, oneDNN's convolutions take two thirds of the time in this order of the elements.
        detector.to(memory_format=torch.channels_last)
    return detector


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
        roi_heads: AttributeRes5ROIHeads,
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

    def forward(self, batch: list[DetectorInput]) -> dict[str, Tensor]:
        """Returns the losses of a batch with ground truth: loss_rpn_cls, loss_rpn_loc, loss_cls, loss_box_reg,
        loss_attr."""
        feature_map = self.backbone(self._stack(batch))
        ground_truth = self._ground_truth(batch)
        outputs: tuple[Tensor, Tensor, Tensor] = self.proposal_generator(feature_map)
        losses = self.proposal_generator.losses(*outputs, _sizes(batch), ground_truth)
        regions = self._sample(outputs, batch, ground_truth)
        return losses | self.roi_heads.losses(feature_map, regions, STRIDE)

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
        """Returns what ``predict`` returns, for images that ``prepare`` resized. Only images of the same size run
        together, so that padding never changes a result.

        Args:
            regress: Whether to regress boxes for each class, which many uses ignore. If False, ``boxes`` of the
                predictions is None.
        """
        self.eval()
        results: dict[int, RegionPredictions] = {}
        for rows in _rows_of_one_size(batch):
            given = None if boxes is None else [boxes[i] for i in rows]
            results.update(zip(rows, self._infer_one_size([batch[i] for i in rows], given, regress)))
        return [results[i] for i in range(len(batch))]

    @torch.inference_mode()
    def grid(self, batch: list[DetectorInput]) -> list[Tensor]:
        """Returns grid features (Jiang et al. 2020, "In Defense of Grid Features"): the output of res5 on each whole
        image that ``prepare`` resized, [D, h, w] float32, >= 0, on the detector's device.

        A cell covers 32 network pixels, or 16 where MODEL.RESNETS.RES5_DILATION is 2.
        """
        self.eval()
        results: dict[int, Tensor] = {}
        for rows in _rows_of_one_size(batch):
            feature_map = self.backbone(self._stack([batch[i] for i in rows]))
            results.update(zip(rows, self.roi_heads.res5(feature_map).float()))
        return [results[i] for i in range(len(batch))]

    def _infer_one_size(
        self, batch: list[DetectorInput], boxes: list[Tensor] | None, regress: bool
    ) -> list[RegionPredictions]:
        feature_map = self.backbone(self._stack(batch))
        if boxes is None:
            scales = [inputs.scale[0] for inputs in batch]
            anchors, objectness, deltas = self.proposal_generator(feature_map)
            proposals = self.proposal_generator.propose(anchors, objectness, deltas, _sizes(batch), scales)
            regions = [proposed_regions(inputs, *proposed) for inputs, proposed in zip(batch, proposals)]
        else:
            regions = [given_regions(inputs, given.to(self.device)) for inputs, given in zip(batch, boxes)]
        outputs = self.roi_heads.describe(feature_map, [image.network for image in regions], STRIDE, regress=regress)
        return [
            region_predictions(inputs, image_regions, image_outputs, self.box_weights, self.convention)
            for inputs, image_regions, image_outputs in zip(
                batch, regions, outputs.split([len(image.network) for image in regions])
            )
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


def _rows_of_one_size(batch: list[DetectorInput]) -> list[list[int]]:
    """Returns the positions in ``batch`` of the images of each size."""
    sizes: dict[torch.Size, list[int]] = {}
    for i, inputs in enumerate(batch):
        sizes.setdefault(inputs.image.shape, []).append(i)
    return list(sizes.values())


def _check(cfg) -> None:
    allowed = {
        "MODEL.META_ARCHITECTURE": ("AttributeRCNN", "GeneralizedRCNN"),
        "MODEL.BACKBONE.NAME": ("build_bua_resnet_backbone", "build_resnet_backbone"),
        "MODEL.RESNETS.DEPTH": tuple(BLOCKS),
        "MODEL.RESNETS.NORM": ("FrozenBN", "BN", "GN"),
        "MODEL.RESNETS.RES5_DILATION": (1, 2),
        "MODEL.ANCHOR_GENERATOR.NAME": ("BUAAnchorGenerator", "DefaultAnchorGenerator"),
        "MODEL.PROPOSAL_GENERATOR.NAME": ("BUAProposalGenerator", "RPN"),
        "MODEL.BUA.RESNET_VERSION": (1, 2),
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
        "MODEL.ROI_HEADS.NAME": ("AttributeRes5ROIHeads", "Res5ROIHeads"),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIPool", "ROIAlign", "ROIAlignV2"),
        "INPUT.FORMAT": ("BGR",),
    }
    for key, values in allowed.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        if value not in values:
            raise InputError(f"config: {key} is {value!r}; the torch engine supports {', '.join(map(str, values))}")
    check_device(cfg.MODEL.DEVICE)
