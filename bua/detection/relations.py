"""Reads the relations between the boxes of an annotation file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bua.detection.annotation_fields import check_records, read_column, read_vocabulary
from bua.errors import InputError, shown
from bua.vocabulary import Vocabulary


def read_relations(
    tree: Mapping[str, Any], annotations: list[dict], image_ids: Sequence[int], path: Path
) -> tuple[Vocabulary, np.ndarray]:
    """Returns the vocabulary of the relations of an annotation file, and the relations.

    Args:
        tree: Content of the file. It may have ``relations`` and ``relation_categories``.
        annotations: The annotations in the file, A dictionaries.
        image_ids: The image id of each annotation.
        path: The file, for messages.

    Returns:
        The vocabulary, which may be empty, and [R, 3] int64: the index in ``annotations`` of the subject, the id of the
        relation, and the index of the object.

    Raises:
        InputError: A field is missing or has another type, or an id in it is out of range.
    """
    vocabulary = read_vocabulary(tree.get("relation_categories", []), path, "relation_categories")
    records = tree.get("relations", [])
    if not isinstance(records, list):
        raise InputError(f"{path}: relations is {shown(records)}; it must be a list")
    if not records:
        return vocabulary, np.zeros((0, 3), dtype=np.int64)
    index_of = {number: index for index, number in enumerate(read_column(annotations, "id", int, path, "annotations"))}
    if len(index_of) < len(annotations):
        raise InputError(f"{path}: annotations: the same id appears twice; give each annotation an id of its own")
    of_annotations = np.array(image_ids, dtype=np.int64)
    expected = np.array(read_column(records, "image_id", int, path, "relations"), dtype=np.int64)
    predicates = np.array(read_column(records, "predicate_id", int, path, "relations"), dtype=np.int64)
    good = (predicates >= 0) & (predicates < len(vocabulary))
    check_records(good, path, "predicate_id", f"not in 0..{len(vocabulary) - 1}", where="relations")
    ends = []
    for field in ("subject_id", "object_id"):
        ids = read_column(records, field, int, path, "relations")
        indices = np.array([index_of.get(number, -1) for number in ids], dtype=np.int64)
        check_records(indices >= 0, path, field, "no annotation has this id", where="relations")
        good = of_annotations[indices] == expected
        check_records(good, path, field, "this annotation is of another image", where="relations")
        ends.append(indices)
    return vocabulary, np.stack([ends[0], predicates, ends[1]], axis=1)
