"""Shapes as VQA v2, COCO captions and Flickr30k Entities annotate images, and how the ids of an image relate.

- ``image_id`` (Visual Genome) counts from 1 over train, val and test; the image is ``VG_100K/<image_id>.jpg`` or
  ``VG_100K_2/<image_id>.jpg``, as its ``url`` in ``image_data.json`` says.
- ``coco_id`` is the image's id in the VQA and caption files. Every eighth image has none, as half of Visual
  Genome's have none, and is in neither. COCO's file names are links to the Visual Genome image.
- ``flickr_id`` is its id in Flickr30k Entities; every image has one.
- Ids of objects, regions, questions and captions are the image's id times 1000, plus a count.

COCO puts an image into one subset. Shapes has train images in train2014 (a tenth, Karpathy's "restval", in
val2014) and val images in val2014; test images are in val2014 for captions, as Karpathy's are, and in test2015
for VQA.
"""

import re
from dataclasses import dataclass

import numpy as np

from bua.shapes.scene import Scene
from bua.shapes.text import Phrase, Question, plain_text

ANSWERS_PER_QUESTION = 10
MAX_DISSENTERS = 3


@dataclass
class DrawnImage:
    """A scene and its place in the data set.

    Attributes:
        image_id: as Visual Genome has it, from 1.
        split: "train", "val" or "test".
    """

    scene: Scene
    image_id: int
    split: str

    @property
    def folder(self) -> str:
        return "VG_100K_2" if self.image_id % 5 in (0, 3) else "VG_100K"

    @property
    def path(self) -> str:
        """Of the JPEG file, under the data set's folder."""
        return f"{self.folder}/{self.image_id}.jpg"

    @property
    def coco_id(self) -> int | None:
        return None if self.image_id % 8 == 0 else 100_000 + 7 * self.image_id

    @property
    def flickr_id(self) -> int:
        return 2_000_000_000 + 1117 * self.image_id

    @property
    def karpathy_split(self) -> str:
        """A tenth of the training images are "restval": in COCO's val2014, but for training captioners."""
        return "restval" if self.split == "train" and self.image_id % 10 == 9 else self.split

    @property
    def coco_subset(self) -> str:
        return "train2014" if self.karpathy_split == "train" else "val2014"

    @property
    def vqa_subset(self) -> str:
        return "test2015" if self.split == "test" else self.coco_subset

    def coco_path(self, subset: str) -> str:
        return f"{subset}/COCO_{subset}_{self.coco_id:012d}.jpg"


def vqa_records(image: DrawnImage, questions: list[Question], rng: np.random.Generator) -> dict[str, list[dict]]:
    """An image's "questions" and "annotations" in VQA v2's files."""
    asked, annotations = [], []
    for number, question in enumerate(questions):
        question_id = image.coco_id * 1000 + number
        asked.append({"image_id": image.coco_id, "question": question.text, "question_id": question_id})
        annotations.append(
            {
                "question_type": question.question_type,
                "multiple_choice_answer": question.answer,
                "answers": _answers(question, rng),
                "image_id": image.coco_id,
                "answer_type": question.answer_type,
                "question_id": question_id,
            }
        )
    return {"questions": asked, "annotations": annotations}


def caption_records(image: DrawnImage, sentences: list[list[Phrase | str]]) -> dict:
    """An image's part of the caption files.

    Returns:
        "karpathy": its entry in ``dataset_coco.json`` without the running numbers; "coco_image" and
        "coco_captions": its entries in ``captions_*.json``.
    """
    texts = [plain_text(sentence) for sentence in sentences]
    file_name = image.coco_path(image.coco_subset).split("/")[1]
    karpathy = {
        "filepath": image.coco_subset,
        "filename": file_name,
        "split": image.karpathy_split,
        "sentences": [{"tokens": re.sub(r"[^\w\s]", "", text.lower()).split(), "raw": text} for text in texts],
        "cocoid": image.coco_id,
    }
    coco_image = {
        "file_name": file_name,
        "height": image.scene.height,
        "width": image.scene.width,
        "id": image.coco_id,
    }
    annotations = [
        {"image_id": image.coco_id, "id": image.coco_id * 1000 + number, "caption": text}
        for number, text in enumerate(texts)
    ]
    return {"karpathy": karpathy, "coco_image": coco_image, "coco_captions": annotations}


def flickr30k_entities(image: DrawnImage, sentences: list[list[Phrase | str]]) -> tuple[str, str]:
    """An image's files in Flickr30k Entities: ``(Annotations/<id>.xml, Sentences/<id>.txt)``.

    The boxes are in pixels from 1, inclusive. A phrase's chain id is 1 more than the number of its thing; a phrase for
    several things has a chain of its own, to which the boxes of all of them belong. The last sentence names the
    background, which has no box.
    """
    scene = image.scene
    chains: dict[tuple[int, ...], int] = {(index,): index + 1 for index in range(len(scene.things))}
    lines = []
    for sentence in sentences:
        words = []
        for part in sentence:
            if isinstance(part, str):
                words.append(part.replace("the image", "[/EN#0/notvisual the image]"))
                continue
            chain = chains.setdefault(tuple(part.things), len(chains) + 1)
            kinds = {"animals" if scene.things[index].shape == "fish" else "other" for index in part.things}
            words.append(f"[/EN#{chain}/{'/'.join(sorted(kinds))} {part.words}]")
        lines.append(" ".join(words))
    background = len(chains) + 1
    lines[-1] = lines[-1].removesuffix(" .") + f" on [/EN#{background}/scene a plain background] ."

    objects = []
    for index in range(len(scene.things)):
        x1, y1, x2, y2 = scene.clipped_box(index)
        names = [f"<name>{chain}</name>" for things, chain in chains.items() if index in things]
        corners = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        objects.append(f"\t<object>\n\t\t{''.join(names)}\n\t\t<bndbox>{corners}</bndbox>\n\t</object>\n")
    objects.append(f"\t<object>\n\t\t<name>{background}</name>\n\t\t<scene>1</scene><nobox>1</nobox>\n\t</object>\n")
    xml = (
        f"<annotation>\n\t<filename>{image.flickr_id}.jpg</filename>\n"
        f"\t<size><width>{scene.width}</width><height>{scene.height}</height><depth>3</depth></size>\n"
        f"{''.join(objects)}</annotation>\n"
    )
    return xml, "".join(line + "\n" for line in lines)


def _answers(question: Question, rng: np.random.Generator) -> list[dict]:
    """Ten people's answers; so few are wrong that the right one keeps its full score."""
    wrong = int(rng.integers(0, MAX_DISSENTERS + 1)) if rng.random() < 0.3 else 0
    dissenters = set(rng.permutation(ANSWERS_PER_QUESTION)[:wrong].tolist())
    answers = []
    for person in range(ANSWERS_PER_QUESTION):
        answer, confidence = question.answer, "yes"
        if person in dissenters:
            answer = question.alternatives[int(rng.integers(len(question.alternatives)))]
            confidence = str(rng.choice(["maybe", "no"]))
        answers.append({"answer": answer, "answer_confidence": confidence, "answer_id": person + 1})
    return answers
