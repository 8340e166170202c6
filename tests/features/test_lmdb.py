import base64
import multiprocessing
import os
import pickle
import random
import resource
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import lmdb
import numpy as np
import pytest
from feature_samples import assert_same, sample

from bua.errors import InputError
from bua.features import lmdb as bua_lmdb
from bua.features.lmdb import LmdbFeatures, LmdbWriter, is_lmdb
from bua.features.tsv import TsvFeatures

IDS = [5, "a.b", "a/b", "été", "0005", -3]


def regions_of(image_id, **shape):
    return sample(image_id, seed=zlib.crc32(str(image_id).encode()) % 100, **shape)


def write(path, regions, finish=True):
    writer = LmdbWriter(path)
    for one in regions:
        writer.append(one)
    if finish:
        writer.finish()
    writer.close()


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "features.lmdb"
    write(path, [regions_of(image_id, labelled=image_id != -3) for image_id in IDS])
    assert is_lmdb(path)
    store = LmdbFeatures(path)
    assert list(store) == IDS
    assert len(store) == len(IDS)
    assert "5" in store
    for image_id in IDS:
        assert_same(store[image_id], regions_of(image_id, labelled=image_id != -3))
    with pytest.raises(KeyError):
        store[6]


def test_vilberts_reader_reads_it(tmp_path):
    write(tmp_path / "out", [regions_of(7), regions_of("b")])
    environment = lmdb.open(
        str(tmp_path / "out"), max_readers=1, readonly=True, lock=False, readahead=False, meminit=False
    )
    with environment.begin() as transaction:
        keys = pickle.loads(transaction.get(b"keys"))
        item = pickle.loads(transaction.get(b"7"))
    assert keys == [b"7", b"b"]
    assert (item["image_id"], int(item["image_h"]), int(item["image_w"])) == ("7", regions_of(7).height, 640)
    count = int(item["num_boxes"])
    for field, expected in (("features", regions_of(7).features), ("boxes", regions_of(7).boxes)):
        array = np.frombuffer(base64.b64decode(item[field]), dtype=np.float32).reshape(count, -1)
        np.testing.assert_array_equal(array, expected)


def test_files_of_the_original_script_are_read(tmp_path, shared_data):
    store = TsvFeatures(shared_data / "caffe_features" / "train2014_obj36.tsv")
    environment = lmdb.open(str(tmp_path / "out"), map_size=1 << 30)
    with environment.begin(write=True) as transaction:
        for image_id, one in store.items():
            row = {"image_id": image_id, "image_w": str(one.width), "image_h": str(one.height), "num_boxes": "36"}
            row |= {name: base64.b64encode(getattr(one, name)).decode() for name in ("boxes", "features")}
            transaction.put(str(image_id).encode(), pickle.dumps(row))
        transaction.put(b"keys", pickle.dumps([str(image_id).encode() for image_id in store]))
    environment.close()
    read = LmdbFeatures(tmp_path / "out")
    assert list(read) == list(store)
    for image_id, one in store.items():
        np.testing.assert_array_equal(read[image_id].features, one.features)
        np.testing.assert_array_equal(read[image_id].boxes, one.boxes)


@pytest.mark.parametrize("subdir", [True, False])
def test_files_of_vilbert_multi_task_are_read(tmp_path, subdir):
    expected = regions_of(9, labelled=False)
    item = {"image_id": "9", "image_h": expected.height, "image_w": 640, "num_boxes": 2}
    item |= {"boxes": expected.boxes, "features": expected.features}
    environment = lmdb.open(str(tmp_path / "out"), map_size=1 << 30, subdir=subdir)
    with environment.begin(write=True) as transaction:
        transaction.put(b"9", pickle.dumps(item))
        transaction.put(b"keys", pickle.dumps([b"9"]))
    environment.close()
    assert is_lmdb(tmp_path / "out")
    assert_same(LmdbFeatures(tmp_path / "out")[9], expected)


def test_an_image_without_regions(tmp_path):
    write(tmp_path / "out", [regions_of(1, count=0)])
    read = LmdbFeatures(tmp_path / "out")[1]
    assert read.boxes.shape == (0, 4)
    assert len(read.features) == len(read.object_ids) == 0


def test_a_writer_continues(tmp_path):
    path = tmp_path / "out"
    write(path, [regions_of(2), regions_of("x")])
    write(path, [regions_of(1)], finish=False)
    # Without finish(), the list of keys does not contain 1.
    assert set(LmdbFeatures(path)) == {1, 2, "x"}
    writer = LmdbWriter(path)
    assert writer.done == {1, 2, "x"}
    writer.append(regions_of(3))
    writer.append(regions_of(2))
    writer.finish()
    writer.close()
    store = LmdbFeatures(path)
    assert sorted(map(str, store)) == ["1", "2", "3", "x"]
    assert_same(store[2], regions_of(2))


def test_the_map_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(bua_lmdb, "_FIRST_MAP_BYTES", 1 << 16)
    monkeypatch.setattr(bua_lmdb, "_BATCH_BYTES", 1 << 18)
    write(tmp_path / "out", [regions_of(image_id, dim=2048) for image_id in range(60)])
    store = LmdbFeatures(tmp_path / "out")
    assert list(store) == list(range(60))
    for image_id in range(60):
        assert_same(store[image_id], regions_of(image_id, dim=2048))


def read_some(store):
    return [store[image_id].features.sum() for image_id in IDS]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_and_threads_read(tmp_path, method):
    write(tmp_path / "out", [regions_of(image_id) for image_id in IDS])
    store = LmdbFeatures(tmp_path / "out")
    expected = read_some(store)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read_some, [store] * 50)) == [expected] * 50
    with multiprocessing.get_context(method).Pool(1 if method == "spawn" else 2) as pool:
        assert pool.map(read_some, [store] * 4) == [expected] * 4


