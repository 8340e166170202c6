"""EfficientDet (Tan et al. 2020), which finds boxes with classes. The network, its anchors, its losses and its
suppression are those of the package effdet."""

import copy
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bua.config import check_device
from bua.config_values import check_choices
from bua.errors import InputError
from bua.structures import DetectedBoxes, DetectorInput, RegionPredictions

if TYPE_CHECKING:
    import effdet

META_ARCHITECTURE = "EfficientDet"
NO_FEATURES = (
    "EfficientDet finds boxes and has no features for them; let `bua extract` describe its boxes (--boxes-from) by "
    "crops (--features-from crops) or by another detector"
)
# IoU of two anchors' and objects' boxes above which an anchor belongs to the object, as in effdet's training.
MATCH_THRESHOLD = 0.5


def build_efficientdet(cfg) -> "EfficientDet":
    """Returns the EfficientDet that ``cfg`` describes, with random weights, on cfg.MODEL.DEVICE.

    Raises:
        InputError: effdet is not installed, or it has no such model.
    """
    check_choices(cfg, "config", {"INPUT.FORMAT": ("BGR",), "MODEL.MASK_ON": (False,)}, "EfficientDet has")
    effdet = import_effdet()
    check_device(cfg.MODEL.DEVICE)
    network = effdet.EfficientDet(_effdet_config(cfg), pretrained_backbone=False)
    model = EfficientDet(
        network,
        build_letterbox(cfg),
        pixel_mean=torch.tensor(cfg.MODEL.PIXEL_MEAN).view(3, 1, 1),
        pixel_std=torch.tensor(cfg.MODEL.PIXEL_STD).view(3, 1, 1),
    )
    return model.to(cfg.MODEL.DEVICE).to(memory_format=torch.channels_last)


def build_letterbox(cfg) -> "Letterbox":
    """Returns what converts images to the input of the EfficientDet that ``cfg`` describes."""
    height, width = cfg.MODEL.BUA.EFFICIENTDET.IMAGE_SIZE
    return Letterbox((height, width), cfg.MODEL.PIXEL_MEAN)


def import_effdet() -> Any:
    """Returns the module effdet.

    Raises:
        InputError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Its use of torch.jit.script, which newer releases of torch warn of.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            import effdet
    except ImportError as error:
        raise InputError(
            f"MODEL.META_ARCHITECTURE EfficientDet: {error}; pip install 'bottom-up-attention[effdet]'"
        ) from error
    return effdet


class EfficientDet(nn.Module):
    """EfficientDet in training. It is called with a batch and returns losses; ``for_inference`` returns the detector.

    Args:
        network: effdet's model.
        prepare: Converts an image to the network's input.
        pixel_mean, pixel_std: [3, 1, 1] float32, BGR.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, network: "effdet.EfficientDet", prepare: "Letterbox", *, pixel_mean: Tensor, pixel_std: Tensor):
        from effdet.anchors import AnchorLabeler, Anchors
        from effdet.loss import DetectionLoss

        super().__init__()
        self.network = network
        self.prepare = prepare
        self.anchors = Anchors.from_config(network.config)
        # The anchors follow from the configuration, and checkpoints do not hold them.
        boxes = self.anchors.boxes
        del self.anchors.boxes
        self.anchors.register_buffer("boxes", boxes, persistent=False)
        self.labeler = AnchorLabeler(self.anchors, network.config.num_classes, MATCH_THRESHOLD)
        self.loss = DetectionLoss(network.config)
        self.register_buffer("pixel_mean", pixel_mean, persistent=False)
        self.register_buffer("pixel_std", pixel_std, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batch: list[DetectorInput]) -> dict[str, Tensor]:
        """Returns the losses of a batch with ground truth: loss_cls, and loss_box with effdet's weight."""
        boxes, classes = [], []
        for inputs in batch:
            assert inputs.boxes is not None
            assert inputs.classes is not None
            # effdet has the coordinates in the order y1, x1, y2, x2, and counts classes from 1.
            boxes.append(inputs.boxes[:, [1, 0, 3, 2]].to(self.device, non_blocking=True))
            classes.append(inputs.classes.to(self.device, non_blocking=True) + 1)
        class_outputs, box_outputs = self.network(normalised(batch, self.pixel_mean, self.pixel_std))
        targets = self.labeler.batch_label_anchors(boxes, classes)
        _, class_loss, box_loss = self.loss(class_outputs, box_outputs, *targets)
        return {"loss_cls": class_loss, "loss_box": self.loss.box_loss_weight * box_loss}

    def for_inference(self) -> "EfficientDetBoxes":
        """Returns the detector with a copy of the present weights."""
        return EfficientDetBoxes(
            copy.deepcopy(self.network), self.prepare, pixel_mean=self.pixel_mean, pixel_std=self.pixel_std
        )


