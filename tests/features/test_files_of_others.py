"""Files of other programs. ``tests/data/files_of_peers.zip`` was made by their own writers from two images."""

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest
from feature_samples import assert_same, sample

from bua.errors import InputError
from bua.features import convert_features, open_features, open_writer
from bua.features.lmdb_rows import ROWS
from bua.features.lmdb_values import decode_value
from bua.structures import Regions

BOXES = np.float32([[1, 2, 31, 42], [3, 4, 50, 60]])
SCORES = np.float32([0.75, 0.5])
LABELS = {"object_ids": np.array([3, 1]), "object_scores": SCORES}
ATTRIBUTES = {"attribute_ids": np.array([2, 0]), "attribute_scores": np.float32([0.25, 0.125])}


def probabilities(background=True):
    columns = np.zeros((2, 1601), np.float32)
    columns[:, 0], columns[0, 4], columns[1, 2] = 1 - SCORES, SCORES[0], SCORES[1]
    return columns if background else columns[:, 1:]


PROBABILITIES = {"class_probs": probabilities(background=False).astype(np.float16)}


def regions(image_id, dim=4, **changes):
    features = np.float32(np.arange(2)[:, None] * 10 + np.arange(dim) % 4 + image_id)
    return Regions(**{"image_id": image_id, "width": 64, "height": 80, "boxes": BOXES, "features": features} | changes)


