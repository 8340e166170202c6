"""Extraction of region features from images."""

from bua.extraction.boxes_files import load_boxes
from bua.extraction.extractor import Extractor, Outcome
from bua.extraction.extractor_config import ExtractorConfig, RegionChoice
from bua.extraction.progress import ExtractionSummary
from bua.extraction.run import extract
from bua.extraction.select import regions_from, regions_of_given, select_regions
from bua.extraction.sources import ImageFile, list_images

__all__ = [
    "ExtractionSummary",
    "Extractor",
    "ExtractorConfig",
    "ImageFile",
    "Outcome",
    "RegionChoice",
    "extract",
    "list_images",
    "load_boxes",
    "regions_from",
    "regions_of_given",
    "select_regions",
]
