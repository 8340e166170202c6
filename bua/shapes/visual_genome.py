"""Shapes as Visual Genome annotates images, with the dirt that its files have.

The dirt is such that the cleaning of the original (lower case, strip, one trailing dot, leading adjectives of a name
are attributes, " and " joins attributes, vocabularies with aliases, boxes cut to the image) recovers the truth.
Only duplicated objects stay, as they do there, and only in the training split.
"""

import numpy as np

from bua.shapes.scene import COLORS, SHAPES, TEXTURES
from bua.shapes.task_files import DrawnImage
from bua.shapes.text import PREDICATE_PHRASES, Question, describe, plural

QUESTIONS_PER_IMAGE = 4
MAX_RELATIONSHIPS = 12
SHAPE_ALIASES = {
    "circle": ["disc"],
    "diamond": ["rhombus"],
    "cross": ["plus sign"],
    "ring": ["hoop"],
    "moon": ["crescent", "crescent moon"],
    "house": ["home"],
    "tree": ["pine tree"],
    "cup": ["mug", "coffee cup"],
}
ATTRIBUTE_ALIASES = {
    "small": ["little", "tiny"],
    "large": ["big"],
    "striped": ["stripes", "stripy"],
    "dotted": ["spotted", "polka dot"],
    "checkered": ["checked"],
    "purple": ["violet"],
}
ATTRIBUTES = [*COLORS, "small", "large", *TEXTURES]
# Those of the original's "common attributes" that Shapes has: as leading words of a name they become attributes.
LEADING_ATTRIBUTES = {"white", "black", "blue", "green", "red", "yellow", "orange", "pink", "small", "large"}
OTHER_OBJECTS = ["wall", "surface", "shadow"]
OTHER_ATTRIBUTES = ["nice", "drawn", "flat"]


def vocabulary_lines() -> dict[str, list[str]]:
    """The lines of the three vocabulary files in the original's format: display name first, aliases by comma."""
    return {
        "objects": [",".join(dict.fromkeys([shape, plural(shape), *SHAPE_ALIASES.get(shape, [])])) for shape in SHAPES],
        "attributes": [",".join([name, *ATTRIBUTE_ALIASES.get(name, [])]) for name in ATTRIBUTES],
        "relations": [",".join(dict.fromkeys([name, *phrases])) for name, phrases in PREDICATE_PHRASES.items()],
    }


def visual_genome_records(image: DrawnImage, version: str, questions: list[Question], rng: np.random.Generator) -> dict:
    """An image's entry in each Visual Genome file, under the file's name without ".json".

    Args:
        version: "1.2" or "1.4". 1.4 cleaned objects and relationships, where duplicates are merged and the ends of a
            relationship have a ``name`` instead of ``names``; its other files stayed as they were.
        questions: about the image, some of which go into ``question_answers``.
    """
    scene, image_id = image.scene, image.image_id
    first_id = image_id * 1000
    nodes = [_object(image, index, first_id + index, rng) for index in range(len(scene.things))]
    duplicate = None
    if image.split == "train" and rng.random() < 0.1:
        duplicate = _object(image, 0, first_id + 100, rng)
        duplicate["x"] += int(rng.integers(-2, 3))
        duplicate["y"] += int(rng.integers(-2, 3))
    extra = []
    if rng.random() < 0.15:
        box = (0, 0, scene.width, int(rng.integers(0, scene.height)))
        extra.append(_node(first_id + 200, box, [str(rng.choice(OTHER_OBJECTS))], []))
    everything = nodes + ([duplicate] if duplicate else []) + extra

    image_data = {
        "width": scene.width,
        "url": f"https://cs.stanford.edu/people/rak248/{image.path}",
        "height": scene.height,
        "image_id": image_id,
        "coco_id": image.coco_id,
        "flickr_id": image.flickr_id,
    }
    listed = everything
    if version == "1.4":
        listed = [node | {"merged_object_ids": []} for node in nodes + extra]
        if duplicate:
            listed[0]["merged_object_ids"] = [duplicate["object_id"]]
    objects = [_without(node, "attributes") for node in listed]
    relationships = []
    order = rng.permutation(len(scene.relations))[:MAX_RELATIONSHIPS]
    for number, which in enumerate(order):
        subject, predicate, target = scene.relations[which]
        relationships.append(
            {
                "predicate": _dirty_predicate(predicate, rng),
                "object": _end(objects[target], version),
                "relationship_id": first_id + number,
                "synsets": [],
                "subject": _end(objects[subject], version),
            }
        )
    return {
        "image_data": image_data,
        "objects": {"image_id": image_id, "objects": objects, "image_url": image_data["url"]},
        "attributes": {"image_id": image_id, "attributes": everything},
        "relationships": {"relationships": relationships, "image_id": image_id},
        "scene_graphs": {
            "image_id": image_id,
            "objects": everything,
            "relationships": [
                _without(r, "object", "subject")
                | {"object_id": r["object"]["object_id"], "subject_id": r["subject"]["object_id"]}
                for r in relationships
            ],
        },
        "region_descriptions": {"regions": _regions(image, rng), "id": image_id},
        "question_answers": {
            "id": image_id,
            "qas": [
                {
                    "a_objects": [],
                    "question": question.text,
                    "image_id": image_id,
                    "qa_id": first_id + number,
                    "answer": question.answer.capitalize() + ".",
                    "q_objects": [
                        _without(nodes[index], "attributes", "names") | {"name": nodes[index]["names"][0]}
                        for index in question.things
                    ],
                }
                for number, question in enumerate(questions[:QUESTIONS_PER_IMAGE])
            ],
        },
    }


