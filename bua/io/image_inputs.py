"""Images in the forms that callers have them in: files, addresses, bytes, PIL images, arrays and tensors."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bua.errors import InputError
from bua.io.connection import Cut, answer
from bua.io.images import MAX_PIXELS, decode_image, read_image

TIMEOUT_SECONDS = 30
# A larger answer of a server is not read to its end.
MAX_BYTES = 256 << 20

ImageInput = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor


def as_bgr(image: ImageInput) -> np.ndarray:
    """Returns an image as [H, W, 3] uint8 BGR, which the detector takes.

    Args:
        image: One of
            a path, or an address that begins with http:// or https://, of an image file;
            the bytes of an image file, or a binary file that is open for reading;
            a PIL image, of which the upper 8 of 16 bits are kept, as of a file; images of 32 bits are refused;
            an array [H, W, 3] or [H, W] (grey) uint8, RGB;
            a tensor [3, H, W], RGB: uint8, or floating point from 0 to 1.
            An array or a tensor with a fourth channel loses it.

    Raises:
        InputError: The image is none of these, or it cannot be read.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return decode_image(_fetch(image), image)
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, bytes):
        return decode_image(image, name_of(image))
    if hasattr(image, "read"):
        return decode_image(_read(image), name_of(image))
    if isinstance(image, Image.Image):
        return _bgr_of_rgb(_array_of_pil(image))
    if isinstance(image, torch.Tensor):
        return _bgr_of_rgb(_array_of_tensor(image))
    if isinstance(image, np.ndarray):
        return _bgr_of_rgb(image)
    raise InputError(
        f"image: is of type {type(image).__name__}; give a path, an address, bytes, a PIL image, an array or a tensor"
    )


def name_of(image: ImageInput) -> str:
    """Returns the name of an image in one of the forms that ``as_bgr`` takes, for messages."""
    if isinstance(image, str | Path):
        return str(image)
    if isinstance(image, bytes):
        return "the bytes of an image"
    return str(getattr(image, "name", "the open file")) if hasattr(image, "read") else "image"


def _read(file: Any) -> bytes:
    try:
        data = file.read()
    except (OSError, ValueError) as error:  # a ValueError if the file is closed, or is read as text and is no text
        reason = " ".join(str(error).split())
        raise InputError(f"{name_of(file)}: cannot be read ({reason}); give a binary file that is open") from error
    if not isinstance(data, bytes):
        raise InputError(f"{name_of(file)}: is not open as a binary file; open it with the mode 'rb'")
    return data


def _check_pixels(height: int, width: int) -> None:
    """Checks the size of an image as ``decode_image`` does. An array may be larger than the memory, as one that
    ``numpy.broadcast_to`` returns."""
    if height * width > MAX_PIXELS:
        raise InputError(
            f"image: has {width}x{height} pixels, more than {MAX_PIXELS // 1_000_000} million; make it smaller"
        )


def _array_of_pil(image: Image.Image) -> np.ndarray:
    _check_pixels(image.height, image.width)
    # PIL would convert these to white, or to black, as soon as the values are not those of 8 bits.
    if image.mode in ("I", "F"):
        raise InputError(f"image: is a PIL image of the mode {image.mode}, with 32 bits per pixel; convert it to RGB")
    try:
        if image.mode.startswith("I;16"):
            return (np.asarray(image) >> 8).astype(np.uint8)
        return np.asarray(image.convert("RGB"))
    # An image that was opened is read only now. For damaged files PIL raises more kinds of exceptions than it
    # documents.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{getattr(image, 'filename', '') or 'image'}: the PIL image cannot be decoded ({reason}); fetch it again"
        ) from error


def _bgr_of_rgb(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2 and image.dtype == np.uint8:
        _check_pixels(*image.shape)
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4) or 0 in image.shape:
        raise InputError(
            f"image: the array has shape {image.shape} and dtype {image.dtype}; give [H, W, 3] uint8 in the order RGB"
        )
    _check_pixels(*image.shape[:2])
    return np.ascontiguousarray(image[:, :, 2::-1])


def _array_of_tensor(image: torch.Tensor) -> np.ndarray:
    """Returns a tensor [C, H, W] as an array [H, W, C] uint8."""
    if image.layout != torch.strided or image.is_nested or image.is_meta or image.is_quantized:
        raise InputError("image: the tensor is sparse, nested, quantized or without values; give a usual one")
    if image.ndim != 3 or image.shape[0] not in (3, 4):
        raise InputError(f"image: the tensor has shape {tuple(image.shape)}; give [3, H, W] in the order RGB")
    _check_pixels(*image.shape[1:])
    image = image.detach().cpu()
    if image.is_floating_point():
        low, high = (float(value) for value in image.aminmax()) if image.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"image: the tensor's values lie between {low:g} and {high:g}; give values from 0 to 1, or uint8"
            )
        image = (image * 255).round().to(torch.uint8)
    array: np.ndarray = image.permute(1, 2, 0).numpy()
    return array


def _fetch(address: str) -> bytes:
    data = bytearray()
    try:
        headers = {"User-Agent": "bua", "Accept-Encoding": "identity"}
        with answer(address, headers, TIMEOUT_SECONDS, allow_downgrade=False) as reply:
            for block in reply.blocks():
                data += block
                if len(data) > MAX_BYTES:
                    raise InputError(
                        f"{address}: has more than {MAX_BYTES >> 20} MiB; download it, and give a smaller file"
                    )
    except Cut as error:
        raise InputError(f"{address}: cannot be downloaded ({error}); check the address") from error
    if reply.length is not None and len(data) < reply.length:
        raise InputError(f"{address}: only {len(data)} of {reply.length} bytes came; try again")
    return bytes(data)
