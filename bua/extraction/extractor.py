"""From images to their regions, on one device: decoding ahead, and images of one size together."""

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
from bua.extraction.extractor_config import RegionChoice
from bua.extraction.select import regions_from, regions_of_given
from bua.extraction.sources import ImageFile
from bua.io.images import read_image
from bua.modeling import Detector
from bua.modeling.boxes import clip_boxes
from bua.structures import DetectorInput, Regions

# In a stream of images: no more may come for a while, so nothing is to be held back for a fuller batch.
FLUSH = None

# Network pixels from one cell of res5's map of the whole image to the next; the second where res5 is dilated.
GRID_STRIDES = (32, 16)

# Images that wait for others of their size, as a multiple of the batch size.
WINDOW = 8


class Outcome(NamedTuple):
    """An image's regions, or the reason why there are none."""

    image: ImageFile
    regions: Regions | None
    reason: str | None = None


class Extractor:
    """A detector that is told what of each image is wanted."""

    def __init__(self, detector: Detector, choice: RegionChoice, *, batch_size: int = 1, num_workers: int = 0):
        self.detector, self.choice = detector, choice
        self.batch_size, self.num_workers = batch_size, num_workers
        self.given = None if choice.boxes is None else load_boxes(choice.boxes)

    def __call__(self, images: Iterable[ImageFile | None]) -> Iterator[Outcome]:
        """The outcome of each image. With a batch size of 1 in the order given, otherwise nearly so: images wait
        for others of their size.

        Args:
            images: FLUSH among them lets no image wait any longer.
        """
        threads = ThreadPoolExecutor(max(1, self.num_workers), "decode")
        try:
            prepared = _ahead(images, self._prepare, threads, self.num_workers + self.batch_size)
            for batch in _batches(prepared, self.batch_size):
                yield from self._outcomes(batch)
        finally:
            threads.shutdown(cancel_futures=True)

    def regions_of(self, path: str | Path) -> Regions:
        """The regions of one image file, under id 0.

        Raises:
            InputError: it cannot be read.
        """
        ((_, regions, reason),) = self([ImageFile(str(path), 0)])
        if regions is None:
            raise InputError(reason)
        return regions

    @property
    def held(self) -> int:
        """The largest number of images that are in work at a time: being decoded, waiting for others of their size,
        and in the network."""
        return (self.num_workers + self.batch_size) + WINDOW * self.batch_size + self.batch_size

    def _prepare(self, image: ImageFile) -> DetectorInput | str:
        try:
            return self.detector.prepare(read_image(image.path, image.span), image.image_id)
        except (InputError, OSError, MemoryError, cv2.error) as error:
            return _one_line(error)

    def _outcomes(self, batch: list[tuple[ImageFile, DetectorInput | str]]) -> Iterator[Outcome]:
        images = []
        for image, picture in batch:
            if isinstance(picture, str):
                yield Outcome(image, None, picture)
            else:
                images.append((image, picture))
        if not images:
            return
        try:
            outcomes = self._regions(images)
        except torch.OutOfMemoryError as error:
            reason = _one_line(error)
        else:
            yield from outcomes
            return
        # Outside the except block, in which the error would keep the memory of the batch.
        if len(images) == 1:
            yield Outcome(images[0][0], None, reason)
        else:
            for single in images:
                yield from self._outcomes([single])

    def _regions(self, images: list[tuple[ImageFile, DetectorInput]]) -> list[Outcome]:
        if self.choice.grid:
            maps = self.detector.grid([picture for _, picture in images])
            return [
                Outcome(image, _grid_regions(grid, picture, image.image_id, self.detector.convention))
                for (image, picture), grid in zip(images, maps)
            ]
        if self.given is not None:
            return self._given_regions(images)
        predictions = self.detector.infer([picture for _, picture in images], regress=self.choice.regressed)
        return [
            Outcome(
                image,
                regions_from(
                    prediction,
                    image.image_id,
                    min_boxes=self.choice.min_boxes,
                    max_boxes=self.choice.max_boxes,
                    score_threshold=self.choice.score_threshold,
                    nms_threshold=self.choice.nms_threshold,
                    regressed=self.choice.regressed,
                    convention=self.detector.convention,
                ),
            )
            for (image, _), prediction in zip(images, predictions)
        ]

    def _given_regions(self, images: list[tuple[ImageFile, DetectorInput]]) -> list[Outcome]:
        outcomes, known, boxes = [], [], []
        for image, picture in images:
            try:
                boxes.append(torch.from_numpy(_boxes_of(self.given, image, self.choice.boxes)))
                known.append((image, picture))
            except InputError as error:
                outcomes.append(Outcome(image, None, str(error)))
        predictions = self.detector.infer([picture for _, picture in known], boxes, regress=False) if known else []
        for (image, _), prediction in zip(known, predictions):
            outcomes.append(Outcome(image, regions_of_given(prediction, image.image_id)))
        return outcomes


def _ahead(
    images: Iterable[ImageFile | None], prepare: Callable, threads: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[ImageFile, DetectorInput | str] | None]:
    """Images in their order, decoded by ``threads`` while earlier ones are in work."""
    waiting: deque[tuple[ImageFile, Future]] = deque()
    for image in images:
        if image is not FLUSH:
            waiting.append((image, threads.submit(prepare, image)))
        while waiting and (image is FLUSH or len(waiting) > ahead):
            first, picture = waiting.popleft()
            yield first, picture.result()
        if image is FLUSH:
            yield FLUSH
    for image, picture in waiting:
        yield image, picture.result()


def _batches(images: Iterator, size: int) -> Iterator[list]:
    """Images of one network size in batches; ones that cannot be read at once."""
    groups: dict[torch.Size, list] = {}
    for item in images:
        if item is FLUSH:
            yield from groups.values()
            groups.clear()
            continue
        _, picture = item
        if isinstance(picture, str):
            yield [item]
            continue
        group = groups.setdefault(picture.image.shape, [])
        group.append(item)
        if len(group) == size:
            yield groups.pop(picture.image.shape)
        elif sum(map(len, groups.values())) > WINDOW * size:
            # The group that has waited longest: dictionaries keep the order in which groups began.
            yield groups.pop(next(iter(groups)))
    yield from groups.values()


def _grid_regions(grid: torch.Tensor, picture: DetectorInput, image_id: int | str, convention: str) -> Regions:
    """The cells of a feature map [D, h, w] as regions, row by row; boxes are what each cell covers of the image."""
    _, rows, columns = grid.shape
    long_side = max(picture.image.shape[1:])
    stride = min(GRID_STRIDES, key=lambda stride: abs(long_side / stride - max(rows, columns)))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    corners = torch.stack([x, y, x + 1, y + 1], dim=-1).reshape(-1, 4) * float(stride)
    boxes = corners / torch.tensor([*picture.scale, *picture.scale])
    return Regions(
        image_id=image_id,
        width=picture.width,
        height=picture.height,
        boxes=clip_boxes(boxes, picture.height, picture.width, convention).numpy(),
        features=grid.flatten(1).T.float().cpu().contiguous().numpy(),
    )


def _boxes_of(given: Mapping[int | str, np.ndarray], image: ImageFile, source: str) -> np.ndarray:
    try:
        return given[image.image_id]
    except KeyError:
        raise InputError(f"{source}: no boxes for the image {image.image_id}; add them") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
