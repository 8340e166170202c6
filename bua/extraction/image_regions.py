"""The regions of single image files, for the models of the three tasks."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bua.extraction.extractor import Extractor
from bua.extraction.extractor_config import ExtractorConfig
from bua.io.images import read_image
from bua.structures import Regions


def image_regions(images: Iterable[str | Path], config: ExtractorConfig) -> Iterator[tuple[np.ndarray, Regions]]:
    """Yields each image file, decoded to [H, W, 3] uint8 BGR, with its regions, whose ``image_id`` is the path.

    The detector is loaded once.

    Raises:
        InputError: A file cannot be read.
    """
    extractor = Extractor.from_config(config)
    for image in images:
        regions = extractor.regions_of(image)
        yield read_image(image), replace(regions, image_id=str(image))
