"""Shapes without its images: captions, annotations of things, and features from an oracle, through the tools."""

import json
from pathlib import Path

import numpy as np
from script_loading import load_script

from bua.detection.annotations import ImageAnnotations, write_annotations
from bua.shapes.scene import COLORS, SHAPES, TEXTURES, compose_scene
from bua.shapes.text import plain_text, write_sentence
from bua.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
ATTRIBUTES = (*COLORS, *TEXTURES, "small", "large")
# What COCO calls Visual Genome's image 1 is 1001, and so on.
COCO = 1000


def tool(path: str):
    return load_script(path).main


def write_world(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Writes ``prepared`` (captions), ``oracle.flat`` and what they are made of to ``root``."""
    records, image_data, number = [], [], 0
    for place, (split, count) in enumerate(counts.items()):
        images = []
        for index in range(count):
            rng, number = np.random.default_rng([seed, place, index]), number + 1
            scene = compose_scene(rng)
            boxes = np.array([scene.clipped_box(i) for i in range(len(scene.things))]).round().astype(int)
            classes = [SHAPES.index(thing.shape) for thing in scene.things]
            attributes = [[ATTRIBUTES.index(a) for a in thing.attributes if a in ATTRIBUTES] for thing in scene.things]
            images.append(
                ImageAnnotations(number, f"{number}.jpg", scene.width, scene.height, boxes, classes, attributes)
            )
            image_data.append({"image_id": number, "coco_id": COCO + number})
            sentences = [{"raw": plain_text(write_sentence(scene, rng)), "tokens": []} for _ in range(5)]
            records.append({"cocoid": COCO + number, "split": split, "sentences": sentences})
        path = root / "annotations" / f"world_{split}.json"
        write_annotations(path, images, Vocabulary(SHAPES), Vocabulary(ATTRIBUTES))
    (root / "image_data.json").write_text(json.dumps(image_data))
    (root / "karpathy.json").write_text(json.dumps({"images": records}))
    prepare = ["--karpathy", str(root / "karpathy.json"), "--output", str(root / "prepared"), "--min-count", "1"]
    assert tool("datasets/prepare_captions.py")(prepare) == 0
    oracle = ["--root", str(root), "--name", "world", "--ids", "coco", "--output", str(root / "oracle.flat")]
    assert tool("datasets/make_oracle_features.py")(oracle) == 0
    return root


def settings(root: Path, output: str, *more: str) -> list[str]:
    """Overrides for a small captioner of the world in ``root``, trained into the folder ``output`` in it."""
    return [
        *("DATA.FOLDER", str(root / "prepared"), "DATA.FEATURES", f"('{root / 'oracle.flat'}',)"),
        *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(root / output)),
        *("MODEL.UPDOWN.HIDDEN_DIM", "48", "MODEL.UPDOWN.EMBEDDING_DIM", "24", "MODEL.UPDOWN.ATTENTION_DIM", "24"),
        *("SOLVER.IMS_PER_BATCH", "25", "DECODING.BEAM", "2", *more),
    ]


def losses_of(output: Path) -> dict[int, float]:
    """The total loss by iteration, as the log has it; where a run went on, what it said last."""
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


def scores_of(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return [line["CIDEr-D"] for line in lines if "CIDEr-D" in line]
