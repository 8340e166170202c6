"""The labels of regions: the fields of ``Regions`` that a source of features may lack, and their names in files."""

from collections.abc import Iterator, Mapping

import numpy as np

from bua.structures import Regions

LABEL_FIELDS = ("object_ids", "object_scores", "attribute_ids", "attribute_scores")

# Little-endian on every machine.
FLOAT, INTEGER = np.dtype("<f4"), np.dtype("<i8")

# LXMERT's names of the labels, which MILVLG uses too: the field of Regions, and the type in files.
LXMERT_LABELS: dict[str, tuple[str, np.dtype]] = {
    "objects_id": ("object_ids", INTEGER),
    "objects_conf": ("object_scores", FLOAT),
    "attrs_id": ("attribute_ids", INTEGER),
    "attrs_conf": ("attribute_scores", FLOAT),
}

# Names of VL-T5's HDF5 files, which Volta takes over into its LMDBs.
VLT5_LABELS: dict[str, tuple[str, np.dtype]] = {
    "obj_id": ("object_ids", INTEGER),
    "obj_conf": ("object_scores", FLOAT),
    "attr_id": ("attribute_ids", INTEGER),
    "attr_conf": ("attribute_scores", FLOAT),
}


def numbers(name: str, values: object, dtype: np.dtype = FLOAT) -> np.ndarray:
    """Returns an array as one of ``dtype``. Numbers that are too large become infinite, which the writers refuse.

    Raises:
        ValueError: It holds something other than integers and real numbers. The message names ``name``.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} has values of the type {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def best_objects(probabilities: object, count: int, field: str = "cls_prob") -> dict[str, np.ndarray]:
    """Returns ``object_ids`` and ``object_scores`` [n] of the most probable object of each region, and ``class_probs``.

    Args:
        probabilities: [n, C + 1] of each class, with the background in the first column, as Caffe's models give them.
        count: n.
        field: Name of the probabilities in error messages.

    Raises:
        ValueError: They have another shape, or are not numbers.
    """
    values = numbers(field, probabilities)
    if values.ndim != 2 or len(values) != count or values.shape[1] < 2:
        raise ValueError(f"{field} has the shape {values.shape} instead of ({count}, classes)")
    objects = values[:, 1:]
    ids = objects.argmax(axis=1)
    return {
        "object_ids": ids.astype(INTEGER),
        "object_scores": objects[np.arange(count), ids],
        "class_probs": objects.astype(np.float16),
    }


def labels_of(
    regions: Regions, names: Mapping[str, tuple[str, np.dtype]] = LXMERT_LABELS
) -> Iterator[tuple[str, np.ndarray, np.dtype]]:
    """Yields (name in files, values [n], type in files) for each label that the regions have."""
    for name, (field, dtype) in names.items():
        values = getattr(regions, field)
        if values is not None:
            yield name, values, dtype
