"""Extracts the regions of images on one device: images are decoded ahead of the network, and those of a batch run
through it together."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import torch

from bua.errors import InputError
from bua.extraction.batch_regions import RegionChooser, describe_batch, grid_batch, select_batch
from bua.extraction.boxes_files import load_boxes
from bua.extraction.described_boxes import load_described_boxes
from bua.extraction.extractor_config import ExtractorConfig, RegionChoice
from bua.extraction.pipeline import (
    FLUSH_BATCHES,
    Lanes,
    Outcome,
    PreparedImage,
    TooLarge,
    prepare_ahead,
    run_one_by_one,
    take_batches,
)
from bua.extraction.sources import ImageFile
from bua.io.images import naming_image
from bua.io.pixel_budget import PixelBudget
from bua.modeling.region_detector import RegionDetector
from bua.structures import DetectorInput, Regions

__all__ = ["FLUSH_BATCHES", "Extractor", "Outcome"]

# Batch size by the kind of device. On a CPU, one image at a time is as fast as several.
BATCH_SIZES = {"cpu": 1, "cuda": 8}

# Number of batches that are in progress at a time on a GPU. Two keep it busy where the host takes no longer than the
# GPU for a batch; the third is for batches of which one takes longer.
LANES = 3

NO_PROBABILITIES = (
    "--keep-probabilities: a detector that chooses its own regions does not give the probabilities of all classes; "
    "leave it out, or use another detector, without --boxes-from"
)


class Extractor:
    """Extracts the chosen regions of images with a detector of either engine."""

    def __init__(
        self,
        detector: RegionDetector,
        choice: RegionChoice,
        *,
        batch_size: int | None = None,
        num_workers: int = 0,
    ):
        """
        Args:
            choice: Which regions of each image are extracted.
            batch_size: Number of images that go through the network together; by default one of ``BATCH_SIZES``. It
                does not change the regions.
            num_workers: Number of threads that decode and resize images while the network runs.
        """
        if choice.keep_probabilities and isinstance(detector, RegionChooser):
            raise InputError(NO_PROBABILITIES)
        self.detector, self.choice = detector, choice
        self.device = detector.device
        self.batch_size = batch_size or BATCH_SIZES.get(self.device.type, 1)
        self.num_workers = num_workers
        self._budget = PixelBudget()
        self.given_boxes = None if choice.boxes is None else load_boxes(choice.boxes)
        self._lanes = Lanes(self.device, LANES) if self.device.type == "cuda" else None

    @classmethod
    def from_config(cls, config: ExtractorConfig, device: str | None = None) -> "Extractor":
        """Loads the detector that ``config`` describes; arguments and errors as for ``load_detector``."""
        load = config.load_detector if config.boxes_from is None else partial(load_described_boxes, config)
        return cls(load(device), config.choice, batch_size=config.batch_size, num_workers=config.num_workers)

    def __call__(self, images: Iterable[ImageFile | None]) -> Iterator[Outcome]:
        """Yields the outcome of each image, in the order given.

        Args:
            images: Image files. After FLUSH_BATCHES among them, no image waits any longer.
        """
        threads = ThreadPoolExecutor(max(1, self.num_workers), "decode")
        try:
            prepared = prepare_ahead(images, self._prepare, threads, self._num_ahead)
            batches = take_batches(prepared, self.batch_size)
            # On a CPU, threads that run the network at the same time would take its cores from each other.
            run = run_one_by_one if self._lanes is None else self._lanes.run
            yield from run(batches, self._extract)
        finally:
            threads.shutdown(cancel_futures=True)

    def regions_of(self, path: str | Path) -> Regions:
        """Returns the regions of one image file, with the image id 0.

        Raises:
            InputError: The image cannot be read.
        """
        ((_, regions, reason),) = self([ImageFile(str(path), 0)])
        if regions is None:
            raise InputError(reason)
        return regions

    @property
    def max_in_progress(self) -> int:
        """The largest number of images that are in progress at a time: being decoded, waiting for a full batch, and in
        the network."""
        return self._num_ahead + self.batch_size * (1 if self._lanes is None else 1 + self._lanes.number)

    @property
    def _num_ahead(self) -> int:
        return self.num_workers + self.batch_size

    def _prepare(self, image: ImageFile) -> DetectorInput | str:
        try:
            with naming_image(image.path), self._budget.image(image.path, image.span) as decoded:
                inputs = self.detector.prepare(decoded, image.image_id)
        except (InputError, OSError, MemoryError, cv2.error) as error:
            return _one_line(error)
        if self.device.type == "cuda":
            return replace(inputs, image=inputs.image.pin_memory())
        return inputs

    def _extract(self, batch: list[PreparedImage]) -> list[Outcome] | TooLarge:
        """Returns the outcome of each image of a batch, in its order, computed on the current stream."""
        readable = [(image, inputs) for image, inputs in batch if isinstance(inputs, DetectorInput)]
        try:
            outcomes = iter(self._run_detector(*map(list, zip(*readable))) if readable else ())
        except torch.OutOfMemoryError as error:
            return TooLarge(_one_line(error))
        return [
            next(outcomes) if isinstance(inputs, DetectorInput) else Outcome(image, None, inputs)
            for image, inputs in batch
        ]

    @torch.inference_mode()
    def _run_detector(self, images: list[ImageFile], inputs: list[DetectorInput]) -> list[Outcome]:
        if self.choice.grid:
            return grid_batch(self.detector, images, inputs)
        if self.given_boxes is not None:
            source, keep = self.choice.boxes, self.choice.keep_probabilities
            return describe_batch(self.detector, self.given_boxes, source, images, inputs, keep)
        return select_batch(self.detector, self.choice, images, inputs)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
