"""Decodes the fields of MMF's files and databases, which ``bua.features.mmf`` describes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bua.errors import shown
from bua.features.indexed import NO_BOXES, without_boxes
from bua.features.labels import FLOAT, INTEGER, LXMERT_LABELS, best_objects, numbers
from bua.structures import Regions

# LXMERT's names of the labels, except for the objects, for which MMF has another name.
MMF_LABELS = {"objects" if name == "objects_id" else name: label for name, label in LXMERT_LABELS.items()}

# Columns of ``cls_prob`` with the background: Visual Genome has 1600 classes.
_WITH_BACKGROUND = 1601
_RESIZED = (
    "has the sizes of the resized images with boxes in pixels of the original images, as MMF's Faster R-CNN writes"
)


def regions_of_info(
    image_id: int | str, features: Any, info: dict[str, Any], note: Callable[[str], None], background: bool = False
) -> Regions:
    """Returns the regions of one image from the fields of MMF.

    Args:
        features: [n, d].
        info: The other fields. Without "bbox", the regions have no boxes.
        note: Is called with a message about what all images of the files lack.
        background: Whether the first column of "cls_prob" is the background, whatever their number.

    Raises:
        KeyError: A field is missing.
        ValueError: A field cannot be used; the message names it. Other fields than MMF's can raise other exceptions.
    """
    features = numbers("features", features)
    if features.ndim != 2:
        raise ValueError(f"features has the shape {features.shape} instead of (n, d)")
    if "bbox" not in info and not info.keys() & {"image_width", "objects"}:
        note(NO_BOXES)
        return without_boxes(image_id, features)
    boxes = numbers("bbox", info["bbox"])
    width, height = int(info["image_width"]), int(info["image_height"])
    probabilities = None if info.get("cls_prob") is None else numbers("cls_prob", info["cls_prob"])
    if probabilities is not None and probabilities.ndim == 1:
        note(_RESIZED)
        features = features[: len(boxes)]  # MMF limits the number of all other fields
    count = len(features)
    if boxes.shape == (count, 6):
        boxes = boxes[:, :4] * np.array([width, height] * 2, np.float32)
    if boxes.shape != (count, 4):
        raise ValueError(
            f"bbox has the shape {boxes.shape} and the features {features.shape}, instead of (n, 4) and (n, d)"
        )
    check_count(info, count)
    labels = object_labels(info, probabilities, count, background)
    for name, (field, _) in MMF_LABELS.items():
        if field in labels and labels[field].shape != (count,):
            raise ValueError(f"{name} has the shape {labels[field].shape} instead of ({count},)")
    return Regions(image_id, width, height, boxes, features, **labels)


def check_count(info: dict[str, Any], count: int) -> None:
    """Checks the number ``num_boxes`` of the fields of MMF, vilbert-multi-task or Volta, if it is there. It counts only
    the boxes with a score over the threshold, while the fields have all of them. In bua's files they are equal.

    Raises:
        ValueError: It is larger than the number of boxes, ``count``, or smaller in a file of bua.
    """
    claimed = info.get("num_boxes")
    # MMF's Faster R-CNN writes its option --num_features instead.
    if not isinstance(claimed, int | np.integer) or np.ndim(info.get("cls_prob", 0)) == 1:
        return
    if claimed > count or ("objects_conf" in info and claimed != count):
        raise ValueError(f"num_boxes is {shown(int(claimed))}, but there are {count} boxes")


def object_labels(
    info: dict[str, Any], probabilities: np.ndarray | None, count: int, background: bool
) -> dict[str, np.ndarray]:
    """Returns the labels by the fields of Regions, from the fields ``info`` of MMF.

    Args:
        probabilities: "cls_prob" of ``info``, float32, or None.
        count: Number of regions.
        background: As for ``regions_of_info``.

    Raises:
        ValueError: The probabilities have another shape.
    """
    labels = {
        field: numbers(key, info[key], dtype) for key, (field, dtype) in MMF_LABELS.items() if info.get(key) is not None
    }
    if "labels" in info:  # VinVL's, which count from 1
        labels |= {
            "object_ids": np.asarray(info["labels"], INTEGER) - 1,
            "object_scores": np.asarray(info["scores"], FLOAT),
        }
        best = np.asarray(info.get("attr_labels", np.zeros((count, 1))), INTEGER)[:, 0] - 1
        if count and (best >= 0).all():
            labels |= {"attribute_ids": best, "attribute_scores": np.asarray(info["attr_scores"], FLOAT)[:, 0]}
    if probabilities is None:
        return labels
    if probabilities.ndim == 1:
        return labels | {"object_scores": probabilities}
    ids = labels.get("object_ids")
    ours = "objects_conf" in info or _lack_background(ids, probabilities)
    if background or ours or probabilities.shape[1:] == (_WITH_BACKGROUND,):
        # ``objects`` counts from the background here, except in files of bua.
        best_labels = best_objects(probabilities, count)
        return best_labels | labels if ours else labels | best_labels
    if probabilities.ndim != 2 or len(probabilities) != count:
        raise ValueError(f"cls_prob has the shape {probabilities.shape} instead of ({count}, classes)")
    if ids is not None and ids.shape == (count,) and "object_scores" not in labels:
        if count and ids.max() >= probabilities.shape[1]:
            raise ValueError(f"cls_prob has the shape {probabilities.shape} instead of ({count}, classes)")
        labels["object_scores"] = probabilities[np.arange(count), ids]
    return labels | {"class_probs": probabilities.astype(np.float16)}


def _lack_background(ids: np.ndarray | None, probabilities: np.ndarray) -> bool:
    """Whether objects do not count the background although it is the first column of their probabilities: so it is in
    files of bua from which another program has copied only the fields of MMF, whatever the number of classes. In other
    files, the objects are the best columns."""
    rows = np.arange(len(probabilities))
    if ids is None or probabilities.ndim != 2 or ids.shape != rows.shape or not len(rows):
        return False
    if ids.min() < 0 or ids.max() + 1 >= probabilities.shape[1]:
        return False
    best = (probabilities[rows, ids] == probabilities.max(axis=1)).all()
    return bool(not best and (probabilities[rows, ids + 1] == probabilities[:, 1:].max(axis=1)).all())
