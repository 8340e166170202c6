"""Limits how many pixels several threads have in memory at the same time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bua.io.images import MAX_PIXELS, decode_image, num_pixels, read_encoded


class PixelBudget:
    """Reads images in several threads, and makes threads wait so that the images that are decoded at the same time do
    not have more than ``pixels`` pixels together.

    A compressed file says nothing about the memory that its image needs: a PNG of 22 KB can hold the largest image that
    ``read_image`` takes, which needs half a gigabyte, and more while it is resized. Images of usual sizes never wait.
    """

    def __init__(self, pixels: int = MAX_PIXELS):
        self._free = pixels
        self._largest = pixels
        self._changed = threading.Condition()

    @contextmanager
    def image(self, path: str | Path, span: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
        """Returns an image as ``read_image`` does, for the duration of the block, in which it counts as in memory.

        Raises:
            InputError: As for ``read_image``.
        """
        data, name = read_encoded(path, span)
        # An image that decode_image refuses may have more.
        pixels = min(num_pixels(data), self._largest)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield decode_image(data, name)
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()
