import base64
import csv
import dataclasses
import io
import os
import pickle
import sys
from multiprocessing import get_context

import numpy as np
import pytest
from feature_samples import LABELS, assert_same, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bua.errors import InputError
from bua.features.ids import parse_id
from bua.features.tsv import FIELDS, LXMERT_FIELDS, ORIGINAL_FIELDS, TsvFeatures, TsvWriter, decode_row, encode_row
from bua.structures import Regions


def write(path, ids, format="tsv"):
    writer = TsvWriter(path, format)
    for seed, image_id in enumerate(ids):
        writer.append(sample(image_id, seed=seed))
    writer.finish()
    writer.close()


def read_as_the_original(path):
    """Reads as tools/read_tsv.py of the original does."""
    csv.field_size_limit(sys.maxsize)
    with open(path, newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", fieldnames=ORIGINAL_FIELDS):
            count = int(row["num_boxes"])
            arrays = [
                np.frombuffer(base64.b64decode(row[f]), np.float32).reshape(count, -1) for f in ("boxes", "features")
            ]
            yield int(row["image_id"]), int(row["image_w"]), int(row["image_h"]), *arrays


def test_the_original_reads_what_is_written(tmp_path):
    path = tmp_path / "features.tsv"
    write(path, [7, 11])
    rows = list(read_as_the_original(path))
    assert [row[:3] for row in rows] == [(7, 640, 480), (11, 640, 481)]
    for seed, row in enumerate(rows):
        assert np.array_equal(row[3], sample(7, seed=seed).boxes)
        assert np.array_equal(row[4], sample(7, seed=seed).features)
    assert path.read_bytes().count(b"\r\n") == 2


@pytest.mark.parametrize("format", FIELDS)
def test_what_is_written_is_read(tmp_path, format):
    path = tmp_path / "features.tsv"
    ids = [7, "a b.c", "0042", 'quo"te', "été"]
    write(path, ids, format)
    store = TsvFeatures(path)
    assert list(store) == ids
    for seed, image_id in enumerate(ids):
        expected = sample(image_id, seed=seed)
        assert_same(store[image_id], expected, () if format == "lxmert-tsv" else LABELS)
    if format == "tsv":
        assert store[7].object_ids is None
    assert store["7"].image_id == 7
    assert "7" in store
    assert 8 not in store
    with pytest.raises(KeyError):
        store[8]


def test_lxmerts_file_is_read_and_written(shared_data):
    path = shared_data / "caffe_features" / "train2014_obj36.tsv"
    store = TsvFeatures(path)
    assert len(store) == 10
    rows = path.read_bytes().splitlines(keepends=True)
    for line, (image_id, regions) in zip(rows, store.items()):
        assert regions.features.shape == (36, 2048)
        assert regions.features.min() == 0
        # The boxes are inside the image, which shows that the height is the first of the two columns.
        assert regions.boxes[:, 2].max() < regions.width
        assert regions.boxes[:, 3].max() < regions.height
        assert regions.object_ids.max() < 1600
        assert encode_row(regions, LXMERT_FIELDS).rstrip() == line.rstrip()
        assert image_id == regions.image_id


arrays = st.integers(0, 4).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, (n, 4), elements=st.floats(0, 1000, width=32)),
        hnp.arrays(np.float32, (n, 3), elements=st.floats(width=32)),
    )
)


@given(arrays, st.integers(1, 9000), st.integers(1, 9000), st.text("abc /.%ü\"'", min_size=1))
def test_rows_decode_to_what_they_encode(boxes_and_features, width, height, image_id):
    boxes, features = boxes_and_features
    row = encode_row(Regions(image_id, width, height, boxes, features), ORIGINAL_FIELDS)
    assert row.endswith(b"\r\n")
    decoded = decode_row(row, ORIGINAL_FIELDS)
    assert (decoded.image_id, decoded.width, decoded.height) == (image_id, width, height)
    assert decoded.boxes.tobytes() == boxes.tobytes()
    assert decoded.features.tobytes() == features.tobytes()


def row_by_csv(regions, fields):
    """The row as csv's DictWriter writes it, which the original and LXMERT use."""

    def text(array, dtype):
        return base64.b64encode(np.asarray(array, dtype).tobytes()).decode()

    values = {
        fields[0]: regions.image_id,
        "image_w": regions.width,
        "image_h": regions.height,
        "img_w": regions.width,
        "img_h": regions.height,
        "num_boxes": len(regions.boxes),
        "boxes": text(regions.boxes, np.float32),
        "features": text(regions.features, np.float32),
        "objects_id": text(regions.object_ids, np.int64),
        "objects_conf": text(regions.object_scores, np.float32),
        "attrs_id": text(regions.attribute_ids, np.int64),
        "attrs_conf": text(regions.attribute_scores, np.float32),
    }
    row = io.StringIO(newline="")
    csv.DictWriter(row, fields, delimiter="\t", extrasaction="ignore").writerow(values)
    return row.getvalue().encode(errors="surrogateescape")


