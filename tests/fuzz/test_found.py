"""Cases that the fuzzers found, and that no other test has: each was a hang, or another exception than InputError."""

import io
import json

import numpy as np
import pytest
import torch

from bua.captioning.official import load_region_phrases, read_image_list
from bua.detection.annotations import DetectionDataset
from bua.errors import InputError
from bua.features.tsv import _id_text
from bua.grounding import official as flickr30k
from bua.visual_genome.prepare import _read_splits
from bua.vqa.answers import AnswerVocabulary
from bua.vqa.official import visual_genome_questions
from bua.weights.files import check_finite, read_weights

HUGE = "9" * 5000
XML = "<annotation><size><width>{0}</width><height>9</height></size></annotation>"
COCO = {"images": [], "annotations": [], "categories": [{"id": 0, "name": "cat"}]}


def _checkpoint(tensor: torch.Tensor) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": tensor}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (lambda path: DetectionDataset(path, path.parent), json.dumps({**COCO, "attribute_categories": 7}), "is 7"),
        (read_image_list, f"-{2**70}.jpg", "line 1"),
        (flickr30k.load_split, HUGE, "too long for a number"),
        (flickr30k.load_boxes, XML.format(HUGE), "size/width"),
        (flickr30k.load_boxes, XML.format(2**40), "no image has"),
        (flickr30k.load_sentences, f"[/EN#{HUGE}/people A man] runs .", "no mark"),
        (flickr30k.load_sentences, "[\x1b[2J/people A man] runs .", r"\\x1b"),
    ],
)
def test_text_that_cannot_be(tmp_path, read, content, message):
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        read(path)
    assert str(raised.value).isprintable()


def test_an_image_of_a_split_with_too_many_digits(tmp_path):
    (tmp_path / "splits").mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / "splits" / f"{split}.txt").write_text(f"VG_100K/{HUGE}.jpg xml/1.xml\n")
    with pytest.raises(InputError, match="line 1 is"):
        _read_splits(tmp_path)


def test_phrases_of_an_image_whose_id_is_a_list(tmp_path):
    regions = [{"id": [1], "regions": []}, {"id": 1, "regions": [{"phrase": "a cat"}]}]
    (tmp_path / "regions.json").write_text(json.dumps(regions))
    (tmp_path / "train.txt").write_text("1\n")
    captions = load_region_phrases(tmp_path / "regions.json", {"train": tmp_path / "train.txt"}, progress=False)
    assert list(captions) == ["train"]


@pytest.mark.parametrize(
    ("images", "questions"),
    [
        ([{"image_id": 1, "coco_id": [2]}], []),
        ([{"image_id": 1, "coco_id": 2}], [{"image_id": 1, "qas": [7]}]),
    ],
)
def test_questions_of_visual_genome_that_cannot_be(tmp_path, images, questions):
    (tmp_path / "image_data.json").write_text(json.dumps(images))
    (tmp_path / "question_answers.json").write_text(json.dumps(questions))
    with pytest.raises(InputError, match="get the file again"):
        visual_genome_questions(tmp_path, [np.array([2])], AnswerVocabulary(["yes"]))


@pytest.mark.parametrize("tensor", [torch.zeros(1).expand(1 << 40), torch.zeros(3, device="meta")])
def test_weights_without_values_of_their_own(tmp_path, tensor):
    path = tmp_path / "weights.pth"
    path.write_bytes(_checkpoint(tensor))
    with pytest.raises(InputError, match=r"weights.pth"):
        check_finite(read_weights(path), path)


def test_an_id_whose_quotes_end_before_a_carriage_return():
    assert _id_text(b'"a"\rb') == '"a"\rb'
