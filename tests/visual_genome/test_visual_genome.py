import functools
import gzip
import hashlib
import json
import os
import re
import shutil
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from script_loading import load_script

from bua.detection.annotations import DetectionDataset
from bua.errors import INPUT_ERROR, InputError
from bua.visual_genome import download
from bua.visual_genome.names import clean_attribute, clean_object_name
from bua.visual_genome.official import clip_boxes
from bua.visual_genome.prepare import prepare

OBJECTS = ["dog", "stop sign,stopsign", "tree,trees"]
ATTRIBUTES = ["small", "white", "gray,grey", "shiny", "black and white"]


def thing(object_id, name, box, **more):
    x, y, w, h = box
    return {"object_id": object_id, "names": [name], "x": x, "y": y, "w": w, "h": h, "synsets": []} | more


# Image id -> (objects, attributes). All images are 100 pixels wide and 50 high. 1 to 4 are train, 5 is val, 6 is test.
WORLD = {
    1: (
        [
            thing(10, "Small white dog.", (10, 5, 20, 30)),
            thing(11, "unknown", (0, 0, 5, 5)),
            thing(12, " StopSign ", (-5, -7, 20, 20)),  # over the upper left edge
            thing(13, "trees", (90, 40, 50, 50)),  # over the lower right edge
            thing(13, "trees", (90, 40, 50, 50)),  # annotated twice
        ],
        [
            thing(10, "dog", (0, 0, 0, 0), attributes=["White", "shiny and grey.", "nonsense"]),
            thing(10, "dog", (0, 0, 0, 0), attributes=["gray", None, "black and white"]),
            thing(12, "sign", (0, 0, 0, 0)),  # no attributes at all
            thing(11, "unknown", (0, 0, 0, 0), attributes=["white"]),
        ],
    ),
    2: ([thing(20, "unknown", (0, 0, 5, 5)), thing(21, "", (0, 0, 5, 5))], []),
    3: (
        [
            thing(30, "dog", (200, 5, 10, 10)),  # outside the image
            thing(31, "dog", (10, 5, 0, 0)),  # without extent
            thing(32, "dog", (10, 5, -3, 10)),
            thing(33, "dog", (1.9, 2.2, 3.3, 4.9)),
            {"object_id": 34, "names": [], "x": 0, "y": 0, "w": 1, "h": 1},
        ],
        [],
    ),
    4: ([], []),
    5: ([thing(50, "black dog", (1, 2, 3, 4))], []),
    6: ([thing(60, "large tree", (0, 0, 200, 200), attributes=["shiny"])], []),
}
SPLITS = {"train": (4, 3, 1, 2), "val": (5,), "test": (6,)}


def as_first_version(records):
    """Renames the fields as in version 1.0."""
    new = {"object_id": "id", "names": "name"}
    return [
        {new.get(key, key): (value[0] if value else "") if key == "names" else value for key, value in record.items()}
        for record in records
    ]


def write_world(root, world=WORLD, source="objects", first_version=False):
    image_key = "id" if first_version else "image_id"
    convert = as_first_version if first_version else list
    files = {
        "image_data": [{image_key: n, "width": 100, "height": 50, "url": f"https://x/VG_100K/{n}.jpg"} for n in world],
        "attributes": [{image_key: n, "attributes": convert(attributes)} for n, (_, attributes) in world.items()],
        source: [{"relationships": [], "objects": convert(o), image_key: n} for n, (o, _) in world.items()],
    }
    for name, records in files.items():
        (root / f"{name}.json").write_text(json.dumps(records))
    for folder in ("splits", "vocab", "VG_100K"):
        (root / folder).mkdir()
    for split, ids in SPLITS.items():
        (root / "splits" / f"{split}.txt").write_text("".join(f"VG_100K/{n}.jpg xml/{n}.xml\n" for n in ids))
    (root / "vocab" / "objects_vocab.txt").write_text("\n".join(OBJECTS))
    (root / "vocab" / "attributes_vocab.txt").write_text("\n".join(ATTRIBUTES))
    return root


@pytest.fixture
def root(tmp_path):
    return write_world(tmp_path)


@pytest.fixture
def tool():
    path = Path(__file__).parents[2] / "datasets" / "prepare_visual_genome.py"
    return load_script(path).main


