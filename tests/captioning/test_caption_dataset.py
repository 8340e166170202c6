"""Captions are read from official files, which Shapes writes too, and prepared as arrays."""

import json
from pathlib import Path

import numpy as np
import pytest
from script_loading import load_script

from bua.captioning.dataset import CaptionDataset, prepare_captions
from bua.captioning.official import (
    Captions,
    load_coco,
    load_karpathy,
    load_references,
    load_region_phrases,
    load_results,
    read_image_list,
)
from bua.captioning.vocabulary import CaptionVocabulary, anderson_words, karpathy_words
from bua.errors import InputError
from bua.shapes.make import make_shapes

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "prepare_captions.py"
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "data"
    make_shapes(root, 40, 8, 8, seed=3, processes=1)
    return root


@pytest.fixture(scope="module")
def karpathy(shapes) -> list[dict]:
    return json.loads((shapes / "captions/dataset_coco.json").read_text())["images"]


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


def of_split(karpathy, split):
    splits = {"train": ("train", "restval")}.get(split, (split,))
    return [image for image in karpathy if image["split"] in splits]


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def lists(karpathy, tmp_path) -> dict[str, Path]:
    """Lists of the images of each split, in the format in which Anderson lists Karpathy's splits."""
    lines = {
        split: [f"{i['filepath']}/{i['filename']} {i['cocoid']}\n" for i in of_split(karpathy, split)]
        for split in SPLITS
    }
    return {split: write(tmp_path / f"{split}_images.txt", "".join(lines[split])) for split in SPLITS}


@pytest.mark.parametrize(("tokenizer", "words_of"), [("anderson", anderson_words), ("karpathy", karpathy_words)])
def test_karpathys_file_is_prepared(shapes, karpathy, tmp_path, script, capsys, tokenizer, words_of):
    assert any(image["split"] == "restval" for image in karpathy)
    arguments = ["--karpathy", str(shapes / "captions/dataset_coco.json"), "--output", str(tmp_path / "out")]
    assert script.main([*arguments, "--tokenizer", tokenizer]) == 0
    printed = capsys.readouterr().out
    counted = karpathy if tokenizer == "karpathy" else of_split(karpathy, "train")
    texts = [sentence["raw"] for image in counted for sentence in image["sentences"]]
    if tokenizer == "karpathy":
        texts = [" ".join(sentence["tokens"]) for image in counted for sentence in image["sentences"]]
    vocabulary = CaptionVocabulary.build(texts, tokenizer)
    assert f"{len(vocabulary)} words" in printed
    for split in SPLITS:
        dataset = CaptionDataset.load(tmp_path / "out", split)
        assert dataset.vocabulary == vocabulary
        images = of_split(karpathy, split)
        assert len(dataset) == len(images) > 5
        assert dataset.num_captions == sum(len(image["sentences"]) for image in images)
        assert f"{split:6} {len(images):7} images, {dataset.num_captions:7} captions" in printed
        for item, image in zip(dataset, images):
            assert item.image_id == image["cocoid"]
            assert len(item.captions) == len(image["sentences"])
            for caption, sentence in zip(item.captions, image["sentences"]):
                words = [word if word in vocabulary.words else "<unk>" for word in words_of(sentence["raw"])]
                assert [vocabulary.words[number] for number in caption] == words
        references = load_references(tmp_path / "out" / f"captions_{split}.json")
        assert references == {image["cocoid"]: [s["raw"] for s in image["sentences"]] for image in images}


def same(one: CaptionDataset, other: CaptionDataset) -> bool:
    items = all(
        a.image_id == b.image_id and list(map(list, a.captions)) == list(map(list, b.captions))
        for a, b in zip(one, other, strict=True)
    )
    return items and one.vocabulary == other.vocabulary


def test_official_files_and_lists_give_the_same(shapes, lists, tmp_path, script):
    files = [shapes / f"captions/captions_{subset}2014.json" for subset in ("train", "val")]
    splits = [word for split, path in lists.items() for word in ("--split", split, str(path))]
    output = tmp_path / "coco"
    assert script.main(["--coco", *map(str, files), *splits, "--output", str(output)]) == 0
    prepare_captions(load_karpathy(shapes / "captions/dataset_coco.json"), tmp_path / "karpathy")
    for split in SPLITS:
        assert same(CaptionDataset.load(output, split), CaptionDataset.load(tmp_path / "karpathy", split))


def test_splits_of_an_earlier_run_are_removed(shapes, tmp_path):
    """Their ids belong to the vocabulary of that run."""
    captions = load_karpathy(shapes / "captions/dataset_coco.json")
    prepare_captions(captions, tmp_path)
    prepare_captions({"train": captions["train"]}, tmp_path, min_count=50)
    with pytest.raises(InputError, match=r"test\.npz: no such split"):
        CaptionDataset.load(tmp_path, "test")


