"""Reads image files, and resizes images for the network."""

import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from bua.errors import InputError
from bua.regular_files import open_regular
from bua.structures import DetectorInput

# Several images are processed in parallel by processes, not by OpenCV's threads. Besides, a process that is forked
# after OpenCV has started threads hangs as soon as it sets their number, as data-loader workers do.
cv2.setNumThreads(1)

DECODE_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
PNG_START, GIF_START = b"\x89PNG\r\n\x1a\n", b"GIF8"

# Images with more pixels than this (half a gigabyte in memory) are refused. It is PIL's limit too.
MAX_PIXELS = 178_956_970

# Largest number of scans of a JPEG of MAX_PIXELS. A smaller image may have more of them.
MAX_SCANS_OF_LARGEST = 20

# Larger files are refused. An image of MAX_PIXELS that is not compressed takes half of it.
MAX_FILE_BYTES = 1 << 30

# Images with more pixels are resized one channel after the other, which gives the same values and needs a third of the
# memory.
LARGE_PIXELS = 1 << 24

# GIF files are converted to BGR in strips of about so many pixels.
STRIP_PIXELS = 1 << 20

# From a shorter side, the first layers (a convolution and a 3x3 pooling without padding, each with stride 2) would
# leave no output.
MIN_NETWORK_SIDE = 3


def read_image(path: str | Path, span: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes an image with OpenCV, as the original does: [H, W, 3] uint8 BGR.

    Grey is copied to all three channels, and palettes are resolved. Transparency is dropped, so that the colours of
    transparent pixels become visible. Of 16 bits per channel the upper 8 are kept. CMYK is converted to RGB by OpenCV's
    formula, without colour profiles. Of an animation the first frame is decoded. GIF files are decoded by PIL, since
    the original's OpenCV and some of today's releases cannot read them.

    A rotation in the file's EXIF data is ignored: sizes and boxes in annotations refer to the stored pixels. The
    original's README asks for python-opencv, which was version 2.4 on the Ubuntu of its time and ignored the rotation
    as well. OpenCV has applied it since 3.1, and so do the ports that call ``cv2.imread`` without flags. OpenCV always
    applies the orientation tag of TIFF.

    Args:
        span: (offset, size) of the image in the file in bytes, for an image in an archive. None reads the whole file.

    Raises:
        InputError: The file is missing, unreadable, not an image, damaged, truncated (some releases of OpenCV fill the
            missing part with grey), or has more than ``MAX_PIXELS`` pixels according to its header, which is checked
            before decoding, or more than ``MAX_FILE_BYTES`` bytes; or the path is not a regular file. The message names
            the file.
    """
    return decode_image(*read_encoded(path, span))


def read_encoded(path: str | Path, span: tuple[int, int] | None = None) -> tuple[bytes, str]:
    """Returns the bytes of an image file, which are not decoded, and the name of the image for messages; arguments and
    errors as for ``read_image``."""
    name = str(path) if span is None else f"{path} (at byte {span[0]})"
    return _read(path, span, name), name


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes the bytes of an image file as ``read_image`` does: [H, W, 3] uint8 BGR.

    Args:
        name: Name of the image in messages.

    Raises:
        InputError: As for ``read_image``.
    """
    pixels = num_pixels(data)
    if pixels > MAX_PIXELS:
        raise InputError(
            f"{name}: has more than {MAX_PIXELS // 1_000_000} million pixels according to its header; make it smaller"
        )
    if _has_too_many_scans(data, pixels):
        raise InputError(f"{name}: is a JPEG of {data.count(JPEG_SCAN)} scans; save it again, in one scan")
    for kind, is_truncated in (("JPEG", _is_truncated_jpeg), ("PNG", _is_truncated_png)):
        if is_truncated(data):
            raise InputError(f"{name}: is a truncated {kind} file ({len(data)} bytes); fetch it again")
    image = None
    if pixels:
        image = _decode_gif(data) if data.startswith(GIF_START) else _decode(data)
    if image is None:
        raise InputError(f"{name}: is not an image, or is damaged ({len(data)} bytes); fetch it again or remove it")
    return image


@contextmanager
def naming_image(name: str | Path) -> Iterator[None]:
    """Adds the name of an image to an InputError of the block, such as that of an image that is too narrow, if its
    message does not begin with it."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(str(name)):
            raise
        raise InputError(f"{name}: {error}") from error


def resize_scale(height: int, width: int, short: int, long: int) -> float:
    """Returns the factor that scales the short side to ``short``, or the long side to ``long`` if that is smaller.

    This is prep_im_for_blob in the original's lib/utils/blob.py.
    """
    scale = short / min(height, width)
    if round(scale * max(height, width)) > long:
        scale = long / max(height, width)
    return scale


def resize_image(image: np.ndarray, short: int, long: int, mode: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Resizes an image [H, W, 3] uint8 to float32 [h, w, 3].

    Args:
        short, long: The desired short side and the maximum long side, in pixels.
        mode: "caffe" resizes in float32 with cv2's linear interpolation, without antialiasing and with the same scale
            for both axes. The original subtracts the mean before resizing; since interpolation weights sum to 1,
            subtracting it afterwards gives the same result up to rounding. "detectron2" resizes in uint8 with PIL's
            bilinear filter.

    Returns:
        The resized image, and its (x, y) scale in network pixels per original pixel.

    Raises:
        InputError: The image is so narrow that one side would have less than ``MIN_NETWORK_SIDE`` pixels.
    """
    height, width = image.shape[:2]
    scale = resize_scale(height, width, short, long)
    # This rounds halves in the same way as cv2.resize.
    new_height, new_width = round(height * scale), round(width * scale)
    if mode == "detectron2":
        new_height, new_width = _detectron2_size(height, width, short, long)
    if min(new_height, new_width) < MIN_NETWORK_SIDE:
        raise InputError(
            f"an image of {width}x{height} pixels would be resized to {new_width}x{new_height}, and the network needs "
            f"{MIN_NETWORK_SIDE} pixels on each side; crop it"
        )
    if mode == "caffe":
        parts = cv2.split(image) if height * width > LARGE_PIXELS else [image]
        resized = [cv2.resize(part.astype(np.float32), None, None, scale, scale, cv2.INTER_LINEAR) for part in parts]
        return resized[0] if len(resized) == 1 else np.dstack(resized), (scale, scale)
    if (new_height, new_width) != (height, width):
        image = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
    return image.astype(np.float32), (new_width / width, new_height / height)


class Resize:
    """Converts images to the input of the detector's ``infer``. It can be pickled, for data-loader workers."""

    def __init__(self, short: int, long: int, mode: str):
        self.short, self.long, self.mode = short, long, mode

    def __call__(self, image: np.ndarray, image_id: int | str | None = None) -> DetectorInput:
        """Converts an image [H, W, 3] uint8 BGR to a DetectorInput without ground truth."""
        resized, scale = resize_image(image, self.short, self.long, self.mode)
        return DetectorInput(
            image=torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))),
            width=image.shape[1],
            height=image.shape[0],
            scale=scale,
            image_id=image_id,
        )


