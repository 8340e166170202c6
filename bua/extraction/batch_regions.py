"""The regions of the images of a batch. On a GPU, what is chosen is copied to the host once for the whole batch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bua.errors import InputError
from bua.extraction.extractor_config import RegionChoice
from bua.extraction.pipeline import Outcome
from bua.extraction.select import boxes_of_best_class, choose_rows, regions_of_given
from bua.extraction.sources import ImageFile
from bua.modeling.boxes import clip_boxes
from bua.modeling.region_detector import RegionDetector
from bua.structures import DetectorInput, RegionPredictions, Regions
from bua.upload import upload

# Network pixels from one cell of res5's map of the whole image to the next. The second is for a dilated res5.
GRID_STRIDES = (32, 16)


@runtime_checkable
class RegionChooser(Protocol):
    """A detector that chooses and describes regions in its own way, such as VinVL's."""

    def choose(self, batch: list[DetectorInput], choice: RegionChoice) -> list[Regions]:
        """Returns the regions of each image that ``prepare`` resized, on the host."""

    def describe(self, batch: list[DetectorInput], boxes: list[Tensor]) -> list[Regions]:
        """Returns the regions of given boxes [N, 4] of each image, in its pixels, in their order, on the host."""


def select_batch(
    detector: RegionDetector, choice: RegionChoice, images: list[ImageFile], inputs: list[DetectorInput]
) -> list[Outcome]:
    """Returns the outcome of each image with the regions that ``choice`` selects.

    Args:
        inputs: The prepared images. If they are in pinned memory, their way to a GPU is not waited for.
    """
    if isinstance(detector, RegionChooser):
        return _outcomes(images, detector.choose(inputs, choice))
    predictions = detector.infer(inputs, regress=choice.regressed)
    boxes = [boxes_of_best_class(x) if choice.regressed else x.proposals for x in predictions]
    arrays = to_host([*boxes, *(x.class_probs for x in predictions)])
    chosen, kept = [], []
    for x, image_boxes, class_probs in zip(predictions, arrays, arrays[len(boxes) :]):
        rows = choose_rows(
            image_boxes,
            class_probs,
            min_boxes=choice.min_boxes,
            max_boxes=choice.max_boxes,
            score_threshold=choice.score_threshold,
            nms_threshold=choice.nms_threshold,
            convention=detector.convention,
        )
        kept.append(rows)
        on_host = (torch.from_numpy(values[rows]) for values in (image_boxes, class_probs))
        chosen.append(replace(x, proposals=next(on_host), class_probs=next(on_host), boxes=None))
    rows_of_images = torch.split(
        upload(torch.from_numpy(np.concatenate(kept)), detector.device), [len(rows) for rows in kept]
    )
    for x, rows_on_device in zip(chosen, rows_of_images):
        x.features = x.features[rows_on_device]
        if x.attribute_probs is not None:
            x.attribute_probs = x.attribute_probs[rows_on_device]
    return _label(chosen, images, choice.keep_probabilities)


def describe_batch(
    detector: RegionDetector,
    given_boxes: Mapping[int | str, np.ndarray],
    source: str | None,
    images: list[ImageFile],
    inputs: list[DetectorInput],
    keep_probabilities: bool = False,
) -> list[Outcome]:
    """Returns the outcome of each image with all of its given boxes as regions; an image without any fails.

    Args:
        given_boxes: Boxes [N, 4] by the image's id, as ``bua.extraction.load_boxes`` returns them.
        source: The file of these boxes, for messages.
        keep_probabilities: As in ``RegionChoice``.
    """
    failed, described, boxes = {}, [], []
    for i, image in enumerate(images):
        try:
            boxes.append(torch.from_numpy(given_boxes[image.image_id]))
            described.append(i)
        except KeyError:
            failed[i] = Outcome(image, None, f"{source}: no boxes for the image {image.image_id}; add them")
        except InputError as error:
            failed[i] = Outcome(image, None, str(error))
    if not described:
        return list(failed.values())
    if detector.device.type == "cuda":
        boxes = [image_boxes.pin_memory() for image_boxes in boxes]
    described_images, described_inputs = [images[i] for i in described], [inputs[i] for i in described]
    if isinstance(detector, RegionChooser):
        outcomes = _outcomes(described_images, detector.describe(described_inputs, boxes))
    else:
        predictions = detector.infer(described_inputs, boxes, regress=False)
        outcomes = _label(predictions, described_images, keep_probabilities)
    done = dict(zip(described, outcomes))
    return [done[i] if i in done else failed[i] for i in range(len(images))]


def grid_batch(detector: RegionDetector, images: list[ImageFile], inputs: list[DetectorInput]) -> list[Outcome]:
    """Returns the outcome of each image with the cells of its feature map as regions, row by row. A box is the part of
    the image that the cell covers."""
    feature_maps = detector.grid(inputs)
    features = to_host([feature_map.flatten(1).T.float() for feature_map in feature_maps])
    outcomes = []
    for image, x, feature_map, cells in zip(images, inputs, feature_maps, features):
        _, rows, columns = feature_map.shape
        boxes = _cells(rows, columns, x, detector.convention)
        outcomes.append(Outcome(image, Regions(image.image_id, x.width, x.height, boxes, cells)))
    return outcomes


def to_host(values: Sequence[Tensor]) -> list[np.ndarray]:
    """Returns copies of float32 tensors as arrays. It waits for a GPU once, for the work of the current stream."""
    if not values or values[0].device.type != "cuda":
        return [value.contiguous().numpy().copy() for value in values]
    packed = torch.cat([value.flatten() for value in values])
    pinned = torch.empty(packed.shape, pin_memory=True).copy_(packed, non_blocking=True)
    # The thread sleeps until then, where a copy that blocks would keep a core busy.
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(packed.device))
    done.synchronize()
    # Pinned memory is scarce, so that the arrays get memory of their own.
    parts = pinned.split([value.numel() for value in values])  # type: ignore[no-untyped-call]
    return [part.view(value.shape).numpy().copy() for part, value in zip(parts, values)]


def _outcomes(images: list[ImageFile], regions: list[Regions]) -> list[Outcome]:
    return [Outcome(image, replace(one, image_id=image.image_id)) for image, one in zip(images, regions)]


def _label(predictions: list[RegionPredictions], images: list[ImageFile], keep_probabilities: bool) -> list[Outcome]:
    """Returns all regions of each image, after one copy of those fields that are on the device of the features."""
    copied = [
        (x, field)
        for x in predictions
        for field in ("proposals", "class_probs", "features", "attribute_probs")
        if getattr(x, field) is not None and getattr(x, field).device == x.features.device
    ]
    for (x, field), values in zip(copied, to_host([getattr(x, field).float() for x, field in copied])):
        setattr(x, field, torch.from_numpy(values))
    return [
        Outcome(image, regions_of_given(x, image.image_id, keep_probabilities=keep_probabilities))
        for image, x in zip(images, predictions)
    ]


def _cells(rows: int, columns: int, inputs: DetectorInput, convention: str) -> np.ndarray:
    """Returns the boxes [rows * columns, 4] of the cells of a feature map."""
    long_side = max(inputs.image.shape[1:])
    stride = min(GRID_STRIDES, key=lambda stride: abs(long_side / stride - max(rows, columns)))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    corners = torch.stack([x, y, x + 1, y + 1], dim=-1).reshape(-1, 4) * float(stride)
    boxes = clip_boxes(corners / torch.tensor([*inputs.scale, *inputs.scale]), inputs.height, inputs.width, convention)
    return boxes.numpy()