def test_splits_are_joined(shapes, tmp_path):
    parts = prepare_captions(load_karpathy(shapes / "captions/dataset_coco.json"), tmp_path / "out")
    both = CaptionDataset.load(tmp_path / "out", "val", "train")
    items = [*parts["val"], *parts["train"]]
    assert len(both) == len(items)
    assert both.num_captions == parts["val"].num_captions + parts["train"].num_captions
    for one, other in zip(both, items):
        assert one.image_id == other.image_id
        assert list(map(list, one.captions)) == list(map(list, other.captions))


def test_region_phrases_as_word_pieces(shapes, tmp_path, script, capsys):
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", ",", ".", "-", *letters, *("##" + letter for letter in letters)]
    vocabulary = write(tmp_path / "vocab.txt", "\n".join(pieces))
    arguments = ["--regions", str(shapes / "region_descriptions.json"), "--output", str(tmp_path / "out")]
    for split in SPLITS:
        arguments += ["--split", split, str(shapes / f"splits/{split}.txt")]
    assert script.main([*arguments, "--tokenizer", "wordpiece", "--vocabulary", str(vocabulary)]) == 0
    regions = {r["id"]: r["regions"] for r in json.loads((shapes / "region_descriptions.json").read_text())}
    listed = read_image_list(shapes / "splits/val.txt")
    dataset = CaptionDataset.load(tmp_path / "out", "val")
    assert dataset.image_ids.tolist() == [image_id for image_id in listed if regions[image_id]]
    assert len(dataset) > 5
    for item in dataset:
        phrases = [region["phrase"].strip() for region in regions[item.image_id][:3]]
        expected = ", ".join(phrases).lower()
        (caption,) = item.captions
        assert dataset.vocabulary.decode(caption).replace(" ", "") == expected.replace(" ", "")
    assert dataset.vocabulary.words[-3:] == ["[pad]", "[start]", "[end]"]


def test_a_given_vocabulary_is_used(shapes, tmp_path):
    captions = load_karpathy(shapes / "captions/dataset_coco.json")
    file = write(tmp_path / "train_vocab.txt", ".\n<unk>\nred\na\n")
    datasets = prepare_captions(captions, tmp_path / "out", vocabulary=file)
    assert datasets["val"].vocabulary.words == [".", "<unk>", "red", "a"]
    assert set(datasets["val"].words.tolist()) == {1, 2, 3}


def test_images_without_regions_are_left_out(tmp_path, caplog):
    records = [{"id": 1, "regions": [{"phrase": "a cat"}]}, {"image_id": 2, "regions": []}]
    file = write(tmp_path / "regions.json", records)
    captions = load_region_phrases(file, {"train": write(tmp_path / "train.txt", "1\n2\n3\n")}, progress=False)
    assert captions["train"].texts == [["a cat"]]
    assert "train.txt: 2 of 3 images have no regions; they are left out" in caplog.text


def test_captions_without_words_are_not_trained_on(tmp_path, caplog):
    captions = {"train": Captions("file", np.array([7, 8]), [["a cat", " . "], ["", "a dog"]])}
    dataset = prepare_captions(captions, tmp_path, min_count=1)["train"]
    assert "file: 2 captions of train have no words; they are left out" in caplog.text
    kept = [[dataset.vocabulary.decode(caption) for caption in item.captions] for item in dataset]
    assert kept == [["a cat"], ["a dog"]]
    assert load_references(tmp_path / "captions_train.json") == {7: ["a cat", " . "], 8: ["", "a dog"]}
    captions["train"].texts[1] = ["."]
    with pytest.raises(InputError, match=r"^file: no caption of 1 of the 2 images of train has words: 8; leave"):
        prepare_captions(captions, tmp_path)
    assert len(CaptionDataset.load(tmp_path, "train")) == 2
    with pytest.raises(InputError, match=r"no captions.json in it; prepare it with"):
        CaptionDataset.load(tmp_path / "none", "train")


def image(**changes) -> dict:
    return {"cocoid": 1, "split": "train", "sentences": [{"raw": "A cat.", "tokens": ["a", "cat"]}]} | changes


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "does not hold a list of images under 'images'"),
        ([image(split="dev")], "record 0: split is 'dev'; it must be one of train, restval, val, test"),
        ([image(split=None)], "record 0: split is None; it must be a string"),
        ([image(sentences=[{"raw": "x"}])], "record 0: must have sentences with raw and tokens.*'tokens'"),
        ([image(cocoid="x")], "record 0: the image's id is 'x'; it must be an integer"),
        ([image(), image(split="val")], "has 1 images more than once: 1; keep one of each"),
        ([image(), image(cocoid=2, sentences=[])], "has no captions for 1 of the 2 images of train: 2; name"),
    ],
)
def test_errors_in_karpathys_file_are_reported_in_one_line(tmp_path, images, message):
    with pytest.raises(InputError, match=r"none.json: no such file; .* fetch the data set with `bua download`"):
        load_karpathy(tmp_path / "none.json")
    path = write(tmp_path / "dataset.json", {"images": images})
    with pytest.raises(InputError, match=f"^{path}: {message}") as error:
        load_karpathy(path)
    assert "\n" not in str(error.value)


