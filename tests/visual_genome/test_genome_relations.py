import json
import logging

import numpy as np
import pytest

from bua.detection.annotations import DetectionDataset, ImageAnnotations, write_annotations
from bua.errors import InputError
from bua.visual_genome.prepare import prepare
from bua.vocabulary import Vocabulary

RELATIONS = ["on,on top of,sitting on", "has"]


def thing(object_id, name):
    return {"object_id": object_id, "names": [name], "x": object_id, "y": 1, "w": 5, "h": 5}


# Image id -> (objects, relationships as subject, predicate, object).
WORLD = {
    1: (
        [thing(10, "dog"), thing(11, "unknown"), thing(12, "tree"), thing(12, "tree")],
        [
            (10, "Sitting on.", 12),  # the object is the last one with this id
            (10, " on top of", 12),  # the same relation once more
            (12, "HAS", 10),
            (10, "has", 10),
            (10, "on", 11),  # not an object of a known class
            (10, "on", 99),
            (10, "chases", 12),
            (10, "", 12),
        ],
    ),
    2: ([thing(20, "tree"), thing(21, "dog")], [(21, "on", 20)]),
    3: ([thing(30, "dog")], []),
    4: ([thing(40, "dog"), thing(41, "dog")], [(41, "has", 40)]),
}


def write_world(root, source, vocabulary=RELATIONS):
    def relationships(triples):
        if source == "scene_graphs":
            return [{"subject_id": s, "predicate": p, "object_id": o} for s, p, o in triples]
        key = "id" if source == "first version" else "object_id"
        return [{"subject": {key: s, "name": "x"}, "predicate": p, "object": {key: o}} for s, p, o in triples]

    objects = [{"image_id": n, "objects": things} for n, (things, _) in WORLD.items()]
    related = [{"image_id": n, "relationships": relationships(triples)} for n, (_, triples) in WORLD.items()]
    files = {
        "image_data": [{"image_id": n, "width": 100, "height": 50} for n in WORLD],
        "attributes": [{"image_id": n, "attributes": []} for n in WORLD],
    }
    if source == "scene_graphs":
        files[source] = [record | more for record, more in zip(objects, related)]
    else:
        files |= {"objects": objects, "relationships": related}
    for name, records in files.items():
        (root / f"{name}.json").write_text(json.dumps(records))
    for folder in ("splits", "vocab", "VG_100K"):
        (root / folder).mkdir()
    for split, ids in {"train": (2, 1), "val": (3,), "test": (4,)}.items():
        (root / "splits" / f"{split}.txt").write_text("".join(f"VG_100K/{n}.jpg xml/{n}.xml\n" for n in ids))
    for kind, lines in {"objects": ["dog", "tree"], "attributes": ["red"], "relations": vocabulary}.items():
        if lines:
            (root / "vocab" / f"{kind}_vocab.txt").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("source", ["scene_graphs", "objects", "first version"])
def test_relations_are_prepared_as_in_the_original(tmp_path, source):
    root = write_world(tmp_path, source)
    summaries = prepare(root, "vg", progress=False)
    assert {split: summary.relations for split, summary in summaries.items()} == {"train": 4, "val": 0, "test": 1}
    train, val, test = (DetectionDataset(summary.annotation_file, root) for summary in summaries.values())
    assert train.image_ids.tolist() == [2, 1]
    assert train.relations(0).tolist() == [[1, 0, 0]]
    assert train.relations(1).tolist() == [[0, 0, 2], [2, 1, 0], [0, 1, 0]]
    assert train.relations(-1).dtype == np.int64
    assert val.relations(0).shape == (0, 3)
    assert test.relations(0).tolist() == [[1, 1, 0]]
    assert train.relation_names.lines == val.relation_names.lines == RELATIONS


def test_other_programs_read_files_with_relations(tmp_path, capsys):
    from pycocotools.coco import COCO

    path = prepare(write_world(tmp_path, "objects"), progress=False)["train"].annotation_file
    coco = COCO(str(path))
    first = coco.dataset["relations"][0]
    assert first == {"id": 0, "image_id": 2, "subject_id": 1, "predicate_id": 0, "object_id": 0}
    subject, target = coco.loadAnns([first["subject_id"], first["object_id"]])
    assert [coco.loadCats([end["category_id"]])[0]["name"] for end in (subject, target)] == ["dog", "tree"]
    assert coco.dataset["relation_categories"][0] == {"id": 0, "name": "on", "aliases": ["on top of", "sitting on"]}
    assert [relation["id"] for relation in coco.dataset["relations"]] == [0, 1, 2, 3]