@pytest.mark.parametrize("first_version", [False, True])
@pytest.mark.parametrize("source", ["objects", "scene_graphs"])
def test_official_files_become_dataset_dicts(tmp_path, source, first_version):
    root = write_world(tmp_path, source=source, first_version=first_version)
    summaries = prepare(root, "vg", progress=False)
    train = DetectionDataset(summaries["train"].annotation_file, root)

    assert train.name == "vg_train"
    assert train.image_ids.tolist() == [3, 1]  # in the order of the split; 2 and 4 have no object of a known class
    assert [entry["file_name"] for entry in train] == [str(root / "VG_100K/3.jpg"), str(root / "VG_100K/1.jpg")]
    assert train.sizes.tolist() == [[50, 100]] * 2
    summary = summaries["train"]
    assert (summary.listed, summary.images, summary.boxes, summary.attributes, summary.replaced) == (4, 2, 8, 5, 2)

    first, second = train[0], train[1]
    assert (first["height"], first["width"], first["image_id"]) == (50, 100, 3)
    assert [box["bbox"] for box in first["annotations"]] == [
        [0, 0, 99, 49],  # 49 = H - 1, where the original has W - 1
        [10, 5, 10, 5],
        [0, 0, 99, 49],
        [1, 2, 5, 7],
    ]
    assert [(box["category_id"], box["bbox"], box["attribute_ids"]) for box in second["annotations"]] == [
        (0, [10, 5, 30, 35], [0, 1, 3, 2, 4]),
        (1, [0, 0, 15, 13], []),
        (2, [90, 40, 99, 49], []),
        (2, [90, 40, 99, 49], []),
    ]
    assert {box["bbox_mode"] for box in second["annotations"]} == {0}

    test = DetectionDataset(summaries["test"].annotation_file, root)
    assert test[0]["annotations"][0]["attribute_ids"] == [3]  # from the object itself, as in scene graphs


def test_arrays_agree_with_dicts(root):
    train = DetectionDataset(prepare(root, progress=False)["train"].annotation_file, root)
    for index, entry in enumerate(train):
        boxes, classes, attributes = train.boxes(index), train.classes(index), train.attributes(index)
        assert (boxes.dtype, classes.dtype, attributes.dtype) == (np.float32, np.int64, np.int64)
        assert attributes.shape == (len(boxes), 16)
        assert boxes.tolist() == [box["bbox"] for box in entry["annotations"]]
        assert classes.tolist() == [box["category_id"] for box in entry["annotations"]]
        padded = [box["attribute_ids"] + [-1] * (16 - len(box["attribute_ids"])) for box in entry["annotations"]]
        assert attributes.tolist() == padded
    assert train[-1] == train[len(train) - 1]
    with pytest.raises(IndexError):
        train[len(train)]
    assert train.objects.lines == OBJECTS
    assert train.attribute_names.lines == ATTRIBUTES


def test_a_box_keeps_its_first_sixteen_attributes(tmp_path):
    world = WORLD | {5: ([thing(50, "dog", (1, 2, 3, 4))], [thing(50, "dog", (0, 0, 0, 0), attributes=["a and b"])])}
    world[5][1][0]["attributes"] += [f"a{n}" for n in range(20)]
    root = write_world(tmp_path, world)
    (root / "vocab" / "attributes_vocab.txt").write_text("\n".join(["b", "a", *(f"a{n}" for n in range(20))]))
    val = DetectionDataset(prepare(root, progress=False)["val"].annotation_file, root)
    assert val.attributes(0).tolist() == [[1, 0, *range(2, 16)]]


def test_coco_api_reads_the_annotation_file(root, capsys):
    from pycocotools.coco import COCO

    coco = COCO(str(prepare(root, progress=False)["train"].annotation_file))
    assert coco.getImgIds(catIds=[1]) == [1]
    [found] = coco.loadAnns(coco.getAnnIds(imgIds=[1], catIds=[0]))
    assert found["bbox"] == [10, 5, 20, 30]
    assert found["attribute_ids"] == [0, 1, 3, 2, 4]
    assert coco.loadCats([1])[0]["name"] == "stop sign"