def test_flickr30k_has_file_names_for_ids(tmp_path):
    record = image(filename="1000092795.jpg")
    del record["cocoid"]
    captions = load_karpathy(write(tmp_path / "dataset_flickr30k.json", {"images": [record]}))
    assert captions["train"].image_ids.tolist() == [1000092795]


def test_errors_in_official_files_are_reported_in_one_line(tmp_path):
    captions = write(tmp_path / "c.json", {"annotations": [{"image_id": 5, "caption": "a cat"}]})
    some = write(tmp_path / "some.txt", "val2014/COCO_val2014_000000000005.jpg 5\n6\n")
    with pytest.raises(InputError, match=f"^{captions}: has no captions for 1 of the 2 images of val: 6; name all"):
        load_coco([captions], {"val": some})
    with pytest.raises(InputError, match=r"some.txt: has 2 images more than once: 5, 6; keep one"):
        load_coco([captions], {"val": some, "test": some})
    for text, message in [
        ("5\n5\n", "line 2: image 5 is listed twice"),
        ("cat.jpg x\n", "line 1 is 'cat.jpg x'"),
        (f"{10**20}.jpg\n", f"line 1 is '{10**20}.jpg'"),
        ("", ""),
    ]:
        with pytest.raises(InputError, match=f"bad.txt: {message}"):
            read_image_list(write(tmp_path / "bad.txt", text))
    with pytest.raises(InputError, match="record 0: caption is None; it must be a string"):
        load_references([{"image_id": 5}])
    with pytest.raises(InputError, match="results: has 1 images more than once: 5; keep one of each"):
        load_results([{"image_id": 5, "caption": "a"}, {"image_id": 5, "caption": "b"}])


def test_unknown_splits_are_reported_in_one_line(shapes, tmp_path, script, capsys):
    file = str(shapes / "captions/dataset_coco.json")
    prepare_captions(load_karpathy(file), tmp_path)
    with pytest.raises(InputError, match=f"^{tmp_path}/restval.npz: no such split; {tmp_path} has test, train, val$"):
        CaptionDataset.load(tmp_path, "restval")
    assert script.main(["--karpathy", file, "--output", str(tmp_path), "--vocabulary-splits", "dev"]) == 2
    assert script.main(["--karpathy", file, "--output", str(tmp_path), "--split", "val", "x.txt"]) == 2
    assert script.main(["--coco", file, "--output", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("; ")[0] for line in lines] == [
        "error: split 'dev': there are no captions of it to count words of",
        "error: --split: only for --coco and --regions",
        "error: --split: missing",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "none"}, "tokenizer none"),
        ({"vocabulary": "bad.txt"}, "must begin with"),
        ({"vocabulary": "none.txt"}, "none.txt: no such file"),
        ({"vocabulary": "bad.txt", "min_count": 3}, "--min-count: has no effect with --vocabulary"),
        ({"vocabulary": "bad.txt", "vocabulary_splits": ["train"]}, "--vocabulary-splits: has no effect"),
    ],
)
def test_bad_input_leaves_a_prepared_folder_as_it_was(tmp_path, monkeypatch, options, message):
    captions = {"train": Captions("file", np.array([7]), [["a cat"]])}
    prepare_captions(captions, tmp_path / "out", min_count=1)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.txt", "cat\n")
    with pytest.raises(InputError, match=message):
        prepare_captions(captions, tmp_path / "out", **options)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_damaged_folders_are_reported_in_one_line(shapes, tmp_path):
    prepare_captions(load_karpathy(shapes / "captions/dataset_coco.json"), tmp_path)
    path = tmp_path / "val.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=f"^{path}: damaged .*; prepare it again"):
        CaptionDataset.load(tmp_path, "val")


@pytest.mark.parametrize("key", ["caption_offsets", "word_offsets"])
def test_an_image_without_captions_and_a_caption_without_words_are_refused(tmp_path, key):
    """No batch can be made of such images alone."""
    captions = {"train": Captions("file", np.array([7, 8]), [["a cat"], ["a dog"]])}
    (dataset,) = prepare_captions(captions, tmp_path, min_count=1).values()
    getattr(dataset, key)[1] = 0
    dataset.save(tmp_path / "train.npz")
    with pytest.raises(InputError, match=r"train\.npz: damaged .*; prepare it again"):
        CaptionDataset.load(tmp_path, "train")


def test_andersons_vocabulary_is_read(tmp_path):
    """Words in this file can contain blanks, and no special words are appended to them."""
    file = write(tmp_path / "train_vocab.txt", '.\n<unk>\na\n, "\n. .\n')
    vocabulary = CaptionVocabulary.read(file)
    assert vocabulary.encode('a, "b. .').tolist() == [2, 3, 1, 4]
