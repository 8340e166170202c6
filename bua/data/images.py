"""Pictures from files, and their way to the network's size."""

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from bua.errors import InputError
from bua.structures import DetectorInput

# Processes, not OpenCV's threads, work on several pictures at once. And a process that is forked after OpenCV has
# started threads hangs as soon as it sets their number: data-loader workers did.
cv2.setNumThreads(1)

READ_MODE = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"


def read_image(path: str | Path) -> np.ndarray:
    """Decodes a picture as the original did, with OpenCV: [H, W, 3] uint8 BGR.

    A rotation that the file's EXIF data asks for is not done: sizes and boxes in annotations are those of the stored
    pixels, and the OpenCV of the original's time did not do it either.

    Raises:
        InputError: names the file: missing, not a picture, or cut short (which some releases of
            OpenCV fill with grey).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{str(path)!r}: not the name of a file: {error}") from error
    image = cv2.imdecode(np.frombuffer(data, np.uint8), READ_MODE) if data else None
    if data.startswith(JPEG_START) and not data.endswith(JPEG_END) and _is_truncated(path):
        raise InputError(f"{path}: truncated JPEG ({len(data)} bytes); fetch it again")
    if image is None:
        raise InputError(f"{path}: not a picture that OpenCV can decode ({len(data)} bytes); remove or replace it")
    return image


def resize_scale(height: int, width: int, short: int, long: int) -> float:
    """The factor that brings the short side to ``short``, or the long side to ``long`` where it would exceed that
    (lib/utils/blob.py, prep_im_for_blob)."""
    scale = short / min(height, width)
    if round(scale * max(height, width)) > long:
        scale = long / max(height, width)
    return scale


def resize_image(image: np.ndarray, short: int, long: int, mode: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Resizes a picture [H, W, 3] uint8 to float32 [h, w, 3].

    Args:
        short, long: the wished short side and the largest long side, in pixels.
        mode: "caffe": as float, cv2's linear interpolation without antialiasing, one scale for both axes. The
            original subtracts the mean first; interpolation weights sum to 1, so subtracting it afterwards is the same
            to rounding. "detectron2": as uint8, PIL's bilinear filter.

    Returns:
        the picture, and its (x, y) scale in network pixels per original pixel.

    Raises:
        InputError: too long and narrow for any size.
    """
    height, width = image.shape[:2]
    scale = resize_scale(height, width, short, long)
    if scale * min(height, width) < 1:
        raise InputError(f"a picture of {width}x{height} pixels is less than a pixel high or wide at {long}; crop it")
    if mode == "caffe":
        resized = cv2.resize(image.astype(np.float32), None, None, scale, scale, cv2.INTER_LINEAR)
        return resized, (scale, scale)
    new_height, new_width = _detectron2_size(height, width, short, long)
    if (new_height, new_width) != (height, width):
        image = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
    return image.astype(np.float32), (new_width / width, new_height / height)


class Resize:
    """Turns pictures into what the detector's ``infer`` takes; small and picklable, for data-loader workers."""

    def __init__(self, short: int, long: int, mode: str):
        self.short, self.long, self.mode = short, long, mode

    def __call__(self, image: np.ndarray, image_id: int | str | None = None) -> DetectorInput:
        """A picture [H, W, 3] uint8 BGR to a DetectorInput without ground truth."""
        resized, scale = resize_image(image, self.short, self.long, self.mode)
        return DetectorInput(
            image=torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))),
            width=image.shape[1],
            height=image.shape[0],
            scale=scale,
            image_id=image_id,
        )


def _detectron2_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    # Detectron2's ResizeShortestEdge: one side exactly `short`, halves rounded up.
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    shrink = min(1.0, long / max(new_height, new_width))
    return int(new_height * shrink + 0.5), int(new_width * shrink + 0.5)


def _is_truncated(path: str | Path) -> bool:
    # Bytes after the end marker are common and harmless; PIL knows whether the picture itself is whole.
    try:
        with Image.open(path) as picture:
            picture.load()
    except OSError:
        return True
    return False
