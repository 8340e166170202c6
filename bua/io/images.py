"""Images from files, and their way to the network's size."""

import io
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from bua.errors import InputError
from bua.structures import DetectorInput

# Processes, not OpenCV's threads, work on several images at once. And a process that is forked after OpenCV has
# started threads hangs as soon as it sets their number: data-loader workers did.
cv2.setNumThreads(1)

READ_MODE = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START, GIF_START = b"\x89PNG\r\n\x1a\n", b"GIF8"

# Beyond this, half a gigabyte of pixels, PIL refuses an image by its header.
MAX_PIXELS = 178_956_970

# Of less the first layers leave nothing: a convolution and a pooling of 3x3 without padding, each with stride 2.
MIN_NETWORK_SIDE = 3


def read_image(path: str | Path, span: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes an image as the original did, with OpenCV: [H, W, 3] uint8 BGR.

    Grey is copied to all three channels and palettes are looked up; transparency is dropped, so that the colours
    under it show; of 16 bits the upper 8 remain; CMYK becomes RGB by OpenCV's formula, without colour profiles. Of
    an animation the first frame is taken (GIF by PIL: the original's OpenCV could not read it at all, nor can all
    of today's).

    A rotation that the file's EXIF data asks for is not done: sizes and boxes in annotations are those of the stored
    pixels. The original's README asks for python-opencv, which was 2.4 on the Ubuntu of its time and did not do it
    either; OpenCV does it since 3.1, and with it the ports that call ``cv2.imread`` as it is. OpenCV always follows
    TIFF's own orientation.

    Args:
        span: (offset, size) in bytes of the image in the file, as in an archive; None: all of the file.

    Raises:
        InputError: names the file: missing, unreadable, not an image, damaged, cut short (which some releases of
            OpenCV fill with grey), or of more than ``MAX_PIXELS`` pixels by its header (which is looked at before
            anything is decoded).
    """
    name = str(path) if span is None else f"{path} (at byte {span[0]})"
    data = _read(path, span, name)
    pixels = _pixels_by_header(data)
    if pixels is not None and pixels > MAX_PIXELS:
        raise InputError(f"{name}: more than {MAX_PIXELS // 1_000_000} million pixels by its header; make it smaller")
    for kind, is_truncated in (("JPEG", _is_truncated_jpeg), ("PNG", _is_truncated_png)):
        if is_truncated(data):
            raise InputError(f"{name}: truncated {kind} ({len(data)} bytes); fetch it again")
    image = None
    if pixels is not None:
        image = _decode_gif(data) if data.startswith(GIF_START) else _decode(data)
    if image is None:
        raise InputError(f"{name}: not an image, or a damaged one ({len(data)} bytes); fetch it again or remove it")
    return image


def resize_scale(height: int, width: int, short: int, long: int) -> float:
    """The factor that brings the short side to ``short``, or the long side to ``long`` where it would exceed that
    (lib/utils/blob.py, prep_im_for_blob)."""
    scale = short / min(height, width)
    if round(scale * max(height, width)) > long:
        scale = long / max(height, width)
    return scale


def resize_image(image: np.ndarray, short: int, long: int, mode: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Resizes an image [H, W, 3] uint8 to float32 [h, w, 3].

    Args:
        short, long: the wished short side and the largest long side, in pixels.
        mode: "caffe": as float, cv2's linear interpolation without antialiasing, one scale for both axes. The
            original subtracts the mean first; interpolation weights sum to 1, so subtracting it afterwards is the same
            to rounding. "detectron2": as uint8, PIL's bilinear filter.

    Returns:
        the image, and its (x, y) scale in network pixels per original pixel.

    Raises:
        InputError: too long and narrow: less than ``MIN_NETWORK_SIDE`` pixels would remain of a side.
    """
    height, width = image.shape[:2]
    scale = resize_scale(height, width, short, long)
    # Halves are rounded as cv2.resize rounds them.
    new_height, new_width = round(height * scale), round(width * scale)
    if mode == "detectron2":
        new_height, new_width = _detectron2_size(height, width, short, long)
    if min(new_height, new_width) < MIN_NETWORK_SIDE:
        raise InputError(
            f"an image of {width}x{height} pixels becomes {new_width}x{new_height} for the network, "
            f"which needs {MIN_NETWORK_SIDE}; crop it"
        )
    if mode == "caffe":
        resized = cv2.resize(image.astype(np.float32), None, None, scale, scale, cv2.INTER_LINEAR)
        return resized, (scale, scale)
    if (new_height, new_width) != (height, width):
        image = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
    return image.astype(np.float32), (new_width / width, new_height / height)


class Resize:
    """Turns images into what the detector's ``infer`` takes; small and picklable, for data-loader workers."""

    def __init__(self, short: int, long: int, mode: str):
        self.short, self.long, self.mode = short, long, mode

    def __call__(self, image: np.ndarray, image_id: int | str | None = None) -> DetectorInput:
        """An image [H, W, 3] uint8 BGR to a DetectorInput without ground truth."""
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


def _read(path: str | Path, span: tuple[int, int] | None, name: str) -> bytes:
    try:
        with open(path, "rb") as file:
            if span is None:
                return file.read()
            offset, size = span
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        link = f" (a link to {os.readlink(path)})" if os.path.islink(path) else ""
        raise InputError(f"{path}: cannot be read{link}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{str(path)!r}: not the name of a file: {error}") from error
    if len(data) < size:
        raise InputError(f"{name}: {len(data)} of its {size} bytes are there: the file is cut short; fetch it again")
    return data


def _pixels_by_header(data: bytes) -> int | None:
    """None: no header of an image. OpenCV ignores some damage there, and then takes gigabytes for a wrong size."""
    try:
        with Image.open(io.BytesIO(data)) as header:
            return header.width * header.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except Exception:
        # PIL stumbles on damage in more ways than it documents.
        return None


def _decode(data: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), READ_MODE)
    except cv2.error:
        return None


def _decode_gif(data: bytes) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
    except Exception:
        return None


def _is_truncated_jpeg(data: bytes) -> bool:
    if not data.startswith(JPEG_START) or data.endswith(JPEG_END):
        return False
    # Bytes after the end marker are common and harmless; PIL knows whether the image itself is whole.
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except OSError:
        return True
    return False


def _is_truncated_png(data: bytes) -> bool:
    """Also by a damaged length, for which OpenCV would ask up to four gigabytes."""
    if not data.startswith(PNG_START):
        return False
    position = len(PNG_START)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND":
            return False
        position += 12 + length  # a checksum follows
    return True
