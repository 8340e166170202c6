"""What the readers of npz files expect in the file of an image, which differs between them.

- MILVLG (MILVLG/bottom-up-attention.pytorch, utils/extract_utils.py): see ``bua.features.npz``.
- MCAN (MILVLG/mcan-vqa, core/data/load_data.py) and OpenVQA (MILVLG/openvqa, openvqa/datasets/vqa/vqa_loader.py): the
  same, but ``x`` is [d, n].
- OpenVQA's GQA (openvqa/datasets/gqa/gqa_loader.py): the same with the size of the image as ``width`` and ``height``.
- UNITER (ChenRocks/BUTD-UNITER-NLVR2, tools/generate_npz.py, and ChenRocks/UNITER, scripts/convert_imgdir.py):
  ``features`` [n, d], ``norm_bb`` [n, 6] (x1/w, y1/h, x2/w, y2/h, (x2-x1)/w, (y2-y1)/h), ``conf`` [n, 1] and
  ``soft_labels`` [n, C + 1] with the background in front, all float16. The regions are in descending order of ``conf``,
  since UNITER takes the first of them. Arrays of other sizes than one row a region would make it leave the image out,
  so that bua's additional fields are arrays of one or two dimensions.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bua.errors import InputError
from bua.features.checks import check_size_is_known
from bua.features.labels import labels_of
from bua.features.probabilities import with_background
from bua.structures import Regions

Arrays = dict[str, np.ndarray]
Info = dict[str, object]


def milvlg_arrays(regions: Regions) -> tuple[Arrays, Info]:
    """Returns the arrays of an image, and the dictionary ``info``, for MILVLG's readers."""
    arrays = {
        "x": np.asarray(regions.features, np.float32),
        "bbox": np.asarray(regions.boxes, np.float32),
        "num_bbox": np.asarray(len(regions)),
        "image_h": np.asarray(regions.height),
        "image_w": np.asarray(regions.width),
    }
    info: Info = {
        "image_id": str(regions.image_id),
        "image_h": int(regions.height),
        "image_w": int(regions.width),
        "num_boxes": len(regions),
    }
    info |= {key: np.asarray(labels, dtype) for key, labels, dtype in labels_of(regions)}
    if regions.class_probs is not None:
        info["class_probs"] = np.asarray(regions.class_probs, "<f2")
    return arrays, info


def transposed_arrays(regions: Regions) -> tuple[Arrays, Info]:
    """Returns the arrays of an image, and the dictionary ``info``, for MCAN and OpenVQA.

    Raises:
        InputError: The number of regions is the feature dimension, so that the shape of ``x`` does not tell that it is
            transposed.
    """
    arrays, info = milvlg_arrays(regions)
    if len(regions) == arrays["x"].shape[1]:
        raise InputError(
            f"image {regions.image_id}: has as many regions as its feature dimension, {len(regions)}, so that nothing "
            "would tell that the features are transposed; extract fewer regions"
        )
    arrays["x"] = np.ascontiguousarray(arrays["x"].T)
    return arrays, info


def gqa_arrays(regions: Regions) -> tuple[Arrays, Info]:
    """Returns the arrays of an image, and the dictionary ``info``, for OpenVQA's GQA."""
    arrays, info = milvlg_arrays(regions)
    return arrays | {"width": arrays["image_w"], "height": arrays["image_h"]}, info


def uniter_arrays(regions: Regions) -> tuple[Arrays, None]:
    """Returns the arrays of an image for UNITER.

    Raises:
        InputError: The regions have no scores of objects, or features are outside the range of float16.
    """
    if regions.object_scores is None:
        raise InputError(
            f"image {regions.image_id}: has no object_scores, which UNITER needs; use features with labels"
        )
    check_size_is_known(regions, "UNITER's npz")
    order = np.argsort(-np.asarray(regions.object_scores), kind="stable")
    boxes = np.asarray(regions.boxes, np.float32).reshape(-1, 4)[order]
    size = np.array([max(regions.width, 1), max(regions.height, 1)] * 2, np.float32)
    corners = boxes / size
    try:
        with np.errstate(over="raise"):
            features = np.asarray(regions.features)[order].astype(np.float16)
    except FloatingPointError:
        message = f"image {regions.image_id}: features are outside the range of float16, in which UNITER has them"
        raise InputError(message) from None
    arrays: Arrays = {
        "norm_bb": np.hstack([corners, corners[:, 2:] - corners[:, :2]]).astype(np.float16),
        "features": features,
        "conf": np.asarray(regions.object_scores)[order, None].astype(np.float16),
        "bbox": boxes,
        "image_w": np.array([regions.width]),
        "image_h": np.array([regions.height]),
    }
    arrays |= {name: np.asarray(labels, dtype)[order] for name, labels, dtype in labels_of(regions)}
    if regions.class_probs is not None:
        arrays["soft_labels"] = with_background(regions.class_probs)[order].astype(np.float16)
    return arrays, None


# The functions by the reader's name; None is MILVLG.
ARRAYS: Mapping[str | None, Callable[[Regions], tuple[Arrays, Any]]] = {
    None: milvlg_arrays,
    "mcan": transposed_arrays,
    "openvqa": transposed_arrays,
    "openvqa-gqa": gqa_arrays,
    "uniter": uniter_arrays,
}
