"""Files of features for tests."""

from collections.abc import Iterable
from pathlib import Path

from bua.features import FORMATS, open_writer
from bua.features.store import GRID_FORMATS
from bua.structures import Regions

# The formats that hold the regions of any boxes.
REGION_FORMATS = [format for format in FORMATS if format not in GRID_FORMATS]


def write_features(path: Path, images: Iterable[Regions], format: str = "flat-fp16") -> Path:
    """Writes the regions of images to a file or folder, and returns its path."""
    with open_writer(path, format) as writer:
        for regions in images:
            writer.append(regions)
        writer.finish()
    return path
