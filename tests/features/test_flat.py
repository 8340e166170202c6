import json
import os
import pickle
import shutil
from multiprocessing import get_context

import numpy as np
import pytest
from feature_samples import assert_same, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bua.errors import InputError
from bua.features.flat import FlatFeatures, FlatWriter
from bua.features.flat_files import DATA_FILES, RECORD, key_and_text

IDS = [7, -3, 0, 2**63, "a b.c", "0042", "été/ü", "\udcff", key_and_text("0042")[0]]


def write(path, images, finish=True, **options):
    writer = FlatWriter(path, **options)
    for regions in images:
        writer.append(regions)
    if finish:
        writer.finish()
    writer.close()


@pytest.fixture
def images():
    """Images with all labels, some labels and no labels, with different numbers of regions, and without regions."""
    images = [sample(image_id, count=seed % 4, labelled=seed % 3 > 0, seed=seed) for seed, image_id in enumerate(IDS)]
    images[1].attribute_ids = images[1].attribute_scores = None
    for regions in images:
        if not len(regions):
            regions.features = np.zeros((0, 5), np.float32)
    return images


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read(tmp_path, images, dtype):
    write(tmp_path / "out", images, dtype=dtype, about={"classes": ["cat"], "weights": "sha256:1"})
    store = FlatFeatures(tmp_path / "out")
    assert list(store) == IDS
    assert len(store) == len(IDS)
    assert (store.dtype, store.dim) == (np.dtype(dtype), 5)
    assert store.about == {"classes": ["cat"], "weights": "sha256:1"}
    for regions in images:
        assert_same(store[regions.image_id], regions)
        assert store[regions.image_id].features.flags.writeable
    assert_same(store["7"], images[0])
    assert "7" in store
    for absent in (8, "8", "0043", 7.5):
        assert absent not in store
        with pytest.raises(KeyError):
            store[absent]
    assert list(store.problems()) == []


def test_reading_without_conversion(tmp_path, images):
    write(tmp_path / "out", images, dtype="float16")
    store = FlatFeatures(tmp_path / "out")
    for regions in images:
        features, boxes = store.features(regions.image_id), store.boxes(regions.image_id)
        assert features.dtype == np.float16
        assert np.array_equal(features, regions.features)
        assert np.array_equal(boxes, regions.boxes)
    assert store.all_features.shape == (sum(map(len, images)), 5)
    assert store.counts.tolist() == [len(regions) for regions in images]
    assert np.array_equal(store.all_boxes[store.offsets[1]], images[1].boxes[0])
    with pytest.raises(ValueError, match="read-only"):
        store.features(-3)[0, 0] = 1


@pytest.mark.parametrize("out", [None, "given"])
def test_batches_are_padded_with_zeros(tmp_path, images, out):
    write(tmp_path / "out", images, dtype="float16")
    store = FlatFeatures(tmp_path / "out")
    if out:
        out = np.full((20, 30, 5), 9, np.float16)
    for chosen in ([5, 3, 8, 2, 3], [0, 4], [1, 2], []):
        ids = [IDS[i] for i in chosen]
        batch = store.read(ids, out)
        expected = [images[i] for i in chosen]
        assert batch.counts.tolist() == [len(regions) for regions in expected]
        assert batch.sizes.tolist() == [[regions.width, regions.height] for regions in expected]
        assert batch.features.shape == (len(ids), max(batch.counts, default=0), 5)
        assert out is None or np.shares_memory(batch.features, out) or not batch.features.size
        for i, regions in enumerate(expected):
            for read, wanted in ((batch.features, regions.features), (batch.boxes, regions.boxes)):
                assert np.array_equal(read[i, : len(regions)], wanted)
                assert not read[i, len(regions) :].any()


def test_rows_of_ids(tmp_path):
    ids = np.random.default_rng(0).permutation(1000)[:300].tolist()
    ids.insert(0, "0042")
    hidden = key_and_text("0042")[0]  # an integer id that is equal to the key of a text id before it
    write(tmp_path / "out", [sample(image_id, count=1) for image_id in [*ids, hidden]])
    store = FlatFeatures(tmp_path / "out")
    assert store.rows(ids[1:]).tolist() == list(range(1, 301))
    assert store.rows(np.array([hidden, ids[5]])).tolist() == [301, 5]
    assert store.rows(["0042", ids[5]]).tolist() == [0, 5]
    with pytest.raises(KeyError, match="1000"):
        store.rows([ids[5], 1000])
    write(tmp_path / "empty", [])
    write(tmp_path / "integers", [sample(image_id) for image_id in (5, -1)])
    integers = FlatFeatures(tmp_path / "integers")
    assert [key in integers for key in (5, -1, 0, 6, 2**63, -(2**70), "5", "a", True)] == [1, 1, 0, 0, 0, 0, 1, 0, 0]
    assert store.rows([]).tolist() == FlatFeatures(tmp_path / "empty").rows([]).tolist() == []
    with pytest.raises(KeyError):
        FlatFeatures(tmp_path / "empty").rows([1])


def _sum(store, image_id):
    return float(store.features(image_id).sum() + store.read([image_id]).features.sum())


