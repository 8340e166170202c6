"""Features of boxes from a network that classifies images: a torchvision ResNet-50 on each box's part of the image, as
in ChanningPing's captioning code."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import resnet50

from bua.errors import InputError, first_of
from bua.structures import DetectorInput, Regions
from bua.weights.files import check_finite, read_weights
from bua.weights.zoo import fetch

# torchvision's first ImageNet weights. The other ones of ResNet-50 were trained for a higher accuracy of the classes.
CROP_WEIGHTS = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
RANDOM_WEIGHTS = "random"
FEATURE_DIM = 2048
# Sizes in pixels: of the image, which is squashed to a square, and of what the network sees.
IMAGE_SIZE, PATCH_SIZE = 384, 196
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Number of boxes that run through the network at a time.
BOXES_PER_STEP = {"cpu": 10, "cuda": 80}


class CropEncoder:
    """Describes boxes of images by ``FEATURE_DIM`` numbers, the mean over the last feature map of a ResNet-50.

    Args:
        weights: A state dict of torchvision's ResNet-50, or an address of one; "random" for random weights.
        device: The device that it runs on.
        bfloat16: Whether convolutions are in bfloat16.

    Raises:
        InputError: The weights cannot be read, or are those of another network.
    """

    def __init__(self, weights: str = CROP_WEIGHTS, device: torch.device | str = "cpu", *, bfloat16: bool = False):
        self.device, self.bfloat16 = torch.device(device), bfloat16
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = resnet50(weights=None)
        if weights != RANDOM_WEIGHTS:
            _load(network, weights)
        network.fc = torch.nn.Identity()
        self.network = network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def prepare(self, image: np.ndarray, image_id: int | str | None = None) -> DetectorInput:
        """Converts an image [H, W, 3] uint8 BGR to a square, in RGB and normalised."""
        height, width = image.shape[:2]
        square = cv2.resize(
            image[:, :, ::-1].astype(np.float32), (IMAGE_SIZE, IMAGE_SIZE), None, 0, 0, cv2.INTER_LINEAR
        )
        square = (square - 255 * np.array(_MEAN, np.float32)) / (255 * np.array(_STD, np.float32))
        pixels = torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)))
        return DetectorInput(pixels, width, height, (IMAGE_SIZE / width, IMAGE_SIZE / height), image_id)

    @torch.inference_mode()
    def describe(self, batch: list[DetectorInput], boxes: list[Tensor]) -> list[Regions]:
        """Returns the regions of boxes [N, 4] of each image, in its pixels, in their order, on the host.

        The image outside of the box becomes the mean colour, the whole is reduced to ``PATCH_SIZE`` pixels, and the
        network sees that. Boxes are rounded down to whole pixels of the square, of which they have at least one.
        """
        pixels = [inputs.image.to(self.device, non_blocking=True) for inputs in batch]
        corners = [_corners(inputs, image_boxes) for inputs, image_boxes in zip(batch, boxes)]
        places = [(image, box) for image, image_corners in enumerate(corners) for box in image_corners]
        step = BOXES_PER_STEP.get(self.device.type, BOXES_PER_STEP["cuda"])
        features = [self._features(pixels, places[start : start + step]) for start in range(0, len(places), step)]
        rows = torch.cat(features).cpu().numpy() if features else np.empty((0, FEATURE_DIM), np.float32)
        parts = np.split(rows, np.cumsum([len(image_boxes) for image_boxes in boxes])[:-1])
        return [
            Regions(inputs.image_id or 0, inputs.width, inputs.height, image_boxes.cpu().numpy(), part)
            for inputs, image_boxes, part in zip(batch, boxes, parts)
        ]

    def _features(self, pixels: list[Tensor], places: list[tuple[int, list[int]]]) -> Tensor:
        masked = torch.zeros(len(places), 3, IMAGE_SIZE, IMAGE_SIZE, device=self.device)
        for patch, (image, (x1, y1, x2, y2)) in zip(masked, places):
            patch[:, y1:y2, x1:x2] = pixels[image][:, y1:y2, x1:x2]
        patches = F.adaptive_avg_pool2d(masked, PATCH_SIZE).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            features: Tensor = self.network(patches)
        return features.float()


def _corners(inputs: DetectorInput, boxes: Tensor) -> list[list[int]]:
    """Returns boxes in whole pixels of the square, each of at least one pixel."""
    scale = np.array([*inputs.scale, *inputs.scale], np.float32)
    corners = np.trunc(boxes.cpu().numpy() * scale).astype(np.int64)
    corners[:, :2] = np.clip(corners[:, :2], 0, IMAGE_SIZE - 1)
    corners[:, 2:] = np.clip(corners[:, 2:], corners[:, :2] + 1, IMAGE_SIZE)
    listed: list[list[int]] = corners.tolist()
    return listed


def _load(network: torch.nn.Module, weights: str) -> None:
    path = fetch(weights)
    loaded = read_weights(path)
    check_finite(loaded, path)
    try:
        network.load_state_dict(loaded)
    except RuntimeError as error:
        needed = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
        lacking, unknown = sorted(needed - loaded.keys()), sorted(loaded.keys() - network.state_dict().keys())
        if lacking:
            reason = f"it lacks {first_of(lacking)}"
        elif unknown:
            reason = f"it has unknown {first_of(unknown)}"
        else:
            reason = "parameters have other shapes"
        raise InputError(f"{path}: is not a ResNet-50 of torchvision ({reason}); give its state dict") from error
