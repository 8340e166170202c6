import argparse
import json
from collections import Counter

import pytest

from bua.commands.prepare_visual_genome import add_arguments
from bua.errors import InputError
from bua.shapes.make import make_shapes
from bua.visual_genome.splits import NUM_IMAGES
from bua.visual_genome.vocabulary import MAX_NAMES, build_vocabularies
from bua.vocabulary import Vocabulary

COMMON = "white black blue green red brown yellow small large silver wooden orange gray grey metal pink tall long dark"
OBJECTS = [
    ["Small white dog.", "dog ", "DOG", "shiny dog", "cat, wild", "", "a\nb", "white", "Trees"],
    ["dog", "stop  sign", "sign", "sign"],
]
ATTRIBUTES = [
    [["White", "never counted"], [None, "red"], [], ["Red and  shiny."], ["Black and White"], ["red"]],
    [["red and shiny"], [""], None, [7, "red"], ["black and white and red"]],
]
PREDICATES = [["On", "on.", "sitting on", "", " . ", "has"], ["ON ", "has"], ["x, y"]]


def plain_counts(objects, attributes, predicates):
    """Counts names as the original does (setup_vg.py), one after the other."""

    def cleaned(text):
        text = text.lower().strip()
        return text[:-1].strip() if text[-1:] == "." else text

    counts = {"objects": Counter(), "attributes": Counter(), "relations": Counter()}
    for texts in attributes:
        for entry in texts:
            if entry and isinstance(entry[0], str):
                text = cleaned(entry[0])
                parts = [text] if text == "black and white" else text.split(" and ")
                counts["attributes"].update(part.strip() for part in parts)
    for texts in predicates:
        counts["relations"].update(cleaned(text) for text in texts if cleaned(text))
    for texts in objects:
        for text in texts:
            words = cleaned(text).split()
            leading = len(words) > 1 and all(word in COMMON.split() for word in words[:-1])
            counts["objects"][words[-1] if leading else cleaned(text)] += 1
            counts["attributes"].update(words[:-1] if leading else [])
    return counts


def write(folder, name, records):
    (folder / f"{name}.json").write_text(json.dumps(records))


def write_world(folder, source):
    records = [
        {"image_id": n, "objects": [{"object_id": k, "names": [name]} for k, name in enumerate(names)]}
        for n, names in enumerate(OBJECTS)
    ]
    relationships = [
        {"image_id": n, "relationships": [{"predicate": text} for text in texts]} for n, texts in enumerate(PREDICATES)
    ]
    write(folder, "image_data", [])
    write(
        folder,
        "attributes",
        [
            {"image_id": n, "attributes": [{"object_id": 0, "attributes": entry} for entry in entries]}
            for n, entries in enumerate(ATTRIBUTES)
        ],
    )
    if source == "scene_graphs":
        records.append({"image_id": 2, "objects": []})
        write(folder, source, [record | more for record, more in zip(records, relationships)])
    else:
        write(folder, source, records)
        write(folder, "relationships", relationships)
    return folder


def read_counts(folder, kind):
    lines = (folder / "vocab" / f"{kind}_count.txt").read_text().split("\n")
    assert lines.pop() == ""
    return lines


@pytest.mark.parametrize("source", ["objects", "scene_graphs"])
def test_names_are_counted_as_in_the_original(tmp_path, source):
    build_vocabularies(write_world(tmp_path, source), progress=False)
    for kind, counts in plain_counts(OBJECTS, ATTRIBUTES, PREDICATES).items():
        ranked = sorted(counts, key=lambda name: (-counts[name], name))
        text = "".join(f"{name}\t{counts[name]}\n" for name in ranked)
        assert (tmp_path / "vocab" / f"{kind}_count.txt").read_text() == text
        # A vocabulary file cannot hold these.
        usable = [name for name in ranked if name and "," not in name and "\n" not in name]
        assert Vocabulary.read(tmp_path / "vocab" / f"{kind}_vocab.txt").lines == usable
    # "Small white dog." is a dog, and counts as two attributes. Of a list of attributes only the first entry counts.
    assert read_counts(tmp_path, "objects")[:2] == ["dog\t4", "sign\t2"]
    assert read_counts(tmp_path, "attributes")[:4] == ["red\t4", "white\t3", "shiny\t2", "\t1"]
    assert read_counts(tmp_path, "relations") == ["on\t3", "has\t2", "sitting on\t1", "x, y\t1"]