# All characters but those that an id may not have. Surrogates are bytes of file names that are not UTF-8.
id_texts = st.text(
    st.one_of(
        st.sampled_from("\"' ,;\\#0\x0b\x1c\x85\u2028\udc80\udcff"),
        st.characters(exclude_characters="\t\r\n", exclude_categories=["Cs"]),
    ),
    min_size=1,
)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@given(arrays, st.integers(1, 9000), st.integers(1, 9000), st.one_of(st.integers(), id_texts))
def test_rows_are_those_of_csv(fields, boxes_and_features, width, height, image_id):
    boxes, features = boxes_and_features
    labels = sample(0, count=len(boxes))
    regions = dataclasses.replace(labels, image_id=image_id, width=width, height=height, boxes=boxes, features=features)
    row = encode_row(regions, fields)
    assert row == row_by_csv(regions, fields)
    assert decode_row(row, fields).image_id == parse_id(image_id)


@pytest.mark.parametrize("format", FIELDS)
def test_files_are_those_of_csv(tmp_path, format):
    path = tmp_path / "features.tsv"
    ids = [7, '"', 'quo"te', '"quoted"', "été", " blank ", "a,b", "-1", "0042", "\udcff"]
    write(path, ids, format)
    expected = [row_by_csv(sample(image_id, seed=seed), FIELDS[format]) for seed, image_id in enumerate(ids)]
    assert path.read_bytes() == b"".join(expected)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (3, b"x", "num_boxes: 'x' is not a number"),
        (3, b"4", "boxes: 48 bytes do not fit 4 boxes"),
        (4, b"AAA", "boxes: is not base64"),
        (5, b"AAAA", "features: 3 bytes"),
        (5, b"", "features: 0 bytes"),
        (1, b"64.5", "image_w"),
        (5, b"AAAA\tAAAA", "7 columns instead of 6"),
    ],
)
def test_a_row_that_cannot_be_decoded_is_named(tmp_path, column, value, message):
    path = tmp_path / "features.tsv"
    write(path, [1, 2, 3])
    lines = path.read_bytes().splitlines(keepends=True)
    cells = lines[1].rstrip(b"\r\n").split(b"\t")
    cells[column] = value
    lines[1] = b"\t".join(cells) + b"\r\n"
    path.write_bytes(b"".join(lines))
    store = TsvFeatures(path)
    with pytest.raises(InputError, match=f"features.tsv: line 2: {message}"):
        store[2]
    assert_same(store[3], sample(3, seed=2), LABELS)


def test_index_is_saved_and_updated(tmp_path):
    path = tmp_path / "features.tsv"
    write(path, [1, 2])
    assert list(TsvFeatures(path)) == [1, 2]
    index = path.with_name("features.tsv.index")
    kept = index.stat().st_mtime_ns
    assert list(TsvFeatures(path)) == [1, 2]
    assert index.stat().st_mtime_ns == kept
    write(path, [3])
    assert list(TsvFeatures(path)) == [1, 2, 3]
    index.write_bytes(b"broken")
    assert list(TsvFeatures(path)) == [1, 2, 3]


