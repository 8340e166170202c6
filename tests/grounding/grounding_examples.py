"""Shapes without its images: Flickr30k Entities' files, and features from an oracle in a detector's place."""

from pathlib import Path

import numpy as np

from bua.features import open_writer
from bua.shapes.make import SPLITS
from bua.shapes.scene import COLORS, SHAPES, TEXTURES, Scene, compose_scene
from bua.shapes.task_files import DrawnImage, flickr30k_entities
from bua.shapes.text import write_sentence
from bua.structures import Regions

WORDS = (*SHAPES, *COLORS, *TEXTURES, "small", "large")
FEATURE_DIM = len(WORDS) + 8


def write_entities(root: Path, counts: dict[str, int], seed: int = 0) -> dict[str, list[DrawnImage]]:
    """Writes what ``make_shapes`` writes to ``flickr30k_entities``, without drawing anything."""
    images: dict[str, list[DrawnImage]] = {}
    for folder in ("Annotations", "Sentences"):
        (root / folder).mkdir(parents=True)
    for number, split in enumerate(SPLITS):
        images[split] = []
        for index in range(counts[split]):
            rng = np.random.default_rng([seed, number, index])
            image = DrawnImage(compose_scene(rng), 1 + sum(map(len, images.values())), split)
            xml, sentences = flickr30k_entities(image, [write_sentence(image.scene, rng) for _ in range(5)])
            (root / "Annotations" / f"{image.flickr_id}.xml").write_text(xml)
            (root / "Sentences" / f"{image.flickr_id}.txt").write_text(sentences)
            images[split].append(image)
        lines = "".join(f"{image.flickr_id}\n" for image in images[split])
        (root / f"{split}.txt").write_text(lines)
    return images


def write_oracle_features(path: Path, images: dict[str, list[DrawnImage]], format: str = "flat", seed: int = 0) -> None:
    """Features of all images: for each thing a box near its own, which says what it is, and as many boxes elsewhere,
    which say nothing, in any order."""
    rng = np.random.default_rng(seed)
    with open_writer(path, format) as writer:
        for image in (image for split in images.values() for image in split):
            writer.append(oracle_regions(image, rng))
        writer.finish()


def oracle_regions(image: DrawnImage, rng: np.random.Generator) -> Regions:
    scene = image.scene
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
    return Regions(image.flickr_id, scene.width, scene.height, *shown)


def _any_box(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    corners = np.sort(rng.random((2, 2)) * [scene.width, scene.height], axis=0)
    return corners.ravel()
