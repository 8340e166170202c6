"""Shapes without its pictures: Flickr30k Entities' files, and features from an oracle in a detector's place."""

from pathlib import Path

import numpy as np

from bua.data.shapes import SPLITS
from bua.data.shapes_files import Picture, flickr30k_entities
from bua.data.shapes_scene import COLORS, SHAPES, TEXTURES, Scene, compose_scene
from bua.data.shapes_text import write_sentence
from bua.features import open_writer
from bua.structures import Regions

WORDS = (*SHAPES, *COLORS, *TEXTURES, "small", "large")
FEATURE_DIM = len(WORDS) + 8


def write_entities(root: Path, counts: dict[str, int], seed: int = 0) -> dict[str, list[Picture]]:
    """Writes what ``make_shapes`` writes to ``flickr30k_entities``, without drawing anything."""
    pictures: dict[str, list[Picture]] = {}
    for folder in ("Annotations", "Sentences"):
        (root / folder).mkdir(parents=True)
    for number, split in enumerate(SPLITS):
        pictures[split] = []
        for index in range(counts[split]):
            rng = np.random.default_rng([seed, number, index])
            picture = Picture(compose_scene(rng), 1 + sum(map(len, pictures.values())), split)
            xml, sentences = flickr30k_entities(picture, [write_sentence(picture.scene, rng) for _ in range(5)])
            (root / "Annotations" / f"{picture.flickr_id}.xml").write_text(xml)
            (root / "Sentences" / f"{picture.flickr_id}.txt").write_text(sentences)
            pictures[split].append(picture)
        lines = "".join(f"{picture.flickr_id}\n" for picture in pictures[split])
        (root / f"{split}.txt").write_text(lines)
    return pictures


def write_oracle_features(path: Path, pictures: dict[str, list[Picture]], format: str = "flat", seed: int = 0) -> None:
    """Features of all pictures: for each thing a box near its own, which says what it is, and as many boxes elsewhere,
    which say nothing, in any order."""
    rng = np.random.default_rng(seed)
    with open_writer(path, format) as writer:
        for picture in (picture for split in pictures.values() for picture in split):
            writer.append(oracle_regions(picture, rng))
        writer.finish()


def oracle_regions(picture: Picture, rng: np.random.Generator) -> Regions:
    scene = picture.scene
    things = range(len(scene.things))
    boxes = [np.array(scene.clipped_box(i)) + rng.normal(0, 2, 4) for i in things] + [
        _any_box(scene, rng) for _ in things
    ]
    features = rng.normal(0, 0.2, (len(boxes), FEATURE_DIM))
    for i in things:
        thing = scene.things[i]
        features[i, [WORDS.index(word) for word in (thing.shape, *thing.attributes) if word in WORDS]] += 1
    order = rng.permutation(len(boxes))
    shown = np.array(boxes, np.float32)[order], np.abs(features[order]).astype(np.float32)
    return Regions(picture.flickr_id, scene.width, scene.height, *shown)


def _any_box(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    corners = np.sort(rng.random((2, 2)) * [scene.width, scene.height], axis=0)
    return corners.ravel()