@pytest.mark.parametrize(
    ("text", "name", "adjectives"),
    [
        ("Dog", "dog", []),
        ("white", "white", []),
        ("large  Green Trees.", "trees", ["large", "green"]),
        ("shiny green tree", "shiny green tree", []),
        ("green shiny tree", "green shiny tree", []),
        (" dog .. ", "dog .", []),
        ("", "", []),
        (".", "", []),
    ],
)
def test_clean_object_name(text, name, adjectives):
    assert clean_object_name(text) == (name, adjectives)


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("Red.", ["red"]),
        ("red and shiny and  tall ", ["red", "shiny", "tall"]),
        ("Black and White.", ["black and white"]),
        ("black and white and red", ["black", "white", "red"]),
        ("sandy", ["sandy"]),
    ],
)
def test_clean_attribute(text, attributes):
    assert clean_attribute(text) == attributes


NUMBERS = st.integers(-50, 150) | st.floats(-50, 150)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=5), st.integers(1, 90), st.integers(1, 90))
def test_clip_boxes_follows_the_rules_of_the_original(boxes, width, height):
    expected, replaced = [], 0
    for x, y, w, h in boxes:
        x1, y1, x2, y2 = max(0, x), max(0, y), min(width - 1, x + w), min(height - 1, y + h)
        if x2 < x1 or y2 < y1:
            x1, y1, x2, y2 = 0, 0, width - 1, height - 1
            replaced += 1
        expected.append([int(x1), int(y1), int(x2), int(y2)])
    clipped, count = clip_boxes(np.array(boxes, dtype=np.float64).reshape(-1, 4), width, height)
    assert clipped.tolist() == expected
    assert count == replaced


def damage_objects(change):
    def damage(root):
        path = root / "objects.json"
        records = json.loads(path.read_text())
        change(records)
        path.write_text(json.dumps(records))

    return damage


def truncate(root):
    text = (root / "attributes.json").read_text()
    (root / "attributes.json").write_text(text[: len(text) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "objects.json").unlink(),
            r"no scene_graphs\.json; download https://\S+/scene_graphs\.json\.zip",
        ),
        (lambda root: (root / "splits/val.txt").unlink(), r"val\.txt: no such file"),
        (lambda root: (root / "splits/val.txt").write_text("5.jpg\nx.jpg"), r"val\.txt: line 2 is 'x\.jpg'"),
        (lambda root: (root / "splits/val.txt").write_text(""), r"val\.txt: lists no images"),
        (lambda root: (root / "splits/val.txt").write_text("a/1.jpg"), r"image 1 is in train\.txt too"),
        (lambda root: (root / "splits/val.txt").write_text("a/9.jpg"), r"no image of splits/val\.txt has an object"),
        (lambda root: (root / "image_data.json").write_text("[]"), r"image 1 is not in image_data\.json"),
        (
            lambda root: (root / "image_data.json").write_text('[{"image_id": 1, "width": 0, "height": 5}]'),
            r"image_data\.json: image 1: width and height are \(0, 5\)",
        ),
        (truncate, r"attributes\.json: is truncated"),
        (lambda root: (root / "objects.json").write_text('{"images": []}'), "top level must be a list"),
        (damage_objects(lambda records: records[0].pop("objects")), r"objects\.json: image 1: has no list 'objects'"),
        (damage_objects(lambda records: records[0].pop("image_id")), r"objects\.json: an image has no 'image_id'"),
        (damage_objects(lambda records: records[0]["objects"][0].pop("w")), r"image 1: object 10 has no 'w'"),
        (damage_objects(lambda records: records[0]["objects"][0].update(w="9")), r"object 10: x, y, w, h are"),
        (damage_objects(lambda records: records[0]["objects"][0].pop("names")), r"image 1: an object has no 'names'"),
        (damage_objects(lambda records: records[0]["objects"][0].pop("object_id")), r"image 1: .* no 'object_id'"),
    ],
)
def test_errors_name_bad_official_files(root, tool, capsys, damage, message):
    damage(root)
    assert tool(["--root", str(root), "--name", "vg"]) == INPUT_ERROR
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error)
    assert str(root) in error
    assert not (root / "annotations").exists()


