"""Decodes the npz files of other programs than MILVLG's, which are recognised by the names of their arrays.

- X-modaler (YehLi/xmodaler, tools/generate_npz.py): ``features`` [n, d], ``boxes`` [n, 4] in pixels, ``image_w`` and
  ``image_h`` [1], and ``cls_prob`` [n, 1601] with the background in the first column.
- self-critical.pytorch (scripts/make_bu_data.py) has ``feat`` [n, d] (or ``z``) in ``cocobu_att/<id>.npz``, and the
  boxes in ``cocobu_box/<id>.npy``. X-modaler's tools/create_feats.py writes ``feat`` alone. Both lack image sizes.
- UNITER (ChenRocks/BUTD-UNITER-NLVR2, tools/generate_npz.py): ``features`` [n, d], ``norm_bb`` [n, 6] (x1/w, y1/h,
  x2/w, y2/h, width/w, height/h), ``conf`` [n, 1], ``soft_labels`` [n, 1601] with the background in the first column,
  all float16. There are no sizes of images: the boxes are read as those of images with 1 x 1 pixel. bua's files for
  UNITER have ``bbox`` in pixels, ``image_w``, ``image_h`` and the labels under LXMERT's names too.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bua.features.indexed import NO_BOXES, NO_SIZES, without_boxes
from bua.features.labels import LXMERT_LABELS, best_objects, numbers
from bua.features.npy import NpzFile, read_array
from bua.regular_files import open_regular
from bua.structures import Regions

_UNIT_SIZES = "has boxes as fractions of the image, but not its size; the images are read as 1 x 1 pixel"
_UNITER_ARRAYS = {"features", "norm_bb", "soft_labels", "bbox", "image_w", "image_h", *LXMERT_LABELS}


def other_regions(image_id: int | str, arrays: NpzFile, path: Path, note: Callable[[str], None]) -> Regions | None:
    """Returns the regions of an image in one of these layouts, or None if the file has none of them.

    Args:
        path: Of the file.
        note: Is called with a message about what all images of the folder lack.

    Raises:
        ValueError: An array has another shape. Damaged files can raise almost any exception.
    """
    names = arrays.names
    if "norm_bb" in names:
        return uniter_regions(image_id, {name: arrays.array(name) for name in sorted(_UNITER_ARRAYS & names)}, note)
    name = next((name for name in ("features", "feat", "z") if name in names), None)
    if name is None:
        return None
    features = numbers(name, arrays.array(name))
    if features.ndim != 2:
        raise ValueError(f"{name} has the shape {features.shape} instead of (n, d)")
    if "boxes" in names:
        width, height = (int(arrays.array(size).item()) for size in ("image_w", "image_h"))
        labels = best_objects(arrays.array("cls_prob"), len(features)) if "cls_prob" in names else {}
        return _checked("boxes", Regions(image_id, width, height, arrays.array("boxes"), features, **labels))
    boxes = path.parent.with_name(path.parent.name.removesuffix("_att") + "_box") / f"{path.stem}.npy"
    if not path.parent.name.endswith("_att") or not boxes.exists():
        note(NO_BOXES)
        return without_boxes(image_id, features)
    note(NO_SIZES)
    with open_regular(boxes) as file:
        values = read_array(file, os.fstat(file.fileno()).st_size)
    return _checked(str(boxes), Regions(image_id, 0, 0, values, features))


def uniter_regions(image_id: int | str, arrays: Mapping[str, np.ndarray], note: Callable[[str], None]) -> Regions:
    """Returns the regions of an image from UNITER's arrays.

    Raises:
        KeyError: An array is missing.
        ValueError: An array has another shape. The message names it.
    """
    features = numbers("features", arrays["features"])
    if features.ndim != 2:
        raise ValueError(f"features has the shape {features.shape} instead of (n, d)")
    name, width, height = "norm_bb", 1, 1
    if "bbox" in arrays:
        name, width, height = "bbox", int(arrays["image_w"].item()), int(arrays["image_h"].item())
    else:
        note(_UNIT_SIZES)
    boxes = numbers(name, arrays[name])
    labels = {}
    if "soft_labels" in arrays:
        labels = best_objects(arrays["soft_labels"], len(features), "soft_labels")
    for field, (attribute, dtype) in LXMERT_LABELS.items():
        if field in arrays:
            labels[attribute] = numbers(field, arrays[field], dtype)
            if labels[attribute].shape != (len(features),):
                raise ValueError(f"{field} has the shape {labels[attribute].shape} instead of ({len(features)},)")
    if name == "norm_bb" and boxes.ndim == 2:
        boxes = boxes[:, :4]
    return _checked(name, Regions(image_id, width, height, boxes, features, **labels))


def _checked(name: str, regions: Regions) -> Regions:
    regions.boxes = numbers(name, regions.boxes).copy()
    if regions.boxes.shape != (len(regions.features), 4):
        raise ValueError(
            f"{name} has the shape {regions.boxes.shape} and features {regions.features.shape}, not (n, 4) and (n, d)"
        )
    return regions
