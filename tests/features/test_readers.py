"""Flavours of formats: what the readers of other authors find in files that bua writes for them.

The readers here do what those of the authors do, reduced to what they take from the files.
"""

import base64
import json
import pickle
from dataclasses import replace

import h5py
import lmdb
import numpy as np
import pytest
from feature_files import REGION_FORMATS
from feature_samples import LABELS, assert_same, sample

from bua.errors import InputError
from bua.features import convert_features, open_features, open_writer
from bua.features.parts import merge_part, part_format
from bua.features.probabilities import with_background
from bua.features.readers import READERS, format_for, holds_probabilities

ABOUT = {
    "object_vocabulary": [f"object {number}" for number in range(1600)],
    "attribute_vocabulary": [f"attribute {number}" for number in range(400)],
}
# All targets: (format, reader).
FLAVOURS = [(format, reader) for reader, needs in READERS.items() for format in needs.formats]
TARGETS = [(format, None) for format in REGION_FORMATS] + FLAVOURS
NAMED = {"vinvl-tsv"} | {"oscar-tsv"}


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Makes syncing do nothing, so that the tests do not wait for the disk."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


def with_probabilities(regions, classes=7):
    """Returns the regions with the probabilities of a few classes, of which the best are their objects."""
    rng = np.random.default_rng(len(regions))
    probs = rng.dirichlet(np.ones(classes + 1), len(regions)).astype(np.float32)
    class_probs = probs[:, 1:].astype(np.float16)
    scores = class_probs.max(axis=1).astype(np.float32)
    return replace(regions, class_probs=class_probs, object_ids=class_probs.argmax(axis=1), object_scores=scores)


def images_of(counts):
    ids = (7, 42, 581929)
    return {
        image_id: with_probabilities(sample(image_id, count, seed=seed))
        for seed, (image_id, count) in enumerate(zip(ids, counts))
    }


def write(path, images, format, reader=None):
    with open_writer(path, format, ABOUT, reader) as writer:
        for regions in images.values():
            writer.append(regions)
        writer.finish()
    return path


def best_first(regions):
    """Returns the regions in the order of UNITER's files."""
    order = np.argsort(-regions.object_scores, kind="stable")
    fields = ("boxes", "features", "class_probs", *LABELS)
    return replace(regions, **{field: None if (x := getattr(regions, field)) is None else x[order] for field in fields})


def entries(path):
    """Yields what vilbert's, Volta's and MMF's readers load from their LMDBs, by the keys in their list."""
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        for key in pickle.loads(transaction.get(b"keys")):
            yield int(key), pickle.loads(transaction.get(key))


def as_text(row, height="image_h", width="image_w"):
    count = int(row["num_boxes"])
    features, boxes, probs = (
        np.frombuffer(base64.b64decode(row[name]), np.float32).reshape(count, -1)
        for name in ("features", "boxes", "cls_prob")
    )
    return int(row[width]), int(row[height]), features, boxes, probs


def read_vilbert(path):
    return {image_id: as_text(row) for image_id, row in entries(path)}


def read_volta(path):
    return {image_id: as_text(row, "img_h", "img_w") for image_id, row in entries(path)}


def read_multi_task(path):
    return {
        image_id: (row["image_w"], row["image_h"], row["features"], row["boxes"], row["cls_prob"])
        for image_id, row in entries(path)
    }


def read_mmf_lmdb(path):
    return {
        image_id: (row["image_width"], row["image_height"], row["features"], row["bbox"], row["cls_prob"])
        for image_id, row in entries(path)
    }


def read_mmf(path):
    found = {}
    for file in path.glob("*_info.npy"):
        info = np.load(file, allow_pickle=True).item()
        image_id = int(file.name.removesuffix("_info.npy").split("_")[-1])
        features = np.load(str(file).replace("_info", ""))
        found[image_id] = info["image_width"], info["image_height"], features, info["bbox"], info["cls_prob"]
    return found


def read_mcan(path):
    found = {}
    for file in path.glob("*.npz"):
        arrays = np.load(file)
        image_id = int(file.name.split("_")[-1].split(".")[0])
        size = int(arrays["image_w"]), int(arrays["image_h"])
        found[image_id] = *size, arrays["x"].transpose((1, 0)), arrays["bbox"], None
    return found


