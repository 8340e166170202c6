"""Makes the VQA v2, COCO captions and Flickr30k Entities records of Shapes images.

An image has several ids:

- ``image_id``, its Visual Genome id, counts from 1 over train, val and test. The file is ``VG_100K/<image_id>.jpg`` or
  ``VG_100K_2/<image_id>.jpg``, as its ``url`` in ``image_data.json`` says.
- ``coco_id`` is its id in the VQA and caption files. Every eighth image has none and is in none of these files (in
  Visual Genome, half of the images have none). The files under COCO's names are links to the Visual Genome image.
- ``flickr_id`` is its id in Flickr30k Entities. Every image has one.

Ids of objects, regions, questions and captions are the image's id times 1000, plus a count.

Each image of COCO is in one subset. In Shapes, train images are in train2014, except for a tenth in val2014, which is
Karpathy's "restval"; val images are in val2014. Test images are in val2014 for captions, as in Karpathy's split, and
in test2015 for VQA.
"""

import re
from dataclasses import dataclass

import numpy as np

from bua.shapes.scene import Scene
from bua.shapes.text import THE_IMAGE, Phrase, Question, plain_text

ANSWERS_PER_QUESTION = 10
MAX_WRONG_ANSWERS = 3


@dataclass
class DrawnImage:
    """A scene with its image's ids and paths in the data set.

    Attributes:
        scene: What the image shows.
        image_id: Visual Genome id, from 1.
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
        """Path of the JPEG file, relative to the data set's folder."""
        return f"{self.folder}/{self.image_id}.jpg"

    @property
    def coco_id(self) -> int | None:
        return None if self.image_id % 8 == 0 else 100_000 + 7 * self.image_id

    @property
    def flickr_id(self) -> int:
        return 2_000_000_000 + 1117 * self.image_id

    @property
    def karpathy_split(self) -> str:
        """Karpathy's split. A tenth of the train images are "restval": images of val2014 that are used for training."""
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
    """Returns an image's "questions" and "annotations" in VQA v2's files."""
    assert image.coco_id is not None  # only images with a COCO id have questions
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
    """Returns an image's records in the caption files.

    Returns:
        A dict with "karpathy", the image's entry in ``dataset_coco.json`` without the numbers that count images and
        sentences, and "coco_image" and "coco_captions", its entries in ``captions_*.json``.
    """
    assert image.coco_id is not None  # only images with a COCO id have captions
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
    """Returns the content of an image's two Flickr30k Entities files: Annotations/<id>.xml and Sentences/<id>.txt.

    Pixels count from 1, and a box includes its last pixel. The chain id of a phrase for one thing is the index of this
    thing plus 1. A phrase for several things has a chain of its own with the boxes of all of them. The last sentence
    also names the background, which has no box.
    """
    scene = image.scene
    chains: dict[tuple[int, ...], int] = {(index,): index + 1 for index in range(len(scene.things))}
    lines = []
    for sentence in sentences:
        words = []
        for part in sentence:
            if isinstance(part, str):
                words.append(part.replace(THE_IMAGE, f"[/EN#0/notvisual {THE_IMAGE}]"))
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
    """Returns the ten answers to a question. At most three are wrong, so that the right one keeps its full score.

    In VQA v2 ten people answer a question; here a program draws the answers.
    """
    wrong_count = int(rng.integers(0, MAX_WRONG_ANSWERS + 1)) if rng.random() < 0.3 else 0
    wrong_numbers = set(rng.permutation(ANSWERS_PER_QUESTION)[:wrong_count].tolist())
    answers = []
    for number in range(ANSWERS_PER_QUESTION):
        answer, confidence = question.answer, "yes"
        if number in wrong_numbers:
            answer = question.alternatives[int(rng.integers(len(question.alternatives)))]
            confidence = str(rng.choice(["maybe", "no"]))
        answers.append({"answer": answer, "answer_confidence": confidence, "answer_id": number + 1})
    return answers