class EfficientDetBoxes:
    """Detects objects with an EfficientDet. The arguments are those of ``EfficientDet``. It is a ``RegionDetector``
    whose methods that return features are refused."""

    convention, feature_dim = "detectron2", 0

    def __init__(self, network: "effdet.EfficientDet", prepare: "Letterbox", *, pixel_mean: Tensor, pixel_std: Tensor):
        self.device = pixel_mean.device
        self.prepare = prepare
        self.bench = import_effdet().DetBenchPredict(network).to(self.device).eval().requires_grad_(False)
        scores = len(self.bench.anchors.boxes) * self.bench.num_classes
        self.bench.max_detection_points = min(self.bench.max_detection_points, scores)
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std

    @torch.inference_mode()
    def detect_boxes(self, batch: list[DetectorInput]) -> list[DetectedBoxes]:
        """Returns the objects found in each image that ``prepare`` converted, best first, on the host.

        effdet suppresses boxes of one class at IoU > 0.5. There are at most TEST.DETECTIONS_PER_IMAGE boxes.
        """
        if not batch:
            return []
        pixels = normalised(batch, self.pixel_mean, self.pixel_std)
        about = {
            "img_scale": pixels.new_tensor([1 / inputs.scale[0] for inputs in batch]),
            "img_size": pixels.new_tensor([(inputs.width, inputs.height) for inputs in batch]),
        }
        detections = self.bench(pixels, about).cpu().numpy()
        # Rows of class 0, the background, fill up the images with fewer detections.
        found = [rows[rows[:, 5] > 0] for rows in detections]
        return [DetectedBoxes(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64) - 1) for rows in found]

    def infer(
        self, batch: list[DetectorInput], boxes: list[Tensor] | None = None, *, regress: bool = True
    ) -> list[RegionPredictions]:
        """Raises InputError: there are no features."""
        raise InputError(NO_FEATURES)

    def grid(self, batch: list[DetectorInput]) -> list[Tensor]:
        """Raises InputError: there are no features."""
        raise InputError(NO_FEATURES)


class Letterbox:
    """Converts images to the network's input: resized as effdet does, with the same scale for both sides, and padded on
    the right and at the bottom with the mean colour.

    Args:
        size: (height, width) of the input in pixels.
        pixel_mean: [3] BGR, 0 to 255.
    """

    def __init__(self, size: tuple[int, int], pixel_mean: list[float]):
        self.size, self.fill = size, [round(value) for value in pixel_mean]

    def __call__(self, image: np.ndarray, image_id: int | str | None = None) -> DetectorInput:
        """Converts an image [H, W, 3] uint8 BGR to a DetectorInput without ground truth."""
        height, width = image.shape[:2]
        scale = min(self.size[0] / height, self.size[1] / width)
        new_height, new_width = max(1, int(height * scale)), max(1, int(width * scale))
        resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
        padded = np.empty((*self.size, 3), np.float32)
        padded[:] = self.fill
        padded[:new_height, :new_width] = np.asarray(resized)
        pixels = torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1)))
        return DetectorInput(image=pixels, width=width, height=height, scale=(scale, scale), image_id=image_id)


def normalised(batch: list[DetectorInput], mean: Tensor, std: Tensor) -> Tensor:
    """Returns the images of a batch as effdet takes them: [N, 3, H, W] float32, RGB, normalised."""
    stacked = torch.stack([inputs.image.to(mean.device, non_blocking=True) for inputs in batch])
    pixels = ((stacked - mean) / std).flip(1)
    return pixels.contiguous(memory_format=torch.channels_last)


def _effdet_config(cfg) -> Any:
    from effdet import get_efficientdet_config

    keys = cfg.MODEL.BUA.EFFICIENTDET
    try:
        config = get_efficientdet_config(keys.NAME)
    except KeyError:
        raise InputError(
            f"MODEL.BUA.EFFICIENTDET.NAME is {keys.NAME!r}; use a name that effdet knows, such as tf_efficientdet_d1"
        ) from None
    config.num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    config.image_size = list(keys.IMAGE_SIZE)
    config.max_det_per_image = cfg.TEST.DETECTIONS_PER_IMAGE
    for name, value in {
        "backbone_name": keys.BACKBONE,
        "max_level": keys.MAX_LEVEL,
        "fpn_channels": keys.FPN_CHANNELS,
        "fpn_cell_repeats": keys.FPN_REPEATS,
        "box_class_repeats": keys.HEAD_REPEATS,
        "anchor_scale": keys.ANCHOR_SCALE,
    }.items():
        if value:
            config[name] = value
    config.num_levels = config.max_level - config.min_level + 1
    if keys.BACKBONE:
        _check_backbone(keys.BACKBONE)
        config.backbone_args = {}
    return config


def _check_backbone(name: str) -> None:
    import timm

    if not timm.is_model(name):
        raise InputError(f"MODEL.BUA.EFFICIENTDET.BACKBONE is {name!r}; use the name of a model in timm, or ''")
