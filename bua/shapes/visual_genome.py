"""Makes the Visual Genome records of Shapes images, with the kinds of annotation errors that the real files have.

The cleaning of the original undoes these errors: it changes names to lower case, strips blanks and one trailing dot,
makes attributes of the adjectives before a name, splits attributes at " and ", looks up aliases in vocabularies, and
clips boxes to the image. Only objects that are annotated twice remain, as in Visual Genome; they are in the training
split only.
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
# Those of the original's "common attributes" that Shapes has. As the first words of a name they become attributes.
LEADING_ATTRIBUTES = {"white", "black", "blue", "green", "red", "yellow", "orange", "pink", "small", "large"}
OTHER_OBJECTS = ["wall", "surface", "shadow"]
OTHER_ATTRIBUTES = ["nice", "drawn", "flat"]


def vocabulary_lines() -> dict[str, list[str]]:
    """Returns the lines of the three vocabulary files, in the original's format.

    A line has the displayed name and then its aliases, separated by commas.
    """
    return {
        "objects": [",".join(dict.fromkeys([shape, plural(shape), *SHAPE_ALIASES.get(shape, [])])) for shape in SHAPES],
        "attributes": [",".join([name, *ATTRIBUTE_ALIASES.get(name, [])]) for name in ATTRIBUTES],
        "relations": [",".join(dict.fromkeys([name, *phrases])) for name, phrases in PREDICATE_PHRASES.items()],
    }


def visual_genome_records(image: DrawnImage, version: str, questions: list[Question], rng: np.random.Generator) -> dict:
    """Returns an image's record in each Visual Genome file, by the file's name without ".json".

    Args:
        image: The image.
        version: "1.2" or "1.4". Version 1.4 differs in objects and relationships: duplicated objects are merged, and
            the two ends of a relationship have a ``name`` instead of ``names``. The other files are the same in both.
        questions: Questions about the image. The first of them go into ``question_answers``.
        rng: Source of the annotation errors.
    """
    scene, image_id = image.scene, image.image_id
    first_id = image_id * 1000
    url = f"https://cs.stanford.edu/people/rak248/{image.path}"
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
        "url": url,
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
    relationships: list[dict] = []
    order = rng.permutation(len(scene.relations))[:MAX_RELATIONSHIPS]
    for number, which in enumerate(order):
        subject, predicate, target = scene.relations[which]
        relationships.append(
            {
                "predicate": _noisy_predicate(predicate, rng),
                "object": _end(objects[target], version),
                "relationship_id": first_id + number,
                "synsets": [],
                "subject": _end(objects[subject], version),
            }
        )
    return {
        "image_data": image_data,
        "objects": {"image_id": image_id, "objects": objects, "image_url": url},
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
    # In Visual Genome, boxes of things at the edge reach a little beyond it.
    if x1 <= 0:
        x1 -= int(rng.integers(0, 4))
    if y1 <= 0:
        y1 -= int(rng.integers(0, 4))
    if x2 >= image.scene.width:
        x2 += int(rng.integers(0, 4))
    if y2 >= image.scene.height:
        y2 += int(rng.integers(0, 4))
    name, included = _noisy_name(thing.shape, thing.attributes, rng)
    names = [name, str(rng.choice(["thing", "shape"]))] if rng.random() < 0.03 else [name]
    node = _node(object_id, (x1, y1, x2 - x1, y2 - y1), names, [f"{thing.shape}.n.01"])
    attributes = _noisy_attributes([value for value in thing.attributes if value not in included], rng)
    if attributes or rng.random() < 0.5:
        node["attributes"] = attributes
    return node


def _node(object_id: int, box: tuple[int, int, int, int], names: list[str], synsets: list[str]) -> dict:
    x, y, width, height = box
    return {"synsets": synsets, "h": height, "object_id": object_id, "names": names, "w": width, "y": y, "x": x}


def _end(node: dict, version: str) -> dict:
    """Returns the subject or object of a relationship, which in version 1.4 has one name instead of a list."""
    return node if version == "1.2" else _without(node, "names") | {"name": node["names"][0]}


def _noisy_name(shape: str, attributes: list[str], rng: np.random.Generator) -> tuple[str, list[str]]:
    """Returns a noisy name of a thing, and those of its attributes that the name includes."""
    kind = rng.random()
    leading = [value for value in attributes if value in LEADING_ATTRIBUTES]
    if leading and kind < 0.12:
        included = leading[int(rng.integers(len(leading))) :]
        return _noisy_spelling(" ".join([*included, shape]), rng), included if rng.random() < 0.6 else []
    name = shape
    if kind < 0.22:
        name = plural(shape)
    elif kind < 0.32 and shape in SHAPE_ALIASES:
        name = str(rng.choice(SHAPE_ALIASES[shape]))
    return _noisy_spelling(name, rng), []


def _noisy_attributes(attributes: list[str], rng: np.random.Generator) -> list[str]:
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
    return [_noisy_spelling(value, rng) for value in written]


def _noisy_predicate(predicate: str, rng: np.random.Generator) -> str:
    return _noisy_spelling(str(rng.choice(PREDICATE_PHRASES[predicate])), rng)


def _noisy_spelling(words: str, rng: np.random.Generator) -> str:
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