def _object(image: DrawnImage, index: int, object_id: int, rng: np.random.Generator) -> dict:
    thing = image.scene.things[index]
    x1, y1, x2, y2 = thing.box
    # People draw a little beyond the edge where a thing touches it.
    if x1 <= 0:
        x1 -= int(rng.integers(0, 4))
    if y1 <= 0:
        y1 -= int(rng.integers(0, 4))
    if x2 >= image.scene.width:
        x2 += int(rng.integers(0, 4))
    if y2 >= image.scene.height:
        y2 += int(rng.integers(0, 4))
    name, said = _dirty_name(thing.shape, thing.attributes, rng)
    names = [name, str(rng.choice(["thing", "shape"]))] if rng.random() < 0.03 else [name]
    node = _node(object_id, (x1, y1, x2 - x1, y2 - y1), names, [f"{thing.shape}.n.01"])
    attributes = _dirty_attributes([value for value in thing.attributes if value not in said], rng)
    if attributes or rng.random() < 0.5:
        node["attributes"] = attributes
    return node


def _node(object_id: int, box: tuple[int, int, int, int], names: list[str], synsets: list[str]) -> dict:
    x, y, width, height = box
    return {"synsets": synsets, "h": height, "object_id": object_id, "names": names, "w": width, "y": y, "x": x}


def _end(node: dict, version: str) -> dict:
    """The subject or object of a relationship; version 1.4 has one name there instead of a list."""
    return node if version == "1.2" else _without(node, "names") | {"name": node["names"][0]}


def _dirty_name(shape: str, attributes: list[str], rng: np.random.Generator) -> tuple[str, list[str]]:
    """A name that someone typed, and those of the thing's attributes that its leading words say."""
    kind = rng.random()
    leading = [value for value in attributes if value in LEADING_ATTRIBUTES]
    if leading and kind < 0.12:
        said = leading[int(rng.integers(len(leading))) :]
        return _scribble(" ".join([*said, shape]), rng), said if rng.random() < 0.6 else []
    name = shape
    if kind < 0.22:
        name = plural(shape)
    elif kind < 0.32 and shape in SHAPE_ALIASES:
        name = str(rng.choice(SHAPE_ALIASES[shape]))
    return _scribble(name, rng), []


def _dirty_attributes(attributes: list[str], rng: np.random.Generator) -> list[str]:
    written = [
        str(rng.choice(ATTRIBUTE_ALIASES[value])) if value in ATTRIBUTE_ALIASES and rng.random() < 0.15 else value
        for value in attributes
    ]
    if written and rng.random() < 0.05:
        written.append(written[0])
    if len(written) > 1 and rng.random() < 0.1:
        written = [" and ".join(written)]
    if rng.random() < 0.04:
        written.append(str(rng.choice(OTHER_ATTRIBUTES)))
    return [_scribble(value, rng) for value in written]


def _dirty_predicate(predicate: str, rng: np.random.Generator) -> str:
    return _scribble(str(rng.choice(PREDICATE_PHRASES[predicate])), rng)


def _scribble(words: str, rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.04:
        return words + "."
    if kind < 0.08:
        return words.capitalize()
    if kind < 0.1:
        return words.upper()
    return f" {words} " if kind < 0.12 else words


def _regions(image: DrawnImage, rng: np.random.Generator) -> list[dict]:
    scene = image.scene
    phrases = []
    for index in range(len(scene.things)):
        phrase = describe(scene, index, rng)
        phrases.append((phrase.words, phrase.things))
    for which in rng.permutation(len(scene.relations))[:4]:
        subject, predicate, target = scene.relations[which]
        first, second = describe(scene, subject, rng), describe(scene, target, rng)
        if len(first.things) == len(second.things) == 1:
            phrases.append((f"{first.words} {predicate} {second.words}.", [subject, target]))
    regions = []
    for number, (words, things) in enumerate(phrases):
        boxes = np.array([scene.clipped_box(index) for index in things])
        (x1, y1), (x2, y2) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
        regions.append(
            {
                "region_id": image.image_id * 1000 + number,
                "width": x2 - x1,
                "height": y2 - y1,
                "image_id": image.image_id,
                "phrase": words,
                "y": y1,
                "x": x1,
            }
        )
    return regions


def _without(record: dict, *keys: str) -> dict:
    return {key: value for key, value in record.items() if key not in keys}
