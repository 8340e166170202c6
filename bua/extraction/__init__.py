"""From images to region features."""

from bua.extraction.boxes_files import load_boxes
from bua.extraction.extractor import Extractor, Outcome
from bua.extraction.job import Job, Wanted
from bua.extraction.run import Summary, extract
from bua.extraction.select import regions_from, regions_of_given, select_regions
from bua.extraction.sources import ImageFile, list_images

__all__ = [
    "Extractor",
    "ImageFile",
    "Job",
    "Outcome",
    "Summary",
    "Wanted",
    "extract",
    "list_images",
    "load_boxes",
    "regions_from",
    "regions_of_given",
    "select_regions",
]
