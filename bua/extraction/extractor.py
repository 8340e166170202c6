"""Extracts the regions of images on one device: images are decoded ahead of the network, and those of the same size
run through it together."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from bua.errors import InputError
from bua.extraction.boxes_files import load_boxes
from bua.extraction.extractor_config import ExtractorConfig, RegionChoice
from bua.extraction.select import regions_from, regions_of_given
from bua.extraction.sources import ImageFile
from bua.io.images import read_image
from bua.modeling.boxes import clip_boxes
from bua.modeling.optimize import OptimizedDetector
from bua.structures import DetectorInput, Regions

# A mark in a stream of images. After it, no more images may come for a while, so the extractor finishes the images that
# it holds back for a fuller batch.
FLUSH_BATCHES = None

# Network pixels from one cell of res5's map of the whole image to the next. The second is for a dilated res5.
GRID_STRIDES = (32, 16)

# Number of images that may wait for others of their size, as a multiple of the batch size.
WAITING_BATCHES = 8


class Outcome(NamedTuple):
    """The regions of an image, or the reason why there are none."""

    image: ImageFile
    regions: Regions | None
    reason: str | None = None


class PreparedImage(NamedTuple):
    """An image file, and the detector's input or the reason why it cannot be read."""

    image: ImageFile
    inputs: DetectorInput | str


class Extractor:
    """Extracts the chosen regions of images with a detector that is optimised for inference."""

    def __init__(self, detector: OptimizedDetector, choice: RegionChoice, *, batch_size: int = 1, num_workers: int = 0):
        """
        Args:
            choice: Which regions of each image are extracted.
            batch_size: Number of images of the same size that go through the network together.
            num_workers: Number of threads that decode and resize images while the network runs.
        """
        self.detector, self.choice = detector, choice
        self.batch_size, self.num_workers = batch_size, num_workers
        self.given_boxes = None if choice.boxes is None else load_boxes(choice.boxes)

    @classmethod
    def from_config(cls, config: ExtractorConfig, device: str | None = None) -> "Extractor":
        """Loads the detector that ``config`` describes; arguments and errors as for ``load_detector``."""
        return cls(
            config.load_detector(device), config.choice, batch_size=config.batch_size, num_workers=config.num_workers
        )

    def __call__(self, images: Iterable[ImageFile | None]) -> Iterator[Outcome]:
        """Yields the outcome of each image: in the order given if the batch size is 1, otherwise in nearly that order,
        since images wait for others of their size.

        Args:
            images: Image files. After FLUSH_BATCHES among them, no image waits any longer.
        """
        threads = ThreadPoolExecutor(max(1, self.num_workers), "decode")
        try:
            prepared = _prepare_ahead(images, self._prepare, threads, self.num_workers + self.batch_size)
            for batch in _batches_of_one_size(prepared, self.batch_size):
                yield from self._extract(batch)
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
        """The largest number of images that are in progress at a time: being decoded, waiting for others of their size,
        and in the network."""
        return (self.num_workers + self.batch_size) + WAITING_BATCHES * self.batch_size + self.batch_size

    def _prepare(self, image: ImageFile) -> DetectorInput | str:
        try:
            return self.detector.prepare(read_image(image.path, image.span), image.image_id)
        except (InputError, OSError, MemoryError, cv2.error) as error:
            return _one_line(error)

    def _extract(self, batch: list[PreparedImage]) -> Iterator[Outcome]:
        """Yields the outcome of each image of a batch. A batch that does not fit into memory is done one by one."""
        readable = []
        for image, inputs in batch:
            if isinstance(inputs, str):
                yield Outcome(image, None, inputs)
            else:
                readable.append((image, inputs))
        if not readable:
            return
        try:
            outcomes = self._run_detector(readable)
        except torch.OutOfMemoryError as error:
            reason = _one_line(error)
        else:
            yield from outcomes
            return
        # This is outside the except block, because there the error would keep the batch in memory.
        if len(readable) == 1:
            yield Outcome(readable[0][0], None, reason)
        else:
            for image, inputs in readable:
                yield from self._extract([PreparedImage(image, inputs)])

    def _run_detector(self, batch: list[tuple[ImageFile, DetectorInput]]) -> list[Outcome]:
        images = [image for image, _ in batch]
        inputs = [image_inputs for _, image_inputs in batch]
        if self.choice.grid:
            return [
                Outcome(image, _grid_regions(feature_map, image_inputs, image.image_id, self.detector.convention))
                for image, image_inputs, feature_map in zip(images, inputs, self.detector.grid(inputs))
            ]
        if self.choice.boxes is not None:
            return self._describe_given_boxes(batch)
        return [
            Outcome(
                image,
                regions_from(
                    predictions,
                    image.image_id,
                    min_boxes=self.choice.min_boxes,
                    max_boxes=self.choice.max_boxes,
                    score_threshold=self.choice.score_threshold,
                    nms_threshold=self.choice.nms_threshold,
                    regressed=self.choice.regressed,
                    convention=self.detector.convention,
                ),
            )
            for image, predictions in zip(images, self.detector.infer(inputs, regress=self.choice.regressed))
        ]

    def _describe_given_boxes(self, batch: list[tuple[ImageFile, DetectorInput]]) -> list[Outcome]:
        assert self.given_boxes is not None
        outcomes, images, inputs, boxes = [], [], [], []
        for image, image_inputs in batch:
            try:
                boxes.append(torch.from_numpy(_boxes_of(self.given_boxes, image, f"{self.choice.boxes}")))
                images.append(image)
                inputs.append(image_inputs)
            except InputError as error:
                outcomes.append(Outcome(image, None, str(error)))
        predictions = self.detector.infer(inputs, boxes, regress=False) if inputs else []
        for image, image_predictions in zip(images, predictions):
            outcomes.append(Outcome(image, regions_of_given(image_predictions, image.image_id)))
        return outcomes