def edit(**changes):
    def change(tree):
        tree["annotations"][1].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.pop("categories"), "no list 'categories'"),
        (lambda tree: tree.pop("attribute_categories"), r"annotations\[\d+\]: attributes: \d is not known"),
        (lambda tree: tree["annotations"][1].pop("attribute_ids"), r"annotations\[1\] has no 'attribute_ids'"),
        (lambda tree: tree["images"][0].pop("file_name"), r"images\[0\] has no 'file_name'"),
        (lambda tree: tree["images"].append(tree["images"][0]), "images: the same id appears twice"),
        (lambda tree: tree["categories"].pop(0), r"annotations\[0\]: category_id: 0 is not known; known are 1, 2"),
        (edit(category_id=3), r"annotations\[1\]: category_id: not in 0\.\.2"),
        (edit(category_id="dog"), r"annotations\[1\]: category_id is 'dog', not int"),
        (edit(attribute_ids=[1, 5]), r"annotations\[1\]: attribute_ids: not in 0\.\.4"),
        (edit(attribute_ids=["red"]), r"attribute_ids must all be whole numbers"),
        (edit(image_id=99), r"annotations\[1\]: image_id: no entry of images has this id"),
        (edit(bbox=[1, 2, 3]), "a bbox does not consist of four numbers"),
        (edit(bbox=[1, 2, -3, 4]), r"annotations\[1\]: bbox"),
        (edit(bbox=[1, None, 3, 4]), "bbox"),
    ],
)
def test_errors_name_bad_annotation_files(root, change, message):
    path = prepare(root, progress=False)["train"].annotation_file
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=message) as caught:
        DetectionDataset(path, root)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "has no list 'images'"), ('{"images": [', "not a complete JSON file")]
)
def test_errors_name_json_files_of_another_kind(tmp_path, text, message):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        DetectionDataset(path, tmp_path)
    with pytest.raises(InputError, match="this annotation file does not exist"):
        DetectionDataset(tmp_path / "none.json", tmp_path)