def read_gqa(path):
    found = {}
    for file in path.glob("*.npz"):
        arrays = np.load(file)
        found[int(file.name.split(".")[0])] = (
            *(float(arrays[name]) for name in ("width", "height")),
            *(arrays["x"], arrays["bbox"], None),
        )
    return found


def read_uniter(path):
    """UNITER takes arrays of one or two dimensions, and reads positions instead of boxes."""
    found = {}
    for file in path.glob("*.npz"):
        arrays = dict(np.load(file, allow_pickle=True).items())
        assert all(array.ndim in (1, 2) for array in arrays.values())
        assert (np.diff(arrays["conf"][:, 0]) <= 0).all()
        size = np.array([640, int(arrays["image_h"][0])] * 3)
        positions = arrays["norm_bb"].astype(np.float32)
        assert arrays["norm_bb"].dtype == arrays["features"].dtype == arrays["soft_labels"].dtype == np.float16
        np.testing.assert_allclose(positions[:, 4:], positions[:, 2:4] - positions[:, :2], atol=2e-3)
        np.testing.assert_allclose((positions * size)[:, :4], arrays["bbox"], atol=0.5)
        image_id = int(file.name.split("_")[-1].split(".")[0])
        found[image_id] = 640, size[1], arrays["features"].astype(np.float32), arrays["bbox"], arrays["soft_labels"]
    return found


def read_m2(path):
    found = {}
    with h5py.File(path) as file:
        for image_id in (7, 42, 581929):
            features, boxes, probs = (file[f"{image_id}_{name}"][()] for name in ("features", "boxes", "cls_prob"))
            found[image_id] = None, None, features, boxes, probs
    return found


def seek(path, row):
    """Returns the cells of a row as Oscar's TSVFile does, which begins where the lineidx says."""
    with open(path) as file:
        file.seek(int(path.with_suffix(".lineidx").read_text().split()[row]))
        return [cell.strip() for cell in file.readline().split("\t")]


def read_oscar_retrieval(path):
    rows = json.loads((path.parent / "imageid2idx.json").read_text())
    found = {}
    for number, (image_id, row) in enumerate(rows.items()):
        cells = seek(path, row)
        table = np.frombuffer(base64.b64decode(cells[-1]), np.float32).reshape(int(cells[1]), -1)
        key, labels = seek(path.parent / "predictions.tsv", number)
        labels = json.loads(labels)
        assert key == cells[0] == image_id
        assert all(one["class"].startswith("object ") for one in labels["objects"])
        boxes = np.array([one["rect"] for one in labels["objects"]], np.float32)
        np.testing.assert_allclose(table[:, -6] * labels["image_w"], boxes[:, 0], rtol=1e-5)
        found[int(image_id)] = labels["image_w"], labels["image_h"], table[:, :-6], boxes, None
    return found


def read_oscar_captioning(path):
    labels_file = path.with_name(f"{path.stem}.label.tsv")
    found = {}
    for row in range(len(labels_file.read_text().splitlines())):
        key, labels = seek(labels_file, row)
        image = json.loads(seek(path, row)[1])
        table = np.frombuffer(base64.b64decode(image["features"]), np.float32).reshape(image["num_boxes"], -1)
        labels = json.loads(labels)
        assert {name for one in labels for name in one} == {"class", "rect", "conf"}
        boxes = np.array([one["rect"] for one in labels], np.float32)
        found[int(key)] = image["image_w"], image["image_h"], table[:, :-6], boxes, None
    return found


READ = {
    ("vilbert-lmdb", None): read_vilbert,
    ("vilbert-lmdb", "vilbert-multi-task"): read_multi_task,
    ("vilbert-lmdb", "volta"): read_volta,
    ("vilbert-lmdb", "mmf"): read_mmf_lmdb,
    ("mmf", "mmf"): read_mmf,
    ("npz", "mcan"): read_mcan,
    ("npz", "openvqa"): read_mcan,
    ("npz", "openvqa-gqa"): read_gqa,
    ("npz", "uniter"): read_uniter,
    ("hdf5", "m2"): read_m2,
    ("oscar-tsv", "oscar-retrieval"): read_oscar_retrieval,
    ("oscar-tsv", "oscar-captioning"): read_oscar_captioning,
}


def test_each_flavour_has_a_reader_here():
    assert READ.keys() >= set(FLAVOURS)