def test_relations_are_optional(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    without = prepare(write_world(tmp_path, "scene_graphs", vocabulary=[]), progress=False)["train"].annotation_file
    assert "relations_vocab.txt: no such file, so the annotations get no relations" in caplog.text
    assert b"relation" not in without.read_bytes()
    dataset = DetectionDataset(without, tmp_path)
    assert (len(dataset.relation_names), dataset.relations(0).shape) == (0, (0, 3))

    (tmp_path / "vocab" / "relations_vocab.txt").write_text("on")
    (tmp_path / "scene_graphs.json").rename(tmp_path / "objects.json")
    again = prepare(tmp_path, progress=False)["train"]
    assert "has no relationships.json, so the annotations get no relations" in caplog.text
    assert (again.relations, b"relation" in again.annotation_file.read_bytes()) == (0, False)


def test_images_in_any_order_keep_their_relations(tmp_path):
    boxes = np.array([[0, 0, 9, 9], [1, 1, 5, 5]])
    images = [ImageAnnotations(n, f"{n}.jpg", 10, 10, boxes, [0, 0], [[], []]) for n in (1, 2, 3)]
    images[0].relations = [(1, 0, 0)]
    images[2].relations = np.array([[0, 1, 1], [1, 1, 0]])
    path = tmp_path / "a.json"
    write_annotations(path, images, Vocabulary(["dog"]), Vocabulary(["red"]), Vocabulary(["on", "has"]))
    tree = json.loads(path.read_text())
    for field in ("relations", "annotations", "images"):
        tree[field].reverse()
    path.write_text(json.dumps(tree))
    dataset = DetectionDataset(path, tmp_path)
    assert dataset.image_ids.tolist() == [3, 2, 1]
    # The boxes of an image are in the order of the file, which is the other one now.
    assert [dataset.relations(n).tolist() for n in range(3)] == [[[0, 1, 1], [1, 1, 0]], [], [[0, 0, 1]]]


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("scene_graphs", lambda image: image.pop("relationships"), "image 1: has no list 'relationships'"),
        ("scene_graphs", lambda image: image["relationships"][0].pop("predicate"), "image 1: the predicate .* is None"),
        ("scene_graphs", lambda image: image["relationships"][0].pop("subject_id"), "no 'subject_id' .or 'subject'"),
        ("scene_graphs", lambda image: image["relationships"][0].update(object_id="9"), "no 'object_id' .or 'object'"),
        ("relationships", lambda image: image["relationships"].append(7), "image 1: has no list 'relationships'"),
        ("relationships", lambda image: image["relationships"][0]["subject"].clear(), "image 1: an object has no"),
    ],
)
def test_errors_name_bad_relationships(tmp_path, source, change, message):
    root = write_world(tmp_path, "scene_graphs" if source == "scene_graphs" else "objects")
    path = root / f"{source}.json"
    records = json.loads(path.read_text())
    change(records[0])
    path.write_text(json.dumps(records))
    with pytest.raises(InputError, match=message) as caught:
        prepare(root, progress=False)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(relations=7), "relations is 7; it must be a list"),
        (lambda tree: tree.update(relation_categories=7), "relation_categories is 7"),
        (lambda tree: tree["relations"][0].pop("image_id"), r"relations\[0\] has no 'image_id'"),
        (lambda tree: tree["relations"][1].update(predicate_id=2), r"relations\[1\]: predicate_id: not in 0\.\.1"),
        (lambda tree: tree["relations"][1].update(subject_id=99), r"relations\[1\]: subject_id: no annotation has"),
        (lambda tree: tree["relations"][0].update(object_id=3), r"relations\[0\]: object_id: this annotation is of"),
        (lambda tree: tree["relations"][0].update(image_id=1), r"relations\[0\]: subject_id: this annotation is of"),
        (lambda tree: tree["annotations"][1].update(id=0), "annotations: the same id appears twice"),
        (lambda tree: tree["annotations"][1].pop("id"), r"annotations\[1\] has no 'id'"),
    ],
)
def test_errors_name_bad_relations_in_annotation_files(tmp_path, change, message):
    path = prepare(write_world(tmp_path, "objects"), progress=False)["train"].annotation_file
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=message) as caught:
        DetectionDataset(path, tmp_path)
    assert str(path) in str(caught.value)