def test_an_interrupted_preparation_keeps_the_old_annotation_file(root, monkeypatch):
    path = prepare(root, progress=False)["train"].annotation_file
    before = path.read_bytes()
    monkeypatch.setattr("bua.detection.annotations._records", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(root, progress=False)
    assert path.read_bytes() == before


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder whose files are on a local web server, as the published ones."""
    folder = tmp_path / "remote"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "*")
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with HTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(download, "URL", f"http://127.0.0.1:{server.server_port}/")
        yield folder
        server.shutdown()
        thread.join()


def test_published_files_are_downloaded_once_and_checked(tmp_path, remote, caplog):
    root = tmp_path / "root"
    files = {"vocab/x.txt": ("x.txt", hashlib.md5(b"cat\n").hexdigest())}
    (remote / "x.txt").write_text("dog\n")
    with pytest.raises(InputError, match=r"x\.txt: the file is missing, .* is not the published file"):
        download.download_missing(root, files)
    assert not (root / "vocab" / "x.txt").exists()

    (remote / "x.txt").write_text("cat\n")
    download.download_missing(root, files)
    (remote / "x.txt").unlink()
    download.download_missing(root, files)
    assert (root / "vocab" / "x.txt").read_text() == "cat\n"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

    download.download_optional(root, {"vocab/y.txt": ("y.txt", "")})
    assert "y.txt: the file is missing" in caplog.text
    assert "This file is optional." in caplog.text

    (root / "vocab" / "x.txt").write_text("mine\n")
    download.download_missing(root, files)
    assert "not the published file" in caplog.text
    assert (root / "vocab" / "x.txt").read_text() == "mine\n"


def test_a_file_that_is_there_and_cannot_be_read_is_one_line(tmp_path):
    files = {"x.txt": ("x.txt", hashlib.md5(b"cat\n").hexdigest())}
    damaged = bytearray(gzip.compress(bytes(range(256))))
    damaged[10] = 255  # a kind of block that does not exist
    (tmp_path / "x.txt.gz").write_bytes(damaged)
    with pytest.raises(InputError, match=r"x\.txt\.gz: is not a complete gzip file"):
        download.download_missing(tmp_path, files)
    os.mkfifo(tmp_path / "x.txt")
    with pytest.raises(InputError, match=r"x\.txt: cannot be read: it is a named pipe"):
        download.download_missing(tmp_path, files)


def test_the_error_of_a_failed_download_has_the_url(root, tool, remote, capsys):
    shutil.rmtree(root / "splits")
    assert tool(["--root", str(root)]) == INPUT_ERROR
    [line] = capsys.readouterr().err.strip().splitlines()
    assert f"{download.URL}train.txt" in line
    assert str(root / "splits/train.txt") in line


def test_an_empty_folder_is_to_be_downloaded(tmp_path, tool, monkeypatch, capsys):
    monkeypatch.setattr(download, "_download", lambda *_: pytest.fail("nothing is downloaded"))
    assert tool(["--root", str(tmp_path / "vg")]) == INPUT_ERROR
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "has no image_data.json, attributes.json, scene_graphs.json" in line
    assert "`bua download visual-genome`" in line


def test_the_program_builds_vocabularies_and_prepares(root, tool, capsys):
    shutil.rmtree(root / "vocab")
    shutil.rmtree(root / "splits")
    build = ["--build-vocabulary", "--objects", "5", "--attributes", "3"]
    splits = ["--build-splits", "--val-images", "1", "--test-images", "2"]
    # What is not possible is found before anything is written, so that the command can be corrected.
    for wrong in (["--objects", "1600"], ["--val-images", "1600"]):
        assert tool(["--root", str(root), "--name", "mine", *build, *splits, *wrong]) == INPUT_ERROR
        assert "1600" in capsys.readouterr().err.splitlines()[-1]
        assert not (root / "splits").exists()
        assert not (root / "vocab").exists()
    assert tool(["--root", str(root), "--name", "mine", *build, *splits]) == 0
    printed = capsys.readouterr().out
    assert "splits: 3 train, 1 val, 2 test" in printed
    assert re.search(r"train +\d of 3 images, .* 0 relations -> ", printed)
    assert len(DetectionDataset(root / "annotations" / "mine_val.json", root).objects) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objects", "5"], "--objects: is only for --build-vocabulary; add it"),
        (["--build-splits", "--relations", "5"], "--relations: is only for --build-vocabulary"),
        (["--build-vocabulary", "--coco-splits", "x"], "--coco-splits: is only for --build-splits"),
        (["--build-splits"], "train.txt: the file exists already; move it away"),
        (["--build-vocabulary"], "objects_vocab.txt: the file exists already; move it away"),
    ],
)
def test_options_of_the_program_that_cannot_be(root, tool, capsys, arguments, message):
    assert tool(["--root", str(root), "--name", "mine", *arguments]) == INPUT_ERROR
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_published_splits_and_vocabularies(tmp_path, shared_data, caplog):
    source = shared_data / "visual_genome"
    world = {
        2415417: ([thing(1, "yolk", (0, 0, 9, 9))], [thing(1, "yolk", (0, 0, 9, 9), attributes=["grey"])]),
        170: ([thing(2, "stopsign", (0, 0, 9, 9))], []),
        2404579: ([thing(3, "background", (0, 0, 9, 9))], []),
        2405620: ([thing(4, "large dog", (0, 0, 9, 9))], []),
    }
    root = write_world(tmp_path, world)
    for folder in ("splits", "vocab"):
        shutil.rmtree(root / folder)
        (root / folder).mkdir()
    for kind in ("objects", "attributes", "relations"):
        shutil.copy(source / f"{kind}_vocab.txt", root / "vocab")
    for split in ("train", "val", "test"):
        shutil.copy(source / f"{split}.txt.gz", root / "splits")

    download.download_missing(root, download.SPLITS | download.VOCABULARIES | download.RELATIONS)
    assert not caplog.records  # they are what was published
    summaries = prepare(root, progress=False)
    assert {split: summary.listed for split, summary in summaries.items()} == {
        "train": 98077,
        "val": 5000,
        "test": 5000,
    }
    assert "VG_100K_2: no such folder" in caplog.text
    train, val = (DetectionDataset(summaries[split].annotation_file, root) for split in ("train", "val"))
    assert (len(train.objects), len(train.attribute_names)) == (1600, 400)
    assert train.image_ids.tolist() == [2415417, 170]
    assert train.file_name(0) == str(root / "VG_100K_2/2415417.jpg")
    assert train.objects.names[train.classes(1)[0]] == "stop sign"
    assert train[0]["annotations"][0]["attribute_ids"] == [0]  # gray
    assert val.classes(0).tolist() == [956]