def _detectron2_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    # As Detectron2's ResizeShortestEdge: one side becomes exactly `short`, and halves are rounded up.
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    shrink = min(1.0, long / max(new_height, new_width))
    return int(new_height * shrink + 0.5), int(new_width * shrink + 0.5)


def _read(path: str | Path, span: tuple[int, int] | None, name: str) -> bytes:
    try:
        with open_regular(path) as file:
            there = os.fstat(file.fileno()).st_size
            offset, size = span or (0, there)
            if size > MAX_FILE_BYTES:
                raise InputError(f"{name}: has {size} bytes, more than {MAX_FILE_BYTES >> 20} MiB; make it smaller")
            file.seek(offset)
            # A damaged archive may claim more bytes than the file has.
            data = file.read(min(size, max(0, there - offset)))
    except OSError as error:
        link = f" (a link to {os.readlink(path)})" if os.path.islink(path) else ""
        raise InputError(f"{path}: cannot be read{link}: {error.strerror}") from error
    if len(data) < size:
        raise InputError(f"{name}: the file is truncated: it has {len(data)} of {size} bytes; fetch it again")
    return data


def num_pixels(data: bytes) -> int:
    """Returns the number of pixels according to the header of an image file, or 0 if there is no valid header.

    OpenCV ignores some damage to headers, and then allocates gigabytes for a wrong size.
    """
    try:
        with _opened(data) as header:
            return header.width * header.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except Exception:
        # For damaged files PIL raises more kinds of exceptions than it documents.
        return 0


def _opened(data: bytes) -> Image.Image:
    """Opens an image with PIL, without its warning of more than half of ``MAX_PIXELS``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data))


def _decode(data: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), DECODE_FLAGS)
    except cv2.error:
        return None


def _decode_gif(data: bytes) -> np.ndarray | None:
    try:
        with _opened(data) as image:
            decoded = np.empty((image.height, image.width, 3), np.uint8)
            # PIL's RGB takes four bytes per pixel, and its copy to an array three more. In strips, little is needed
            # beside the result.
            rows = max(1, STRIP_PIXELS // image.width)
            for top in range(0, image.height, rows):
                strip = image.crop((0, top, image.width, min(top + rows, image.height)))
                decoded[top : top + rows] = np.asarray(strip.convert("RGB"))[..., ::-1]
            return decoded
    except Exception:
        return None


def _is_truncated_jpeg(data: bytes) -> bool:
    if not data.startswith(JPEG_START) or data.endswith(JPEG_END):
        return False
    # Bytes after the end marker are common and can be ignored; PIL finds out whether the image itself is complete.
    try:
        with _opened(data) as image:
            image.load()
    except OSError:
        return True
    except Exception:
        # For other damage PIL raises more kinds of exceptions than it documents. OpenCV decides.
        return False
    return False


def _has_too_many_scans(data: bytes, pixels: int) -> bool:
    """Whether a JPEG would take minutes to decode. A progressive JPEG passes over all of its pixels once per scan; ten
    scans are usual, and a few bytes suffice for one."""
    return data.startswith(JPEG_START) and data.count(JPEG_SCAN) * pixels > MAX_SCANS_OF_LARGEST * MAX_PIXELS


def _is_truncated_png(data: bytes) -> bool:
    """Whether chunks are missing. This finds damaged lengths too, for which OpenCV allocates up to four gigabytes."""
    if not data.startswith(PNG_START):
        return False
    position = len(PNG_START)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND":
            return False
        position += 12 + length  # a checksum follows
    return True