def test_many_processes_read_one_store(tmp_path):
    write(tmp_path / "out", [sample(i, seed=i) for i in range(20)])
    store = FlatFeatures(tmp_path / "out")
    expected = [_sum(store, i) for i in range(20)]
    assert _sum(pickle.loads(pickle.dumps(store)), 5) == expected[5]
    with get_context("fork").Pool(2) as pool:
        assert pool.starmap(_sum, [(store, i) for i in range(20)]) == expected


@pytest.fixture
def no_sync(monkeypatch):
    """Makes syncing do nothing, so that the tests do not wait for the disk."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in DATA_FILES}


def test_files_that_are_truncated_at_any_byte(no_sync, tmp_path):
    """For each file, synced or not: the complete images are read, and a writer continues after them."""
    images = [sample(image_id, count=1, dim=2, seed=seed) for seed, image_id in enumerate([5, "ab"])]
    write(tmp_path / "whole", images)
    whole = contents(tmp_path / "whole")
    for name in DATA_FILES:
        ends = np.linspace(0, len(whole[name]), 3) if name != "ids.bin" else np.array([0, 0, 2])
        for size in range(len(whole[name])):
            path = tmp_path / "cut"
            shutil.copytree(tmp_path / "whole", path)
            if size % 2:
                (path / "synced").unlink()
            os.truncate(path / name, size)
            left = int(np.searchsorted(ends, size, side="right")) - 1
            store = FlatFeatures(path)
            assert list(store) == [regions.image_id for regions in images[:left]]
            for regions in images[:left]:
                assert_same(store[regions.image_id], regions)
            writer = FlatWriter(path)
            assert writer.done == set(store)
            for regions in images[left:]:
                writer.append(regions)
            writer.close()
            assert contents(path) == whole
            shutil.rmtree(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_files_after_a_crash_of_the_machine(no_sync, tmp_path_factory, data):
    """What was not synced may be in any state then. Synced images are there, and all that are read are right."""
    folder = tmp_path_factory.mktemp("crashed")
    images = [sample(i if i % 2 else f"name {i}", count=1 + i % 2, dim=2, seed=i) for i in range(6)]
    synced = data.draw(st.integers(0, 5))
    writer = FlatWriter(folder / "out")
    for i, regions in enumerate(images):
        if i == synced:
            writer.sync()
            durable = {name: len(content) for name, content in contents(folder / "out").items()}
        writer.append(regions)
    writer.close()
    whole = contents(folder / "out")
    for name in DATA_FILES:
        content = bytearray(whole[name])
        start = data.draw(st.integers(durable[name], len(content)))
        end = data.draw(st.integers(start, len(content)))
        content[start:end] = bytes(end - start)
        del content[data.draw(st.integers(durable[name], len(content))) :]
        (folder / "out" / name).write_bytes(content)

    writer = FlatWriter(folder / "out")
    assert len(writer.done) >= synced
    for regions in images:
        if regions.image_id not in writer.done:
            writer.append(regions)
    writer.close()
    assert contents(folder / "out") == whole


def test_damaged_images_are_reported(tmp_path):
    images = [sample(i, seed=i) for i in range(4)]
    write(tmp_path, images)
    content = bytearray((tmp_path / "features.bin").read_bytes())
    content[len(content) // 4 + 1] ^= 1
    (tmp_path / "features.bin").write_bytes(content)
    assert list(FlatFeatures(tmp_path).problems()) == ["record 2: image 1: its bytes are not those that were written"]
    os.truncate(tmp_path / "ids.bin", 0)
    os.truncate(tmp_path / "features.bin", len(content) - 1)
    assert list(FlatFeatures(tmp_path).problems())[1:] == ["records 4 to 4: are incomplete and left out"]


@pytest.mark.parametrize("synced", [True, False], ids=["synced", "synced is not known"])
@pytest.mark.parametrize("value", [0, 1, 2**40, 2**64 - 1])
@pytest.mark.parametrize("field", ["offset", "count", "text_offset", "text_length"])
@pytest.mark.parametrize("row", [0, 2, 4])
def test_one_damaged_record_costs_no_other_image(no_sync, tmp_path, row, field, value, synced):
    images = [sample(f"a{i}", count=2, dim=2, seed=i) for i in range(5)]
    write(tmp_path, images)
    index = np.fromfile(tmp_path / "index.bin", RECORD)
    before = index[field][row]
    index[field][row] = value % 2 ** (8 * index[field].itemsize)
    if index[field][row] == before:
        return
    index.tofile(tmp_path / "index.bin")
    if not synced:
        (tmp_path / "synced").unlink()
    damaged = contents(tmp_path)
    store = FlatFeatures(tmp_path)
    readable = [regions for i, regions in enumerate(images) if i < row or (synced and i != row)]
    for regions in readable:
        assert_same(store[regions.image_id], regions)
        store.read([regions.image_id])
    if row < len(store):
        image_id = images[row].image_id
        for read in (store.__getitem__, store.features, lambda image_id: store.read([image_id])):
            with pytest.raises((InputError, KeyError)):
                read(image_id)
    if row < 4 or row < len(store):
        with pytest.raises(InputError, match=rf"index\.bin: record {row + 1}, .* is damaged; nothing was deleted"):
            FlatWriter(tmp_path)
        assert contents(tmp_path) == damaged


@pytest.mark.parametrize("ids", [[3, 4, 5], ["a", "b", "c"]])
def test_records_with_the_same_id_are_damage(no_sync, tmp_path, ids):
    write(tmp_path, [sample(image_id, seed=seed) for seed, image_id in enumerate(ids)])
    index = np.fromfile(tmp_path / "index.bin", RECORD)
    index["key"][1], index["text_offset"][1] = index["key"][0], index["text_offset"][0]
    index.tofile(tmp_path / "index.bin")
    with pytest.raises(InputError, match=r"index\.bin is damaged: several records have the same image id"):
        FlatFeatures(tmp_path)
    with pytest.raises(InputError, match=r"index\.bin.* is damaged"):
        FlatWriter(tmp_path)


@pytest.mark.parametrize("file", range(4))
def test_an_image_that_cannot_be_written_leaves_no_trace(tmp_path, monkeypatch, file):
    writer = FlatWriter(tmp_path)
    writer.append(sample("a"))
    before, real_write, calls = contents(tmp_path), os.pwrite, []

    def full_disk(handle, content, offset):
        calls.append(handle)
        if len(calls) == file + 2:
            raise OSError(28, "No space left on device")
        return real_write(handle, content[: 8 if len(calls) > file else None], offset)

    monkeypatch.setattr("os.pwrite", full_disk)
    with pytest.raises(OSError, match="No space"):
        writer.append(sample("image"))
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert writer.done == {"a"}
    writer.append(sample(3, seed=3))
    writer.close()
    assert_same(FlatFeatures(tmp_path)[3], sample(3, seed=3))


def test_sorted_ids_are_saved_and_updated(tmp_path, monkeypatch):
    write(tmp_path, [sample(3), sample(1)], finish=False)
    lookup = tmp_path / "lookup.npy"
    assert not lookup.exists()
    assert 3 in FlatFeatures(tmp_path)
    assert lookup.exists()
    write(tmp_path, [sample(2, seed=2)])
    assert_same(FlatFeatures(tmp_path)[2], sample(2, seed=2))
    for content in (b"", b"broken", lookup.read_bytes()[:-8]):
        lookup.write_bytes(content)
        assert {1, 2, 3} == {image_id for image_id in range(9) if image_id in FlatFeatures(tmp_path)}
    lookup.unlink()

    def refuse(*_):
        raise PermissionError("read-only file system")

    monkeypatch.setattr("bua.io.files.os.replace", refuse)
    assert 2 in FlatFeatures(tmp_path)
    assert not lookup.exists()


def test_images_that_the_format_cannot_hold_are_refused(tmp_path):
    writer = FlatWriter(tmp_path, "float16")
    writer.append(sample(1))
    large = sample(2)
    large.features[0, 0] = 1e5
    ragged = sample(2)
    ragged.features = ragged.features[:2]
    for regions, message in [
        (sample(1), "image id 1: is already in the output"),
        (sample(""), "image id '': is empty"),
        (sample(2, dim=6), r"image 2: features have the shape \(3, 6\); .* needs \(3, 5\)"),
        (ragged, r"features have the shape \(2, 5\)"),
        (large, "image 2: .* range of float16; use the format flat"),
    ]:
        with pytest.raises(InputError, match=message):
            writer.append(regions)
    writer.close()
    assert list(FlatFeatures(tmp_path)) == [1]


def test_folders_with_other_content_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is a file"):
        FlatWriter(tmp_path / "file")
    with pytest.raises(InputError, match="something other"):
        FlatWriter(tmp_path)
    out = tmp_path / "out"
    write(out, [sample(1)], about={"weights": "a"})
    with pytest.raises(InputError, match="dtype is float32, not float16"):
        FlatWriter(out, "float16")
    with pytest.raises(InputError, match="about differs"):
        FlatWriter(out, about={"weights": "b"})
    FlatWriter(out, about={"weights": "a"}).close()
    FlatWriter(out).close()
    header = json.loads((out / "header.json").read_text())
    for change, message in [
        ({"version": 2}, "version is 2, but this bua reads 1"),
        ({"format": "x"}, "format is not bua-flat"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"dim": -1}, "dim -1"),
    ]:
        (out / "header.json").write_text(json.dumps({**header, **change}))
        with pytest.raises(InputError, match=rf"header\.json: .*{message}"):
            FlatFeatures(out)
    (out / "header.json").write_text(json.dumps({key: value for key, value in header.items() if key != "dim"}))
    with pytest.raises(InputError, match=r"header\.json: dtype 'float32', dim 'missing': need"):
        FlatFeatures(out)
    (out / "header.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        FlatFeatures(out)
    (out / "header.json").write_text(json.dumps(header))
    (out / "regions.bin").unlink()
    with pytest.raises(InputError, match=r"regions\.bin: cannot be read"):
        FlatFeatures(out)
    with pytest.raises(InputError, match=r"gone/header\.json: cannot be read"):
        FlatFeatures(tmp_path / "gone")