@pytest.mark.parametrize("target", READ, ids=str)
def test_readers_find_what_was_written_for_them(tmp_path, target):
    images = images_of((3, 6, 2))
    path = write(tmp_path / "out" / "features.tsv", images, *target)
    found = READ[target](path)
    assert found.keys() == images.keys()
    for image_id, (width, height, features, boxes, probs) in found.items():
        regions = best_first(images[image_id]) if target[1] == "uniter" else images[image_id]
        assert (width, height) in ((regions.width, regions.height), (None, None))
        np.testing.assert_array_equal(features, regions.features)
        np.testing.assert_array_equal(boxes, regions.boxes)
        if probs is not None:
            np.testing.assert_allclose(probs, with_background(regions.class_probs), atol=1e-3)


def lost(format, reader):
    """Returns the fields that a target cannot hold."""
    labels = LABELS if format == "tsv" or reader == "oscar-retrieval" else ()
    return {*labels, *(() if holds_probabilities(format, reader) else ["class_probs"])}


def assert_converted(path, images, format, reader, missing=(), source=None):
    """Oscar's rows for retrieval have the boxes only as shares of the image."""
    store = open_features(path)
    assert store.keys() == images.keys()
    for image_id, regions in images.items():
        expected = best_first(regions) if reader == "uniter" else regions
        inexact = {"boxes"} if "oscar-retrieval" in (reader, source) else set()
        assert_same(store[image_id], expected, {*lost(format, reader), *missing, *inexact})
        np.testing.assert_allclose(store[image_id].boxes, expected.boxes, rtol=1e-6)
        if "class_probs" in lost(format, reader):
            assert store[image_id].class_probs is None


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Sources that differ in what they have: fixed and adaptive numbers of boxes, labels, probabilities."""
    folder, images = tmp_path_factory.mktemp("sources"), {}
    for name, counts, fields, format in (
        ("fixed", (3, 3, 3), (), "npz"),
        ("adaptive", (3, 6, 2), (), "npz"),
        ("without labels", (3, 3, 3), ("class_probs", *LABELS), "tsv"),
        ("without probabilities", (3, 6, 2), ("class_probs",), "flat"),
    ):
        images[name] = {
            image_id: replace(regions, **dict.fromkeys(fields)) for image_id, regions in images_of(counts).items()
        }
        write(folder / name, images[name], format)
    return folder, images


def refusal(name, format, reader):
    """Returns a part of the message if a target cannot hold what a source has, or None."""
    fixed = format == "hdf5" and reader is None
    if fixed and name in ("adaptive", "without probabilities"):
        return "has [26] boxes"
    if name == "without labels" and (format == "lxmert-tsv" or reader == "uniter"):
        return "image 7: has no object_(ids|scores)"
    if name == "without labels" and reader in ("oscar-captioning", "oscar-retrieval"):
        return "image 7: has no object_ids"
    return None


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_every_source_converts_to_every_target_or_is_refused_before_anything_is_written(sources, tmp_path, target):
    """What a reader gets from a format does not depend on where its images come from, only on what these have. The
    sources differ in this, so that they stand for all formats."""
    folder, images = sources
    for name, expected in images.items():
        output = tmp_path / name / "out"
        message = refusal(name, *target)
        if message is None:
            assert convert_features(folder / name, output, target[0], ABOUT, reader=target[1]) == 3
            assert_converted(output, expected, *target)
            continue
        with pytest.raises(InputError, match=message) as error:
            convert_features(folder / name, output, target[0], ABOUT, reader=target[1])
        assert "\n" not in str(error.value)
        assert list(output.parent.glob("*")) == []


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_every_target_is_a_source(sources, tmp_path, target):
    folder, images = sources
    output = tmp_path / "a" / "out"
    convert_features(folder / "fixed", output, target[0], ABOUT, reader=target[1])
    back = {image_id: best_first(x) if target[1] == "uniter" else x for image_id, x in images["fixed"].items()}
    assert convert_features(output, tmp_path / "back", "npz") == 3
    assert_converted(tmp_path / "back", back, "npz", None, missing=lost(*target), source=target[1])


@pytest.mark.parametrize("target", FLAVOURS, ids=str)
def test_a_flavour_is_continued(tmp_path, target):
    images = images_of((3, 6, 2))
    path = tmp_path / "out" / "features"
    write(path, {7: images[7]}, *target)
    with open_writer(path, target[0], ABOUT, target[1]) as writer:
        assert writer.done == {7}
        writer.append(images[42])
    write(path, {581929: images[581929]}, *target)
    assert_converted(path, images, *target)
    assert READ[target](path).keys() == images.keys()


@pytest.mark.parametrize("target", FLAVOURS, ids=str)
def test_parts_of_a_flavour_are_merged(tmp_path, target):
    images = images_of((3, 3, 3))
    about = {**ABOUT, "settings": {"keep_probabilities": True}}
    parts = []
    for number, ids in enumerate(((7, 42), (42, 581929))):
        path, format = tmp_path / f"{number}" / "features", part_format(target[0], about)
        parts.append(write(path, {i: images[i] for i in ids}, format, target[1] if format == target[0] else None))
    with open_writer(tmp_path / "out" / "features", target[0], about, target[1]) as writer:
        for part in parts:
            assert merge_part(part, writer) == {}
        writer.finish()
    assert_converted(tmp_path / "out" / "features", images, *target)


def test_conversion_into_another_flavour_is_refused(sources, tmp_path):
    folder, _ = sources
    output = tmp_path / "out"
    convert_features(folder / "fixed", output, reader="volta")
    assert json.loads((tmp_path / "out.meta.json").read_text()) == {"format": "vilbert-lmdb", "for": "volta"}
    assert convert_features(folder / "fixed", output, "vilbert-lmdb", reader="volta") == 0
    for reader in (None, "vilbert-multi-task"):
        with pytest.raises(InputError, match=f"out: was written for 'volta', and not for {reader or 'no reader'};"):
            convert_features(folder / "fixed", output, "vilbert-lmdb", reader=reader)
    convert_features(folder / "fixed", tmp_path / "plain", "vilbert-lmdb")
    with pytest.raises(InputError, match="plain: exists, and was not written for volta"):
        convert_features(folder / "fixed", tmp_path / "plain", reader="volta")


def test_readers_that_find_numbers_refuse_other_ids(tmp_path):
    source = write(tmp_path / "source", {1: sample(1), "a_b": sample("a_b")}, "flat")
    for reader in ("m2", "mcan", "oscar-retrieval"):
        with pytest.raises(InputError, match=f"'a_b': {reader} finds images by their numbers"):
            convert_features(source, tmp_path / "out" / "target", about=ABOUT, reader=reader)
    assert list((tmp_path / "out").glob("*")) == []
    for reader in ("m2", "mcan", "openvqa", "oscar-retrieval"):
        with (
            open_writer(tmp_path / reader / "features", READERS[reader].formats[0], ABOUT, reader) as writer,
            pytest.raises(InputError, match=f"'a_b': {reader} finds images by their numbers"),
        ):
            writer.append(sample("a_b"))


@pytest.mark.parametrize("reader", ["mcan", "openvqa"])
def test_readers_that_find_numbers_at_the_end_of_names_refuse_two_of_one_number(tmp_path, reader):
    source = write(tmp_path / "source", {i: sample(i) for i in ("coco_42", "vg_042", 7)}, "flat")
    with pytest.raises(InputError, match=f"image ids 'coco_42' and 'vg_042': {reader} finds images by their numbers"):
        convert_features(source, tmp_path / "out" / "target", reader=reader)
    assert list((tmp_path / "out").glob("*")) == []
    path = write(tmp_path / "features", {7: sample("vg_042")}, "npz", reader)
    with open_writer(path, "npz", None, reader) as writer:
        writer.append(sample("vg_042"))
        writer.append(sample("coco_420"))
        with pytest.raises(InputError, match="which are equal; give other ids"):
            writer.append(sample("coco_42"))


def test_ids_with_dots_which_openvqa_cuts_off_are_said_at_writing(tmp_path, caplog):
    with open_writer(tmp_path / "x", "npz", None, "openvqa-gqa") as writer:
        writer.append(sample("n161313"))
        assert not caplog.records
        for image_id in ("a.b", "a.c"):
            writer.append(sample(image_id))
        writer.finish()
    first, all_of_them = (record.getMessage() for record in caplog.records)
    assert "ids such as 'a.b' are percent-encoded" in first
    assert "or have a dot, at which OpenVQA cuts them off" in first
    assert all_of_them.endswith(": 'a.b', 'a.c'")


@pytest.mark.parametrize("name", ["predictions.tsv", "predictions", "imageid2idx.json"])
def test_features_for_oscars_retrieval_do_not_get_the_name_of_a_file_beside_them(tmp_path, name):
    source = write(tmp_path / "source", images_of((3, 3)), "npz")
    with pytest.raises(InputError, match=rf"{name} \(oscar-tsv for oscar-retrieval\): has the name of a file") as error:
        convert_features(source, tmp_path / "out" / name, about=ABOUT, reader="oscar-retrieval")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").glob("*")) == []


def test_features_for_oscars_retrieval_in_one_folder_are_not_written_at_the_same_time(tmp_path):
    source = write(tmp_path / "source", images_of((3, 3)), "npz")
    with (
        open_writer(tmp_path / "out" / "a.tsv", "oscar-tsv", ABOUT, "oscar-retrieval"),
        pytest.raises(InputError, match=r"predictions\.tsv: process .* is writing to it"),
    ):
        convert_features(source, tmp_path / "out" / "b.tsv", about=ABOUT, reader="oscar-retrieval")


def test_formats_of_readers():
    assert format_for("volta", None) == "vilbert-lmdb"
    assert format_for("mmf", "vilbert-lmdb") == "vilbert-lmdb"
    assert format_for(None, None, "tsv") == "tsv"
    for reader, format, message in (
        ("volta", "npz", "reads vilbert-lmdb, not npz"),
        ("nobody", None, "is unknown; use one of m2"),
        (None, None, "none given"),
    ):
        with pytest.raises(InputError, match=message):
            format_for(reader, format)


@pytest.mark.parametrize("reader", ["oscar-captioning", "oscar-retrieval"])
def test_a_writer_of_oscar_continues_with_the_rows_that_have_labels(tmp_path, reader):
    images = images_of((3, 3, 3))
    path = write(tmp_path / "features.tsv", images, "oscar-tsv", reader)
    labels = next(file for file in tmp_path.iterdir() if file.name in ("predictions.tsv", "features.label.tsv"))
    labels.write_bytes(labels.read_bytes()[:-10])
    with pytest.raises(InputError, match="does not have the labels of these features"):
        write(path, {}, "oscar-tsv", reader)
    (tmp_path / "features.tsv.synced").write_bytes(b"0\n")  # as after a crash
    with open_writer(path, "oscar-tsv", ABOUT, reader) as writer:
        assert writer.done == {7, 42}
        writer.append(images[581929])
        writer.finish()
    assert READ["oscar-tsv", reader](path).keys() == images.keys()
    path.unlink()
    with pytest.raises(InputError, match="does not have the labels of these features"):
        write(path, images, "oscar-tsv", reader)


@pytest.mark.parametrize(
    ("format", "reader"),
    [("hdf5", None), ("ban-hdf5", None), ("oscar-tsv", None), (None, "oscar-retrieval"), (None, "uniter")],
)
def test_boxes_need_the_size_of_the_image_where_they_are_parts_of_it(tmp_path, format, reader):
    images = images_of((3,))
    for regions in images.values():
        regions.width = regions.height = 0
    write(tmp_path / "source" / "features", images, "npz")
    with pytest.raises(InputError, match="its size is not known"):
        convert_features(tmp_path / "source" / "features", tmp_path / "out" / "target", format, ABOUT, reader=reader)
    assert list((tmp_path / "out").glob("*")) == []


@pytest.mark.parametrize("target", [("npz", None), ("mmf", None), ("vilbert-lmdb", None), *FLAVOURS], ids=str)
def test_an_image_without_regions_whose_probabilities_were_kept(tmp_path, target):
    images = images_of((0, 3))
    path = write(tmp_path / "out" / "features", images, *target)
    store = open_features(path)
    read = store[7]
    assert (len(read), read.boxes.shape, read.width) == (0, (0, 4), 640)
    if holds_probabilities(*target):
        assert len(read.class_probs) == 0
    np.testing.assert_array_equal(
        store[42].features, best_first(images[42]).features if target[1] == "uniter" else images[42].features
    )


def test_no_images_for_oscars_retrieval(tmp_path):
    with open_writer(tmp_path / "features.tsv", "oscar-tsv", ABOUT, reader="oscar-retrieval") as writer:
        writer.finish()
    assert json.loads((tmp_path / "imageid2idx.json").read_text()) == {}