def test_counts_of_shapes(tmp_path):
    make_shapes(tmp_path, num_train=8, num_val=1, num_test=1, processes=1)
    for kind in ("objects", "attributes", "relations"):
        (tmp_path / "vocab" / f"{kind}_vocab.txt").unlink()
    build_vocabularies(tmp_path, num_objects=3, progress=False)
    graphs = json.loads((tmp_path / "scene_graphs.json").read_text())
    expected = plain_counts(
        [[thing["names"][0] for thing in graph["objects"]] for graph in graphs],
        [
            [thing.get("attributes") for thing in image["attributes"]]
            for image in json.loads((tmp_path / "attributes.json").read_text())
        ],
        [[record["predicate"] for record in graph["relationships"]] for graph in graphs],
    )
    for kind, counts in expected.items():
        assert sorted(read_counts(tmp_path, kind)) == sorted(f"{name}\t{count}" for name, count in counts.items())
    assert len(Vocabulary.read(tmp_path / "vocab/objects_vocab.txt")) == 3


def test_sizes_of_vocabularies(tmp_path, monkeypatch):
    root = write_world(tmp_path, "objects")
    with pytest.raises(InputError, match=r"objects_vocab\.txt: 99 names are requested, but .* has 6; choose 1 to 6"):
        build_vocabularies(root, 99, 2, progress=False)
    with pytest.raises(InputError, match=r"relations_vocab\.txt: 0 names are requested"):
        build_vocabularies(root, 2, 2, 0, progress=False)
    assert not (root / "vocab").exists()
    # By default they have the original's sizes, or all names if there are fewer.
    monkeypatch.setitem(MAX_NAMES, "attributes", 2)
    (root / "relationships.json").unlink()
    with pytest.raises(InputError, match=r"neither scene_graphs\.json nor relationships\.json"):
        build_vocabularies(root, num_relations=3, progress=False)
    build_vocabularies(root, progress=False)
    assert Vocabulary.read(root / "vocab/attributes_vocab.txt").lines == ["red", "white"]
    assert len(Vocabulary.read(root / "vocab/objects_vocab.txt")) == 6
    assert not (root / "vocab/relations_vocab.txt").exists()
    with pytest.raises(InputError, match=r"objects_vocab\.txt: the file exists already"):
        build_vocabularies(root, 2, 4, progress=False)


def test_the_originals_sizes_are_the_defaults():
    assert MAX_NAMES == {"objects": 2500, "attributes": 1000, "relations": 500}
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = " ".join(parser.format_help().split())
    for kind, number in MAX_NAMES.items():
        assert f"number of {kind} to build; default: {number}, or all" in options
    for split in ("val", "test"):
        assert f"number of images of {split} to build; default: {NUM_IMAGES}" in options


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("relationships", [{"image_id": 1, "relationships": [{}]}], "image 1: the predicate of a relationship is None"),
        ("relationships", [{"image_id": 1}], "image 1: has no list 'relationships'"),
        ("attributes", [{"image_id": 3, "attributes": [{"attributes": 7}]}], "image 3: 'attributes' is 7"),
        ("objects", [{"image_id": 4, "objects": [{}]}], "image 4: an object has no 'names'"),
        ("objects", [], r"vocab/objects_vocab\.txt: names are requested, but .* has 0; use other files"),
    ],
)
def test_damaged_files(tmp_path, name, records, message):
    root = write_world(tmp_path, "objects")
    write(root, name, records)
    with pytest.raises(InputError, match=message):
        build_vocabularies(root, progress=False)
