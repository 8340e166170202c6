"""Cases that the fuzzers found, and that no other test has: each was a hang, or another exception than InputError."""

import io
import json
import os

import h5py
import lmdb
import numpy as np
import pytest
import torch
from feature_files import write_features

from bua.captioning.official import load_region_phrases, read_image_list
from bua.detection.annotations import DetectionDataset
from bua.errors import InputError
from bua.features import open_features
from bua.features.flat_files import RECORD
from bua.features.lmdb_pages import check_pages
from bua.features.tsv import _id_text
from bua.features.vinvl_rows import Names
from bua.grounding import official as flickr30k
from bua.structures import Regions
from bua.visual_genome.splits import read_splits
from bua.visualization.draw import save_image
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
        read_splits(tmp_path)


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


def test_a_question_of_visual_genome_whose_id_is_too_large(tmp_path):
    question = {"qa_id": 2**63, "question": "Is it?", "answer": "Yes."}
    (tmp_path / "image_data.json").write_text(json.dumps([{"image_id": 1, "coco_id": 2}]))
    (tmp_path / "question_answers.json").write_text(json.dumps([{"id": 1, "qas": [question]}]))
    with pytest.raises(InputError, match=f"qa_id is {2**63}; it must have at most 64 bits"):
        visual_genome_questions(tmp_path, [np.array([2])], AnswerVocabulary(["yes"]))


def test_a_label_map_of_vinvl_that_is_a_list(tmp_path):
    (tmp_path / "features.labelmap.json").write_text('{"label_to_idx": [1]}')
    with pytest.raises(InputError, match=r"labelmap\.json: is not a dictionary .* \(\[1\] is not one\)"):
        Names.read(tmp_path / "features.labelmap.json")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(1 << 40),
        torch.zeros(3, device="meta"),
        torch.zeros((), dtype=torch.int64, device="meta"),
        torch.tensor([1e300], dtype=torch.float64),
        torch.tensor([float("nan")], dtype=torch.complex64),
    ],
)
def test_weights_that_are_not_stored_or_not_finite(tmp_path, tensor):
    path = tmp_path / "weights.pth"
    path.write_bytes(_checkpoint(tensor))
    with pytest.raises(InputError, match=r"weights.pth"):
        check_finite(read_weights(path), path)


def test_an_id_whose_quotes_end_before_a_carriage_return():
    assert _id_text(b'"a"\rb') == '"a"\rb'


@pytest.mark.parametrize("name", ["\ud800", "a.\udcff", "a.cat", "a"])
def test_drawings_that_cannot_be_named_so(tmp_path, name):
    with pytest.raises(InputError, match="is not the name of an image"):
        save_image(tmp_path / name, np.zeros((8, 8, 3), np.uint8))


def test_a_drawing_whose_name_is_not_utf8(tmp_path):
    save_image(tmp_path / "\udce9.png", np.zeros((8, 8, 3), np.uint8))
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xe9.png"]


def test_hdf5_with_a_damaged_table_of_names(tmp_path):
    with h5py.File(tmp_path / "features.hdf5", "w") as file:
        file["image_features"] = np.zeros((1, 4), np.float32)
    content = (tmp_path / "features.hdf5").read_bytes()
    (tmp_path / "features.hdf5").write_bytes(content.replace(b"SNOD", b"SNOX"))
    with pytest.raises(InputError, match="symbol table"):
        open_features(tmp_path / "features.hdf5")


def test_lmdb_whose_long_value_is_on_an_impossible_page(tmp_path):
    with lmdb.open(str(tmp_path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"image", bytes(9000))
    content = (tmp_path / "data.mdb").read_bytes()
    place = content.index(b"image") + len(b"image")  # where the number of the page with the value is
    (tmp_path / "data.mdb").write_bytes(content[:place] + bytes([255] * 7 + [127]) + content[place + 8 :])
    with pytest.raises(ValueError, match=f"page {2**63 - 1} of .* pages is not there"):
        check_pages(tmp_path / "data.mdb")


def test_a_flat_record_with_the_id_of_another_and_a_text_that_is_not_there(tmp_path):
    boxes, features = np.array([[1, 2, 3, 4]], np.float32), np.ones((1, 2), np.float32)
    write_features(tmp_path / "x", [Regions(image_id, 9, 9, boxes, features) for image_id in (5, 6, 7)], "flat")
    (tmp_path / "x" / "lookup.npy").unlink()
    records = np.fromfile(tmp_path / "x" / "index.bin", RECORD)
    records["key"][0], records["text_offset"][0], records["text_length"][0] = 6, 2**40, 9
    records.tofile(tmp_path / "x" / "index.bin")
    with pytest.raises(InputError, match=r"record 1: its id in ids\.bin is damaged"):
        list(open_features(tmp_path / "x"))
