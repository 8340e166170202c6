"""Fuzzing of images: everything that decodes bytes of image files."""

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from cases import Finding, Target
from mutations import Files, mutate_bytes, mutate_png
from PIL import Image

from bua.io.image_inputs import as_bgr
from bua.io.images import MAX_PIXELS, resize_image

FILE = "image.bin"
# OpenCV holds an image twice when it returns it. The rest is for the decoder.
MEMORY = 2 * 3 * MAX_PIXELS + (256 << 20)


def _samples() -> list[Files]:
    """Images of 24 x 17 pixels in all kinds of files that OpenCV and PIL read."""
    noise = np.random.default_rng(0).integers(0, 255, (17, 24, 4), np.uint8)
    smooth = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], 17, axis=0).repeat(3, axis=2)
    rgb, grey, rgba = Image.fromarray(noise[..., :3]), Image.fromarray(noise[..., 0]), Image.fromarray(noise)
    soft = Image.fromarray(smooth)
    frames = {"save_all": True, "append_images": [rgb.convert("P"), soft.convert("P")]}
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        _saved(rgb, "JPEG"),
        _saved(soft, "JPEG", progressive=True, exif=exif),
        _saved(grey, "JPEG", restart_marker_blocks=1),
        _saved(rgb.convert("CMYK"), "JPEG"),
        _saved(rgb, "PNG"),
        _saved(rgba, "PNG"),
        _saved(rgb.convert("P"), "PNG", transparency=0),
        _saved(grey.convert("I;16"), "PNG"),
        _saved(grey.convert("1"), "PNG"),
        _saved(rgb, "GIF"),
        _saved(soft.convert("P"), "GIF", **frames, interlace=1),
        _saved(rgb, "WEBP"),
        _saved(rgba, "WEBP", lossless=True),
        _saved(soft, "WEBP", save_all=True, append_images=[rgb]),
        _saved(rgb, "BMP"),
        _saved(rgb.convert("P"), "BMP"),
        _saved(rgb, "TIFF"),
        _saved(rgb, "TIFF", compression="tiff_lzw"),
        _saved(grey, "TIFF", compression="tiff_adobe_deflate"),
        _saved(rgb, "PPM"),
    ]
    return [{FILE: data} for data in files]


def _saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _mutate(random: Random, files: Files) -> Files:
    data = files[FILE]
    mutate: Callable[[Random, bytes], bytes] = mutate_bytes
    if data.startswith(b"\x89PNG") and random.random() < 0.5:
        mutate = mutate_png
    return {FILE: mutate(random, data)}


def _check(sample: Files) -> str:
    image = as_bgr(Path(FILE))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not 0 < image.size <= 3 * MAX_PIXELS:
        raise Finding(f"an image of shape {image.shape}, {image.dtype}")
    if image.size < 3 << 20:
        resize_image(image, 60, 100, "caffe")
    original = _decoded(sample[FILE])
    if image.shape == original.shape and np.array_equal(image, original):
        return "correct"
    data = Path(FILE).read_bytes()
    if sample[FILE].startswith(data):
        raise Finding(f"a file that is truncated to {len(data)} of {len(sample[FILE])} bytes gives another image")
    return "changed"


@cache
def _decoded(data: bytes) -> np.ndarray:
    return as_bgr(data)


TARGETS = {"images": Target("images", _samples, _mutate, _check, MEMORY)}