NO_SIZE = {"width": 0, "height": 0}
NO_BOXES = NO_SIZE | {"boxes": np.zeros((2, 4), np.float32)}
FRACTIONS = (BOXES / np.float32([64, 80, 64, 80])).astype(np.float16).astype(np.float32)
UNIT = {"width": 1, "height": 1, "boxes": FRACTIONS}
PEERS = {
    "vilbert-multi-task.lmdb": {},
    "vilbert-cls_prob.lmdb": LABELS | PROBABILITIES,
    "mmf.lmdb": LABELS | PROBABILITIES,
    "volta-npy.lmdb": LABELS | PROBABILITIES,
    "volta-tsv.lmdb": LABELS | ATTRIBUTES,
    "volta-h5.lmdb": LABELS | ATTRIBUTES | {"dim": 2048},
    "vl-t5.h5": LABELS | ATTRIBUTES | {"dim": 2048},
    "cocobu_att": NO_SIZE,
    "x-modaler": NO_BOXES,
    "gqa": {},
    "uniter-npz": LABELS | PROBABILITIES | UNIT,
    "uniter-compressed.lmdb": LABELS | PROBABILITIES | UNIT,
    "uniter.lmdb": LABELS | PROBABILITIES | UNIT,
}


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    with zipfile.ZipFile(Path(__file__).parents[1] / "data" / "files_of_peers.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("name", PEERS)
def test_what_other_programs_wrote_is_read(peers, caplog, name):
    if name == "uniter.lmdb":
        pytest.importorskip("msgpack")
    store = open_features(peers / name)
    assert set(store) == {5, 7}
    for image_id in store:
        assert_same(store[image_id], regions(image_id, **PEERS[name]))
    said = "image" in caplog.text
    assert said == (PEERS[name].get("width", 64) != 64), caplog.text
    assert len(caplog.records) <= 1


def test_uniters_msgpack_without_the_package_is_one_line(peers, monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(InputError, match="msgpack: is needed for UNITER's databases; install it"):
        open_features(peers / "uniter.lmdb")


def test_uniters_msgpack_in_a_process_that_patched_msgpack(peers, monkeypatch):
    """UNITER's code calls msgpack_numpy.patch(), after which msgpack returns arrays."""
    msgpack = pytest.importorskip("msgpack")
    unpack, expected = msgpack.unpackb, open_features(peers / "uniter.lmdb")[5]

    def array(content):
        return (
            np.frombuffer(content[b"data"], content[b"type"]).reshape(content[b"shape"])
            if b"nd" in content
            else content
        )

    monkeypatch.setattr(msgpack, "unpackb", lambda value, **options: unpack(value, object_hook=array, **options))
    assert_same(open_features(peers / "uniter.lmdb")[5], expected)


def test_an_lmdb_of_uniter_is_not_continued(peers):
    with pytest.raises(InputError, match="UNITER"), open_writer(peers / "uniter-compressed.lmdb", "vilbert-lmdb"):
        pass


def uniter_lmdb(path, value, names=("5.npz",)):
    path.mkdir()
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"5.npz", value)
        transaction.put(b"__keys__", json.dumps(names).encode() if not isinstance(names, bytes) else names)
    return path


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({b"nd": True, b"type": "<f4", b"shape": [2**40, 4], b"data": b"1234"}, "4 bytes do not fit"),
        ({b"nd": True, b"type": "|O", b"shape": [1], b"data": pickle.dumps(os.system)}, "do not fit"),
        ({b"nd": True, b"type": "<f4", b"shape": [-1, -1], b"data": b"1234"}, "do not fit"),
        ([1, 2], "is not an array of numbers"),
        ({b"nd": True, b"type": "<f4", b"shape": [2], b"data": b"12345678"}, r"has the shape \(2,\)"),
    ],
    ids=["large", "objects", "negative", "list", "shape"],
)
def test_hostile_msgpack_is_one_line(tmp_path, features, message):
    msgpack = pytest.importorskip("msgpack")
    path = uniter_lmdb(tmp_path / "x", msgpack.packb({"features": features}, use_bin_type=True))
    with pytest.raises(InputError, match=f"features.*{message}") as raised:
        open_features(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("names", [b"{}", b"[1]", b"[" * 100_000, b"\xff"])
def test_hostile_lists_of_uniters_keys_are_one_line(tmp_path, names):
    with pytest.raises(InputError, match="x: is an LMDB without features") as raised:
        open_features(uniter_lmdb(tmp_path / "x", b"", names))
    assert "\n" not in str(raised.value)


def save_mmf(folder, info, features=None):
    folder.mkdir()
    features = regions(5).features if features is None else features
    sizes = {"image_width": 64, "image_height": 80, "num_boxes": 2}
    np.save(folder / "5_info.npy", {"bbox": BOXES} | sizes | info)
    np.save(folder / "5.npy", features)
    return open_features(folder)[5]


def test_scores_of_mmfs_faster_rcnn(tmp_path, caplog):
    # The number of features is not limited by --num_features, in contrast to the other fields.
    info = {"objects": np.array([3, 1]), "cls_prob": SCORES}
    read = save_mmf(tmp_path / "x", info, np.concatenate([regions(5).features, np.zeros((1, 4), np.float32)]))
    assert_same(read, regions(5, **LABELS))
    assert "sizes of the resized images" in caplog.text


def test_boxes_of_mmfs_vinvl(tmp_path):
    corners = BOXES / np.float32([64, 80, 64, 80])
    info = {"bbox": np.hstack([corners, corners[:, 2:] - corners[:, :2]]), "labels": np.array([4, 2]), "scores": SCORES}
    info |= {"attr_labels": np.array([[3, 9], [1, 9]]), "attr_scores": np.float32([[0.25, 0.1], [0.125, 0.1]])}
    read = save_mmf(tmp_path / "x", info)
    np.testing.assert_allclose(read.boxes, BOXES, rtol=1e-6)
    assert_same(read, regions(5, **LABELS, **ATTRIBUTES), without=["boxes"])
    info["attr_labels"][1, 0] = 0  # no attribute
    assert save_mmf(tmp_path / "y", info).attribute_ids is None


def test_objects_of_mmf_with_background_count_without_it(tmp_path):
    columns = probabilities()
    info = {"objects": columns.argmax(axis=1), "cls_prob": columns}
    assert info["objects"].tolist() == [4, 0]
    assert_same(save_mmf(tmp_path / "x", info), regions(5, **LABELS, **PROBABILITIES))


@pytest.mark.parametrize("classes", [13, 1600])
@pytest.mark.parametrize("background", [True, False])
def test_files_of_bua_through_mmfs_conversion_keep_their_classes(tmp_path, classes, background):
    """MMF's lmdb_conversion.py copies ``objects`` and ``cls_prob``, but no other labels. MMF's own extraction writes
    the former as the best of the latter."""
    probs = np.random.default_rng(0).dirichlet(np.ones(classes + 1), 5)[:, 1:].astype(np.float16)
    ids = probs.argmax(axis=1)
    expected = regions(7, boxes=np.tile(BOXES[0], (5, 1)), features=np.ones((5, 4), np.float32), class_probs=probs)
    expected.object_ids, expected.object_scores = ids, probs.max(axis=1).astype(np.float32)
    if background:
        with open_writer(tmp_path, "mmf") as writer:
            writer.append(expected)
            writer.finish()
        info = np.load(tmp_path / "7_info.npy", allow_pickle=True).item()
        del info["objects_conf"]
    else:
        np.save(tmp_path / "7.npy", expected.features)
        fields = {"bbox": expected.boxes, "num_boxes": 5, "image_width": 64, "image_height": 80}
        info = fields | {"objects": ids, "cls_prob": probs.astype(np.float32)}
    np.save(tmp_path / "7_info.npy", info)
    assert_same(open_features(tmp_path)[7], expected)


@pytest.mark.parametrize(
    ("features", "info", "message"),
    [
        (np.ones((2, 4), "c8"), {}, "features has values of the type complex64"),
        (np.full((2, 4), "1"), {}, "features has values of the type <U1"),
        (np.ones((2, 4), bool), {}, "features has values of the type bool"),
        (np.full((2, 4), "2020-01-01", "M8[D]"), {}, "features has values of the type datetime64"),
        (None, {"bbox": BOXES.astype(bool)}, "bbox has values of the type bool"),
        (None, {"num_boxes": 3}, "num_boxes is 3, but there are 2 boxes"),
        (None, {"num_boxes": 1, "objects_conf": SCORES}, "num_boxes is 1, but there are 2 boxes"),
    ],
)
def test_wrong_fields_of_mmf_are_one_line(tmp_path, features, info, message):
    with pytest.raises(InputError, match=rf"5.*\.npy: {message}") as raised:
        save_mmf(tmp_path / "x", info, features)
    assert "\n" not in str(raised.value)


def test_the_number_of_boxes_of_mmfs_faster_rcnn_is_that_of_its_option(tmp_path):
    info = {"num_boxes": 100, "objects": np.array([3, 1]), "cls_prob": SCORES}
    assert len(save_mmf(tmp_path / "x", info)) == 2


@pytest.mark.parametrize(
    ("reader", "change", "message"),
    [
        (None, {"num_boxes": "3"}, "boxes"),
        ("vilbert-multi-task", {"num_boxes": 3}, "num_boxes is 3, but there are 2 boxes"),
        ("vilbert-multi-task", {"features": np.ones((2, 4), bool)}, "features has values of the type bool"),
        ("mmf", {"num_boxes": 3}, "num_boxes is 3, but there are 2 boxes"),
    ],
)
def test_wrong_fields_of_lmdbs_are_one_line(reader, change, message):
    row = pickle.loads(ROWS[reader](regions(5)))
    with pytest.raises(ValueError, match=message) as raised:
        decode_value(5, pickle.dumps(row | change), print)
    assert "\n" not in str(raised.value)


def vilbert_multi_task(folder):
    folder.mkdir()
    columns = probabilities()
    info = {
        "bbox": BOXES,
        "num_boxes": 1,
        "objects": columns[1:].argmax(axis=1),
        "image_width": 64,
        "cls_prob": columns,
    }
    info |= {"image_height": 80, "image_id": "5", "features": regions(5).features}
    np.save(folder / "5.npy", info)
    return folder


def test_folders_of_npy_without_info_are_read(tmp_path, caplog):
    assert_same(open_features(vilbert_multi_task(tmp_path / "vmt"))[5], regions(5, **LABELS, **PROBABILITIES))
    assert convert_features(tmp_path / "vmt", tmp_path / "vmt.tsv", "tsv") == 1
    assert not caplog.records
    (tmp_path / "mmf").mkdir()
    np.save(tmp_path / "mmf" / "5.npy", regions(5).features)
    assert_same(open_features(tmp_path / "mmf")[5], regions(5, **NO_BOXES))
    assert "has no boxes" in caplog.text


def test_a_folder_of_npy_without_images_is_refused(tmp_path):
    np.save(tmp_path / "5_info.npy", {})
    with pytest.raises(InputError, match=r"has no image: no <id>_info\.npy has its features"):
        open_features(tmp_path)


def test_files_of_xmodaler_with_boxes(tmp_path):
    one = regions(5)
    sizes = {"image_w": [64], "image_h": [80], "num_boxes": [2]}
    np.savez(tmp_path / "5.npz", features=one.features, boxes=BOXES, cls_prob=probabilities(), **sizes)
    assert_same(open_features(tmp_path)[5], regions(5, **LABELS, **PROBABILITIES))
    np.savez(tmp_path / "5.npz", features=one.features, boxes=BOXES[:1], **sizes)
    with pytest.raises(InputError, match=r"5\.npz: .*boxes has the shape \(1, 4\)"):
        open_features(tmp_path)[5]


def test_the_m2_transformers_file(tmp_path, caplog):
    path = tmp_path / "coco_detections.hdf5"
    with h5py.File(path, "w") as file:
        file["5_features"], file["5_boxes"], file["5_cls_prob"] = regions(5).features, BOXES, probabilities()
        file["7_features"] = regions(7).features
    store = open_features(path)
    assert_same(store[5], regions(5, **NO_SIZE, **LABELS, **PROBABILITIES))
    assert_same(pickle.loads(pickle.dumps(store))[7], regions(7, **NO_BOXES))
    assert "does not have the sizes" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("boxes", h5py.ExternalLink("other.h5", "/boxes"), "boxes: is missing"),
        ("boxes", np.zeros((1, 4)), r"boxes has the shape \(1, 4\) instead of \(2, 4\)"),
        ("obj_id", np.zeros(3, int), r"object_ids has the shape \(3,\)"),
        ("features", "text", "features has values of the type object"),
        ("img_w", np.zeros(3, int), "can only convert an array of size 1"),
        ("img_w", 2**40, "width: is not a number of pixels"),
    ],
)
def test_wrong_groups_of_vl_t5_are_one_line(peers, tmp_path, name, value, message):
    path = tmp_path / "x.h5"
    path.write_bytes((peers / "vl-t5.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        del file["5"][name]
        file["5"][name] = value
    with pytest.raises(InputError, match=rf"x\.h5: image 5: .*{message}") as raised:
        open_features(path)[5]
    assert "\n" not in str(raised.value)
    assert open_features(path)[7].width == 64


@pytest.mark.parametrize(
    ("name", "link"), [("vl-t5", "/6"), ("vl-t5", "/missing"), ("m2", "/6_features"), ("m2", "/missing")]
)
def test_a_link_to_nothing_is_an_error_of_its_image_alone(peers, tmp_path, name, link):
    path = tmp_path / "x.h5"
    if name == "vl-t5":
        path.write_bytes((peers / "vl-t5.h5").read_bytes())
    with h5py.File(path, "a") as file:
        if name == "m2":
            file["5_features"] = file["7_features"] = regions(5).features
        file["6" if name == "vl-t5" else "6_features"] = h5py.SoftLink(link)
    store = open_features(path)
    assert set(store) == {5, 6, 7}
    with pytest.raises(InputError, match=r"x\.h5: image 6: ") as raised:
        store[6]
    assert "\n" not in str(raised.value)
    assert len(store[5]) == len(store[7]) == 2


def test_hdf5_without_features_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["weights"] = [1, 2]
    with pytest.raises(InputError, match="neither a data set image_features nor data sets or groups of images"):
        open_features(tmp_path / "x.h5")


def test_seven_columns_of_vilbert(tmp_path):
    with open_writer(tmp_path / "x.tsv", "tsv") as writer:
        writer.append(regions(5))
        writer.finish()
    from bua.features.encoding import encode_array

    row = (tmp_path / "x.tsv").read_bytes().rstrip(b"\r\n")
    (tmp_path / "y.tsv").write_bytes(row + b"\t" + encode_array(probabilities(), np.dtype("<f4")).encode() + b"\r\n")
    assert_same(open_features(tmp_path / "y.tsv")[5], regions(5, **LABELS, **PROBABILITIES))
    (tmp_path / "z.tsv").write_bytes(row + b"\t" + b"AAAA" * 3 + b"\r\n")
    with pytest.raises(InputError, match="line 1: cls_prob: 9 bytes do not fit"):
        open_features(tmp_path / "z.tsv")[5]


def test_oscars_sizes_are_in_predictions(tmp_path):
    from bua.features.encoding import encode_array

    corners = BOXES / np.float32([64, 80, 64, 80])
    table = np.hstack([regions(5).features, corners, corners[:, 2:] - corners[:, :2]])
    (tmp_path / "features.tsv").write_text(f"5\t2\t{encode_array(table, np.dtype('<f4'))}\n")
    with pytest.raises(InputError, match="size of image '5' is unknown"):
        open_features(tmp_path / "features.tsv")[5]
    objects = [{"class": "cat", "rect": [1, 2, 31, 42], "conf": 0.5}]
    content = json.dumps({"image_h": 80, "image_w": 64, "num_boxes": 2, "objects": objects, "predicates": []})
    (tmp_path / "predictions.tsv").write_text(f"5\t{content}\n")
    read = open_features(tmp_path / "features.tsv")[5]
    np.testing.assert_allclose(read.boxes, BOXES, rtol=1e-6)
    assert_same(read, regions(5), without=["boxes"])
    with pytest.raises(InputError, match="line 1: feature: is missing; if this is a file of labels"):
        open_features(tmp_path / "predictions.tsv")[5]


@pytest.mark.parametrize("format", ["tsv", "npz", "mmf"])
def test_two_names_of_one_number_are_refused_before_anything_is_written(tmp_path, format):
    with open_writer(tmp_path / "x", "flat") as writer:
        for image_id in ("COCO_train2014_000000000042", "000000000042"):
            writer.append(sample(image_id))
        writer.finish()
    with pytest.raises(
        InputError, match="images COCO_train2014_000000000042 and 000000000042 would both get the id 42"
    ):
        convert_features(tmp_path / "x", tmp_path / "y", format, ids="number")
    assert sorted(os.listdir(tmp_path)) == ["x"]


@pytest.mark.parametrize(
    ("format", "ids", "missed", "reason"),
    [
        ("tsv", ["a/b", "été"], ["a\udcff", "b\udcfe"], "cannot read any of it"),
        ("oscar-tsv", ["a/b"], ["a\udcff", "b\udcfe"], "cannot read any of it"),
        ("npz", ["été", "a b", 5], ["a/b", "c:d"], "do not find them"),
        ("mmf", ["a_b"], ["a/b", "x.npy.y"], "do not find them"),
    ],
)
def test_ids_that_other_programs_miss_are_said_at_writing(tmp_path, caplog, format, ids, missed, reason):
    with open_writer(tmp_path / "x", format) as writer:
        for image_id in ids:
            writer.append(sample(image_id))
        assert not caplog.records
        for image_id in missed:
            writer.append(sample(image_id))
        writer.finish()
    first, all_of_them = (record.getMessage() for record in caplog.records)
    assert ascii(missed[0]) in first
    assert reason in first
    assert f"2 ids are {'not UTF-8' if 'tsv' in format else 'percent-encoded'}" in all_of_them
    assert ", ".join(map(ascii, missed)) in all_of_them
    assert set(open_features(tmp_path / "x")) == {*ids, *missed}


@pytest.mark.parametrize("change", [{"objects": [{}]}, {"cls_prob": {}}, {"bbox": None}, {"image_width": np.inf}])
def test_hostile_values_of_mmfs_lmdb_are_one_line(tmp_path, change):
    one = {"feature_path": "5", "features": regions(5).features, "bbox": BOXES, "image_width": 64, "image_height": 80}
    (tmp_path / "x").mkdir()
    with lmdb.open(str(tmp_path / "x")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"5", pickle.dumps(one | change))
        transaction.put(b"keys", pickle.dumps([b"5"]))
    with pytest.raises(InputError, match="x: is an LMDB without features") as raised:
        open_features(tmp_path / "x")
    assert "\n" not in str(raised.value)
