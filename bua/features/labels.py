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


def labels_of(
    regions: Regions, names: Mapping[str, tuple[str, np.dtype]] = LXMERT_LABELS
) -> Iterator[tuple[str, np.ndarray, np.dtype]]:
    """Yields (name in files, values [n], type in files) for each label that the regions have."""
    for name, (field, dtype) in names.items():
        values = getattr(regions, field)
        if values is not None:
            yield name, values, dtype