def test_index_that_cannot_be_saved(tmp_path, monkeypatch):
    path = tmp_path / "features.tsv"
    write(path, [1, 2])

    def refuse(*_):
        raise PermissionError("read-only file system")

    monkeypatch.setattr("bua.io.files.os.replace", refuse)
    assert list(TsvFeatures(path)) == [1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["features.tsv"]


def _sum(store, image_id):
    return float(store[image_id].features.sum())


def test_many_processes_read_one_store(tmp_path):
    path = tmp_path / "features.tsv"
    write(path, range(20))
    store = TsvFeatures(path)
    expected = [_sum(store, i) for i in range(20)]
    with get_context("fork").Pool(2) as pool:
        assert pool.starmap(_sum, [(store, i) for i in range(20)]) == expected
    assert _sum(pickle.loads(pickle.dumps(store)), 5) == expected[5]


@pytest.mark.parametrize("missing", [1, 2, 18, 30, 100])
def test_a_writer_continues_after_an_incomplete_row(tmp_path, missing):
    whole, path = tmp_path / "whole.tsv", tmp_path / "features.tsv"
    write(whole, range(4))
    write(path, range(3))
    os.truncate(path, path.stat().st_size - missing)
    assert list(TsvFeatures(path)) == ([0, 1, 2] if missing <= 2 else [0, 1])
    writer = TsvWriter(path)
    assert writer.done == {0, 1}
    for image_id in (2, 3):
        writer.append(sample(image_id, seed=image_id))
    assert writer.done == {0, 1, 2, 3}
    writer.close()
    assert path.read_bytes() == whole.read_bytes()
    assert list(TsvFeatures(path)) == [0, 1, 2, 3]


def test_a_row_that_cannot_be_written_leaves_no_trace(tmp_path, monkeypatch):
    path = tmp_path / "features.tsv"
    write(path, [1])
    before = path.read_bytes()
    writer = TsvWriter(path)
    real_write = os.write

    def full_disk(descriptor, data):
        if len(data) < 200:
            raise OSError(28, "No space left on device")
        return real_write(descriptor, data[:100])

    monkeypatch.setattr("os.write", full_disk)
    with pytest.raises(OSError, match="No space"):
        writer.append(sample(2))
    writer.close()
    assert path.read_bytes() == before
    assert writer.done == {1}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_file_after_a_crash_of_the_machine(tmp_path_factory, monkeypatch, data):
    """What was not synced may be in any state then. The rows before the first incomplete one are kept."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    format = data.draw(st.sampled_from(sorted(FIELDS)))
    path = tmp_path_factory.mktemp("crashed") / "features.tsv"
    synced = data.draw(st.integers(0, 4))
    writer = TsvWriter(path, format)
    for i in range(5):
        if i == synced:
            writer.sync()
            durable = path.stat().st_size
        writer.append(sample(i, count=2, dim=2, seed=i))
    writer.close()
    whole = path.read_bytes()
    content = bytearray(whole)
    start = data.draw(st.integers(durable, len(content)))
    end = data.draw(st.integers(start, len(content)))
    content[start:end] = bytes(end - start)
    del content[data.draw(st.integers(durable, len(content))) :]
    path.write_bytes(content)

    writer = TsvWriter(path, format)
    assert writer.done >= set(range(synced))
    for i in range(5):
        if i not in writer.done:
            writer.append(sample(i, count=2, dim=2, seed=i))
    writer.finish()
    writer.close()
    assert path.read_bytes() == whole
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_rows_of_the_other_format_are_not_deleted(tmp_path):
    """This holds even if none of the rows was synced."""
    path = tmp_path / "features.tsv"
    writer = TsvWriter(path, "lxmert-tsv")
    writer.append(sample(1))
    writer.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="choose another output or format"):
        TsvWriter(path, "tsv")
    assert path.read_bytes() == before


def test_rows_that_are_not_read_are_named(tmp_path):
    path = tmp_path / "features.tsv"
    write(path, [1, "a", 2])
    assert list(TsvFeatures(path).problems()) == []
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(rows[0] + b"\r\n" + rows[1] + rows[0] + rows[2][:40])
    assert list(TsvFeatures(path).problems()) == [
        "line 2: no columns",
        "line 4: image 1 again, which line 1 has",
        "line 5: incomplete",
    ]


def test_ids_and_labels_that_cannot_be_written_are_refused(tmp_path):
    writer = TsvWriter(tmp_path / "features.tsv", "lxmert-tsv")
    with pytest.raises(InputError, match="tab or line break"):
        writer.append(sample("a\tb"))
    unlabelled = sample(1)
    unlabelled.attribute_ids = None
    with pytest.raises(InputError, match="attribute_ids"):
        writer.append(unlabelled)
    writer.close()


def test_a_file_with_other_content_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not features\nmine")
    with pytest.raises(InputError, match="line 1"):
        TsvWriter(path)
    assert path.read_text() == "not features\nmine"
    write(tmp_path / "lxmert.tsv", [1], "lxmert-tsv")
    with pytest.raises(InputError, match="choose another output or format"):
        TsvWriter(tmp_path / "lxmert.tsv", "tsv")


def test_the_first_of_two_rows_with_the_same_id_is_read(tmp_path):
    path = tmp_path / "features.tsv"
    write(path, [1, 2])
    write(path, [2])
    store = TsvFeatures(path)
    assert len(store) == 2
    assert_same(store[2], sample(2, seed=1), LABELS)