def test_forked_process_reads_what_it_inherited(tmp_path):
    write(tmp_path / "out", [regions_of(image_id) for image_id in IDS])
    store = LmdbFeatures(tmp_path / "out")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    workers = [context.Process(target=lambda: queue.put(read_some(store))) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [queue.get() for _ in workers] == [read_some(store)] * 3
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


def test_two_stores_of_the_same_path_and_then_a_writer(tmp_path):
    write(tmp_path / "out", [regions_of(1)])
    first, second = LmdbFeatures(tmp_path / "out"), LmdbFeatures(tmp_path / ".." / tmp_path.name / "out")
    assert_same(first[1], second[1])
    with pytest.raises(InputError, match="already open"):
        LmdbWriter(tmp_path / "out")
    del first, second
    LmdbWriter(tmp_path / "out").close()


def write_for_long(path, ready, after_first, largest_file=None):
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    bua_lmdb._BATCH_BYTES = 200_000
    writer = LmdbWriter(path)
    for image_id in range(5000):
        if image_id in writer.done:
            continue
        if not ready.is_set():
            if after_first:
                writer.append(regions_of(image_id, dim=512))
                writer.sync()
            ready.set()
        writer.append(regions_of(image_id, dim=512))


def start_writer(path, *arguments, after_first=False):
    """Returns a process that writes. It has opened the LMDB, and, with ``after_first``, stored a first image."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=write_for_long, args=(path, ready, after_first, *arguments))
    process.start()
    assert ready.wait(300)
    return process


def test_killed_writers_leave_complete_images(tmp_path):
    path = tmp_path / "out"
    before = set()
    for seed in range(12):
        # Every second writer is killed only after it has stored something, however busy the machine is.
        process = start_writer(path, after_first=seed % 2 == 1)
        time.sleep(random.Random(seed).uniform(0.0, 0.1))
        process.kill()
        process.join()
        store = LmdbFeatures(path)
        assert before <= set(store) == set(range(len(store)))
        for image_id in set(store) - before:
            assert_same(store[image_id], regions_of(image_id, dim=512))
        before = set(store)
        del store
    assert len(before) >= 6


def test_a_full_disk_leaves_complete_images(tmp_path):
    path = tmp_path / "out"
    process = start_writer(path, 2_000_000)
    process.join()
    assert process.exitcode == 1
    store = LmdbFeatures(path)
    assert set(store) == set(range(len(store)))
    assert len(store) > 50
    for image_id in store:
        assert_same(store[image_id], regions_of(image_id, dim=512))


def test_a_full_disk_raises_an_os_error(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = LmdbWriter(tmp_path / "out")
    writer.append(regions_of(1))
    writer.sync()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        writer.append(regions_of(2, dim=20_000))
        with pytest.raises(OSError, match="out"):
            writer.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.finish()
    writer.close()
    store = LmdbFeatures(tmp_path / "out")
    assert list(store) == [1, 2]
    assert_same(store[2], regions_of(2, dim=20_000))


def put(path, key, value):
    environment = lmdb.open(str(path), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        transaction.put(key, value)
    environment.close()


class Dangerous:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_wrong_fields_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out"
    row = {"image_id": "1", "image_w": "4", "image_h": "3", "num_boxes": "1", "features": "AAAAAA=="}
    row |= {"boxes": base64.b64encode(np.zeros(4, np.float32)).decode()}
    for key, broken in (
        ("2", row | {"features": "%%%"}),
        ("3", row | {"boxes": "AAAAAA=="}),
        ("4", row | {"num_boxes": "x"}),
        ("5", {name: value for name, value in row.items() if name != "image_h"}),
        ("6", row | {"features": Dangerous()}),
        ("7", [1]),
    ):
        put(path, b"1", pickle.dumps(row))
        put(path, key.encode(), pickle.dumps(broken))
    put(path, b"8", b"no pickle")
    store = LmdbFeatures(path)
    assert store[1].features.shape == (1, 1)
    for image_id, message in (
        (2, "features: is not base64"),
        (3, "boxes: 4 bytes do not fit 1 boxes"),
        (4, "num_boxes: 'x' is not a number"),
        (5, "image_h: is missing"),
        (6, "system"),
        (7, "is a list instead of a dictionary"),
        (8, "not a readable pickle"),
    ):
        with pytest.raises(InputError, match=f"out: image {image_id}: .*{message}.*extract this"):
            store[image_id]
    assert not (tmp_path / "ran").exists()


def test_paths_with_other_content_are_refused(tmp_path):
    (tmp_path / "file").write_text("no LMDB")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.npz").touch()
    put(tmp_path / "other", b"key", b"value")
    for name in ("file", "folder", "other"):
        with pytest.raises(InputError, match=name):
            LmdbWriter(tmp_path / name)
        with pytest.raises(InputError, match=name):
            LmdbFeatures(tmp_path / name)
    with pytest.raises(InputError, match="none"):
        LmdbFeatures(tmp_path / "none")
    assert not is_lmdb(tmp_path / "file")
    assert not is_lmdb(tmp_path / "folder")
    assert not is_lmdb(tmp_path / "none")


def test_ids_that_cannot_be_keys_are_refused(tmp_path):
    writer = LmdbWriter(tmp_path / "out")
    for image_id in ("", "keys", "x" * 512):
        with pytest.raises(InputError, match="image id"):
            writer.append(regions_of(image_id))
    writer.append(regions_of("x" * 511))
    writer.close()
    assert list(LmdbFeatures(tmp_path / "out")) == ["x" * 511]