def _prepare_ahead(
    images: Iterable[ImageFile | None],
    prepare: Callable[[ImageFile], DetectorInput | str],
    threads: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[PreparedImage | None]:
    """Yields images in their order. While one is in use, ``threads`` prepare at most ``ahead`` others."""
    waiting: deque[tuple[ImageFile, Future[DetectorInput | str]]] = deque()
    for image in images:
        if image is not FLUSH_BATCHES:
            waiting.append((image, threads.submit(prepare, image)))
        while waiting and (image is FLUSH_BATCHES or len(waiting) > ahead):
            first, inputs = waiting.popleft()
            yield PreparedImage(first, inputs.result())
        if image is FLUSH_BATCHES:
            yield FLUSH_BATCHES
    for image, inputs in waiting:
        yield PreparedImage(image, inputs.result())


def _batches_of_one_size(images: Iterable[PreparedImage | None], size: int) -> Iterator[list[PreparedImage]]:
    """Yields batches of images with the same network size. An image that cannot be read is yielded at once."""
    groups: dict[torch.Size, list[PreparedImage]] = {}
    for prepared in images:
        if prepared is FLUSH_BATCHES:
            yield from groups.values()
            groups.clear()
            continue
        if isinstance(prepared.inputs, str):
            yield [prepared]
            continue
        shape = prepared.inputs.image.shape
        group = groups.setdefault(shape, [])
        group.append(prepared)
        if len(group) == size:
            yield groups.pop(shape)
        elif sum(map(len, groups.values())) > WAITING_BATCHES * size:
            # The group that has waited longest: dictionaries keep the order in which groups began.
            yield groups.pop(next(iter(groups)))
    yield from groups.values()


def _grid_regions(feature_map: torch.Tensor, inputs: DetectorInput, image_id: int | str, convention: str) -> Regions:
    """Returns the cells of a feature map [D, h, w] as regions, row by row. A box is the part of the image that the cell
    covers."""
    _, rows, columns = feature_map.shape
    long_side = max(inputs.image.shape[1:])
    stride = min(GRID_STRIDES, key=lambda stride: abs(long_side / stride - max(rows, columns)))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    corners = torch.stack([x, y, x + 1, y + 1], dim=-1).reshape(-1, 4) * float(stride)
    boxes = corners / torch.tensor([*inputs.scale, *inputs.scale])
    return Regions(
        image_id=image_id,
        width=inputs.width,
        height=inputs.height,
        boxes=clip_boxes(boxes, inputs.height, inputs.width, convention).numpy(),
        features=feature_map.flatten(1).T.float().cpu().contiguous().numpy(),
    )


def _boxes_of(given_boxes: Mapping[int | str, np.ndarray], image: ImageFile, source: str) -> np.ndarray:
    try:
        return given_boxes[image.image_id]
    except KeyError:
        raise InputError(f"{source}: no boxes for the image {image.image_id}; add them") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
