"""Finds the relations between objects by the rules of the original, which prepares them and does not train on them.

The rules (data/genome/setup_vg.py and lib/datasets/vg.py of peteanderson80/bottom-up-attention):

- A predicate is changed to lower case and loses one dot at the end. It belongs to the relation of which it is the name
  or an alias, such as "sitting on" to "on". Other relationships are left out.
- Relationships of which one end is not an object of a known class are left out.
- A relation that two objects have more than once, also by different predicates, counts once.
- If objects of an image have the same id, the last of them is meant.

There is one difference from the original: relations keep the order of the files (in the original, that of a Python
set).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from bua.visual_genome.names import clean_name
from bua.visual_genome.records import ends_of, iter_images, naming_image, predicate_of, relationships_of
from bua.vocabulary import Vocabulary

Triple = tuple[int, int, int]  # id of the subject, id of the relation, id of the object


class RelationFinder:
    """Finds the relations of an image by their predicates. The result for a predicate is cached.

    Args:
        vocabulary: The relations.
    """

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._seen: dict[str, int | None] = {}

    def __call__(self, image: dict) -> list[Triple]:
        """Returns the relations in the record of an image, in the order of its ``relationships``."""
        found = []
        for record in relationships_of(image):
            text = predicate_of(record)
            if text not in self._seen:
                self._seen[text] = self._vocabulary.id(clean_name(text))
            if (relation := self._seen[text]) is not None:
                subject, target = ends_of(record)
                found.append((subject, relation, target))
        return found


def read_relationships(
    path: Path, wanted: Mapping[int, object], vocabulary: Vocabulary, progress: bool = True
) -> dict[int, list[Triple]]:
    """Reads relationships.json: image id -> relations. Images without relations are left out.

    Args:
        path: The file.
        wanted: Has the ids of the images to read.
        vocabulary: The relations.
        progress: Whether to show a progress bar.
    """
    find = RelationFinder(vocabulary)
    relations_of: dict[int, list[Triple]] = {}
    for image_id, image in iter_images(path, "relationships", progress):
        if image_id in wanted:
            with naming_image(path, image_id):
                if found := find(image):
                    relations_of[image_id] = found
    return relations_of


def relation_rows(relations: Iterable[Triple], row_of: Mapping[int, int]) -> np.ndarray:
    """Returns the relations between an image's boxes, each once.

    Args:
        relations: Relations by the ids of objects.
        row_of: Object id -> row of the object's box. Relations of other objects are left out.

    Returns:
        [R, 3] int32: row of the subject's box, id of the relation, row of the object's box.
    """
    triples = ((row_of.get(subject), relation, row_of.get(target)) for subject, relation, target in relations)
    rows = dict.fromkeys(triple for triple in triples if None not in triple)
    return np.array(list(rows), dtype=np.int32).reshape(-1, 3)
