"""The detector: images in, regions with features, classes, boxes and attributes out."""

import numpy as np
import torch
from torch import Tensor, nn

from bua.config import check_device
from bua.errors import InputError
from bua.io.images import Resize
from bua.modeling.anchors import AnchorGenerator
from bua.modeling.backbone import BLOCKS, STRIDE, ResNetC4, freeze_parameters
from bua.modeling.regions import given_regions, proposed_regions, region_predictions
from bua.modeling.roi_heads import AttributeRes5ROIHeads
from bua.modeling.rpn import RPN
from bua.structures import DetectorInput, RegionPredictions


def build_detector(cfg) -> "Detector":
    """The detector that ``cfg`` describes, with random weights, on cfg.MODEL.DEVICE.

    Raises:
        InputError: ``cfg`` asks for what this engine does not have.
    """
    _check(cfg)
    detector = Detector(cfg).to(cfg.MODEL.DEVICE)
    if detector.device.type == "cpu":
        # Here oneDNN's convolutions take two thirds of the time in this order of the elements.
        detector.to(memory_format=torch.channels_last)
    return detector


class Detector(nn.Module):
    """Faster R-CNN on ResNet C4 with an attribute head.

    In training it is called with a batch and returns losses; otherwise ``predict`` (images) or ``prepare`` and
    ``infer`` (images resized elsewhere, as in data-loader workers) give the regions.
    """

    def __init__(self, cfg):
        super().__init__()
        self.convention = cfg.MODEL.BUA.BOX_CONVENTION
        self.box_weights = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
        self.backbone = ResNetC4(cfg)
        self.proposal_generator = RPN(cfg, self.backbone.out_channels, AnchorGenerator(cfg, [STRIDE]))
        self.roi_heads = AttributeRes5ROIHeads(cfg)
        self.prepare = Resize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.MODEL.BUA.RESIZE)
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(cfg.MODEL.PIXEL_STD).view(3, 1, 1), persistent=False)
        self.backbone.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
        freeze_parameters(self, cfg.MODEL.BUA.FREEZE)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batch: list[DetectorInput]) -> dict[str, Tensor]:
        """The losses of a batch with ground truth: loss_rpn_cls, loss_rpn_loc, loss_cls, loss_box_reg, loss_attr."""
        feature_map = self.backbone(self._stack(batch))
        sizes = [picture.image.shape[-2:] for picture in batch]
        boxes = [picture.boxes.to(self.device) for picture in batch]
        anchors, objectness, deltas = self.proposal_generator(feature_map)
        losses = self.proposal_generator.losses(anchors, objectness, deltas, sizes, boxes)
        proposals = self.proposal_generator.propose(anchors, objectness, deltas, sizes, [p.scale[0] for p in batch])
        regions = [
            self.roi_heads.sample(
                proposals[i][0], boxes[i], picture.classes.to(self.device), picture.attributes.to(self.device)
            )
            for i, picture in enumerate(batch)
        ]
        return losses | self.roi_heads.losses(feature_map, regions, STRIDE)

    def predict(self, images: list[np.ndarray], boxes: list[Tensor] | None = None) -> list[RegionPredictions]:
        """The regions of images.

        Args:
            images: [H, W, 3] uint8 BGR, of any sizes.
            boxes: [N, 4] for each image, in its pixels, instead of the proposals.
        """
        return self.infer([self.prepare(image) for image in images], boxes)

    @torch.inference_mode()
    def infer(
        self, batch: list[DetectorInput], boxes: list[Tensor] | None = None, *, regress: bool = True
    ) -> list[RegionPredictions]:
        """As ``predict``, for images that ``prepare`` resized. Images of one size run together, others apart, so
        that padding never changes a result.

        Args:
            regress: False leaves out the boxes regressed for each class, which many uses ignore: ``boxes`` is None.
        """
        self.eval()
        results: dict[int, RegionPredictions] = {}
        for rows in _rows_of_one_size(batch):
            given = None if boxes is None else [boxes[i] for i in rows]
            results.update(zip(rows, self._infer_one_size([batch[i] for i in rows], given, regress)))
        return [results[i] for i in range(len(batch))]

    @torch.inference_mode()
    def grid(self, batch: list[DetectorInput]) -> list[Tensor]:
        """Grid features (Jiang et al. 2020, "In Defense of Grid Features"): res5 over whole images that ``prepare``
        resized, [D, h, w] float32, >= 0, on the detector's device.

        A cell is 32 network pixels, or 16 where MODEL.RESNETS.RES5_DILATION is 2.
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
            sizes = [picture.image.shape[-2:] for picture in batch]
            proposals = self.proposal_generator.propose(
                *self.proposal_generator(feature_map), sizes, [p.scale[0] for p in batch]
            )
            regions = [proposed_regions(picture, *proposed) for picture, proposed in zip(batch, proposals)]
        else:
            regions = [given_regions(picture, given.to(self.device)) for picture, given in zip(batch, boxes)]
        outputs = self.roi_heads.describe(feature_map, [boxes.network for boxes in regions], STRIDE, regress=regress)
        outputs = outputs.split([len(boxes.network) for boxes in regions])
        return [
            region_predictions(picture, regions[i], outputs[i], self.box_weights, self.convention)
            for i, picture in enumerate(batch)
        ]

    def _stack(self, batch: list[DetectorInput]) -> Tensor:
        """Images less their mean, padded with zeros to the largest: [N, 3, H, W], of the backbone's dtype."""
        height = max(picture.image.shape[1] for picture in batch)
        width = max(picture.image.shape[2] for picture in batch)
        stacked = torch.zeros(len(batch), 3, height, width, device=self.device)
        for row, picture in zip(stacked, batch):
            image = picture.image.to(self.device, non_blocking=True)
            row[:, : image.shape[1], : image.shape[2]] = (image - self.pixel_mean) / self.pixel_std
        return stacked.to(self.backbone.stem.conv1.weight.dtype)


def _rows_of_one_size(batch: list[DetectorInput]) -> list[list[int]]:
    sizes: dict[torch.Size, list[int]] = {}
    for i, picture in enumerate(batch):
        sizes.setdefault(picture.image.shape, []).append(i)
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
            raise InputError(f"config: {key} is {value!r}; the torch engine has {', '.join(map(str, values))}")
    check_device(cfg.MODEL.DEVICE)
