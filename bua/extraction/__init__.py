"""From pictures to region features."""

from bua.extraction.extractor import Summary, extract, extract_with
from bua.extraction.select import regions_from, select_regions
from bua.extraction.sources import ImageFile, list_images

__all__ = [
    "ImageFile",
    "Summary",
    "extract",
    "extract_with",
    "list_images",
    "regions_from",
    "select_regions",
]
