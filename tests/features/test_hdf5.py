import dataclasses
import os
import pickle
import resource
import sys
import tracemalloc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import h5py
import numpy as np
import pytest
from feature_samples import LABELS, assert_same, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.errors import InputError
from bua.features.hdf5 import Hdf5Features, Hdf5Writer
from bua.features.hdf5_files import HDF5_FORMATS, write_hdf5

EXTRAS = ("image_id", "image_w", "image_h", "objects_id", "objects_conf", "attrs_id", "attrs_conf")


def images(ids, counts=(3,), **options):
    return {
        image_id: sample(image_id, count=counts[seed % len(counts)], seed=seed, **options)
        for seed, image_id in enumerate(ids)
    }


def assert_holds(store, expected):
    assert list(store) == list(expected)
    for image_id, regions in expected.items():
        assert_same(store[image_id], regions)


def remove_additions(path, rows, protocol=0):
    """Removes from a file what the original programs do not write."""
    with h5py.File(path, "r+") as file:
        for name in EXTRAS:
            if name in file:
                del file[name]
    path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps(rows, protocol))


def spatial(regions):
    """Computes the spatial features column by column, as both converters do."""
    x1, y1, x2, y2 = regions.boxes.T
    w, h = np.float32(regions.width), np.float32(regions.height)
    return np.stack(
        [x1 / w, y1 / h, x1 / w + (x2 - x1) / w, y1 / h + (y2 - y1) / h, (x2 - x1) / w, (y2 - y1) / h], axis=1
    )


def in_a_process(run, *arguments):
    """Runs a function in a forked process, and returns the exit code of the process."""
    process = os.fork()
    if process == 0:
        try:
            run(*arguments)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_hengyuan_hus_reader_reads_the_fixed_layout(tmp_path):
    """Reads as dataset.py of hengyuan-hu's code does."""
    expected = images([7, 11, 5])
    write_hdf5(tmp_path / "train36.hdf5", expected, "hdf5")
    rows = pickle.loads((tmp_path / "train36_imgid2idx.pkl").read_bytes())
    assert rows == {7: 0, 11: 1, 5: 2}
    with h5py.File(tmp_path / "train36.hdf5", "r") as file:
        assert file["image_features"].shape == (3, 3, 5)
        assert all(data.chunks is None for data in file.values())
        features, boxes, spatials = (
            np.array(file.get(name)) for name in ("image_features", "image_bb", "spatial_features")
        )
    assert features.dtype == boxes.dtype == spatials.dtype == np.float32
    for image_id, row in rows.items():
        assert np.array_equal(features[row], expected[image_id].features)
        assert np.array_equal(boxes[row], expected[image_id].boxes)
        assert np.array_equal(spatials[row], spatial(expected[image_id]))


def test_bans_reader_reads_the_adaptive_layout(tmp_path):
    """Reads as dataset.py of ban-vqa does."""
    expected = images([7, 11, 5, 6], counts=(3, 1, 0))
    write_hdf5(tmp_path / "train.hdf5", expected, "ban-hdf5")
    rows = pickle.loads((tmp_path / "train_imgid2idx.pkl").read_bytes())
    with h5py.File(tmp_path / "train.hdf5", "r") as file:
        assert all(data.chunks is None for data in file.values())
        features, spatials, bounds = (
            np.array(file.get(name)) for name in ("image_features", "spatial_features", "pos_boxes")
        )
    assert bounds.dtype == np.int32
    assert bounds.tolist() == [[0, 3], [3, 4], [4, 4], [4, 7]]
    for image_id, row in rows.items():
        start, end = bounds[row]
        assert np.array_equal(features[start:end, :], expected[image_id].features)
        assert np.array_equal(spatials[start:end, :], spatial(expected[image_id]))


@pytest.mark.parametrize("format", HDF5_FORMATS)
def test_what_is_written_is_read(tmp_path, format):
    ids = [7, "a b.c", "0042", "été", "a\udcff", 2**70, -1, *range(100, 140)]
    expected = images(ids, counts=(3,) if format == "hdf5" else (2, 0, 5))
    write_hdf5(tmp_path / "x.h5", expected, format)
    store = Hdf5Features(tmp_path / "x.h5")
    assert store.format == format
    assert_holds(store, expected)
    assert store["7"].image_id == 7
    assert "7" in store
    assert 8 not in store
    with pytest.raises(KeyError):
        store[8]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.sets(st.sampled_from(LABELS))), min_size=1, max_size=70))
def test_labels_that_some_images_lack(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("hdf5") / "x.hdf5"
    expected = {}
    for image_id, (count, lacking) in enumerate(drawn):
        expected[image_id] = dataclasses.replace(sample(image_id, count=count), **dict.fromkeys(lacking))
    write_hdf5(path, expected, "ban-hdf5")
    assert_holds(Hdf5Features(path), expected)


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("format", HDF5_FORMATS)
def test_files_of_the_original_programs_are_read(tmp_path, format, protocol):
    rng = np.random.default_rng(0)
    expected = {}
    for image_id in range(200):
        regions = sample(image_id, seed=image_id, labelled=False)
        regions.width, regions.height = int(rng.integers(1, 30000)), int(rng.integers(1, 30000))
        corners = np.sort(rng.random((2, 3, 2), np.float32), axis=0) * [regions.width - 1, regions.height - 1]
        regions.boxes = np.concatenate(corners, axis=1).astype(np.float32)
        regions.boxes[0] = 0  # a box at the origin gives no information about the size
        expected[image_id] = regions
    path = tmp_path / "val36.hdf5"
    write_hdf5(path, expected, format)
    # Some rows have no id, and the order differs from that of the rows, as in dictionaries of Python 2.
    rows = {image_id: row for row, image_id in enumerate(expected) if image_id not in (0, 100)}
    remove_additions(path, dict(reversed(rows.items())), protocol)
    store = Hdf5Features(path)
    assert_holds(store, {image_id: expected[image_id] for image_id in rows})


def test_the_size_is_zero_if_no_box_gives_it(tmp_path):
    expected = images([1, 2], counts=(1, 0))
    expected[1].boxes[:] = 0
    write_hdf5(tmp_path / "x.hdf5", expected, "ban-hdf5")
    remove_additions(tmp_path / "x.hdf5", {1: 0, 2: 1})
    store = Hdf5Features(tmp_path / "x.hdf5")
    assert [(store[i].width, store[i].height) for i in (1, 2)] == [(0, 0), (0, 0)]


def test_compressed_and_chunked_files_are_read(tmp_path):
    expected = images([1, 2, 3], counts=(4, 2), labelled=False)
    path = tmp_path / "x.hdf5"
    write_hdf5(path, expected, "ban-hdf5")
    with h5py.File(path, "r+") as file:
        features = file["image_features"][:]
        del file["image_features"]
        file.create_dataset("image_features", data=features, chunks=(3, 5), compression="gzip")
    assert_holds(Hdf5Features(path), expected)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pickle.dumps({7: Trap()}), "pickle"),
        (pickle.dumps({7: 0, 8: 2}), "is not a dictionary from ids to the 2 rows of train36.hdf5"),
        (pickle.dumps([7, 8]), "is not a dictionary"),
        (pickle.dumps({7: 0, 8: 1})[:-3], "pickle"),
        (None, "No such file or directory; train36.hdf5 needs this file"),
    ],
)
def test_wrong_pickles_are_refused(tmp_path, rows, message):
    path, index = tmp_path / "train36.hdf5", tmp_path / "train36_imgid2idx.pkl"
    write_hdf5(path, images([7, 8]), "hdf5")
    remove_additions(path, {})
    index.unlink() if rows is None else index.write_bytes(rows)
    with pytest.raises(InputError, match=message) as raised:
        Hdf5Features(path)
    assert str(index) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_of_bua_does_not_need_its_pickle(tmp_path):
    expected = images([7, "x"])
    write_hdf5(tmp_path / "x.hdf5", expected, "hdf5")
    (tmp_path / "x_imgid2idx.pkl").unlink()
    assert_holds(Hdf5Features(tmp_path / "x.hdf5"), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as HDF5"),
        (b"not HDF5", "cannot be read as HDF5"),
        ({"image_bb": (2, 3, 4), "spatial_features": (2, 3, 6)}, "no data set image_features"),
        (
            {"image_features": (2, 3, 5), "image_bb": (2, 2, 4), "spatial_features": (2, 3, 6)},
            "they must be \\(N, n, d\\)",
        ),
        ({"image_features": (6, 5), "image_bb": (6, 4), "spatial_features": (6, 6)}, "pos_boxes \\(N, 2\\)"),
        (
            {"image_features": (2, 3, 5), "image_bb": (2, 3, 4), "spatial_features": (2, 3, 6), "image_w": (3,)},
            "image_w has the shape \\(3,\\) instead of \\(2,\\)",
        ),
    ],
)
def test_files_with_other_content_are_refused(tmp_path, content, message):
    path = tmp_path / "x.hdf5"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with h5py.File(path, "w") as file:
            for name, shape in content.items():
                file.create_dataset(name, shape, "f4")
    with pytest.raises(InputError, match=message) as raised:
        Hdf5Features(path)
    assert str(path) in str(raised.value)


def test_damage_is_reported_in_one_line(tmp_path):
    path = tmp_path / "x.hdf5"
    write_hdf5(path, images([7, 8]), "ban-hdf5")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    messages = []
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(0, 1500, 3):  # the part of the file in which HDF5 describes its content
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            list(Hdf5Features(path).values())
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith(str(path)) and "\n" not in message for message in messages)


def test_bounds_outside_the_boxes_are_reported(tmp_path):
    path = tmp_path / "x.hdf5"
    write_hdf5(path, images([7, 8]), "ban-hdf5")
    with h5py.File(path, "r+") as file:
        file["pos_boxes"][1] = 3, 7
    store = Hdf5Features(path)
    assert len(store[7]) == 3
    with pytest.raises(InputError, match="pos_boxes 3 to 7 are not within the 6 boxes"):
        store[8]


@pytest.mark.parametrize("format", HDF5_FORMATS)
def test_processes_and_threads_read_one_store(tmp_path, format):
    expected = images(range(40))
    write_hdf5(tmp_path / "x.hdf5", expected, format)
    store = Hdf5Features(tmp_path / "x.hdf5")
    store[0]
    with get_context("fork").Pool(2) as pool, ThreadPoolExecutor(4) as threads:
        results = [threads.map(store.__getitem__, expected), pool.map(store.__getitem__, expected)]
        copy = pickle.loads(pickle.dumps(store))
        results.append(threads.map(copy.__getitem__, expected))
        for read in results:
            for regions, wanted in zip(read, expected.values(), strict=True):
                assert_same(regions, wanted)


class Generated(Mapping):
    """Images that are created when they are read."""

    def __init__(self, number, count, dim):
        self.ids, self.options = range(number), {"count": count, "dim": dim}

    def __getitem__(self, image_id):
        return sample(image_id, **self.options)

    def __iter__(self):
        return iter(self.ids)

    def __len__(self):
        return len(self.ids)


@pytest.mark.parametrize("format", HDF5_FORMATS)
def test_memory_is_bounded(tmp_path, format):
    store = Generated(400, 36, 256)
    tracemalloc.start()
    try:
        write_hdf5(tmp_path / "x.hdf5", store, format)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (tmp_path / "x.hdf5").stat().st_size / 2


def test_images_that_one_file_cannot_hold_are_refused(tmp_path):
    path = tmp_path / "x.hdf5"
    with pytest.raises(InputError, match="there are no images"):
        write_hdf5(path, {})
    with pytest.raises(InputError, match="image 1: has 2 boxes, and the images before it have 3; use the format"):
        write_hdf5(path, images(range(4), counts=(3, 2)), "hdf5")
    with pytest.raises(InputError, match="image 1: has the feature dimension 6, and the images before it have 5"):
        write_hdf5(path, {0: sample(0), 1: sample(1, dim=6)}, "ban-hdf5")
    assert not list(tmp_path.iterdir())


def test_a_file_of_images_without_boxes(tmp_path):
    expected = images([1, 2], counts=(0,), dim=0)
    write_hdf5(tmp_path / "x.hdf5", expected, "ban-hdf5")
    assert_holds(Hdf5Features(tmp_path / "x.hdf5"), expected)


def limited(path, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        write_hdf5(path, images(range(64), dim=32), "hdf5")
    except OSError:
        return
    raise AssertionError("no error")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.hdf5"
    expected = images([7])
    write_hdf5(path, expected, "hdf5")
    for size in (100, 2000, 8000, 20_000, 30_000, 31_000, 32_000):
        assert in_a_process(limited, path, size) == 0
        assert sorted(os.listdir(tmp_path)) == ["x.hdf5", "x_imgid2idx.pkl"]
        assert_holds(Hdf5Features(path), expected)


def write(path, expected, format="hdf5", finish=True):
    writer = Hdf5Writer(path, format)
    for regions in expected.values():
        if regions.image_id not in writer.done:
            writer.append(regions)
    writer.sync()
    if finish:
        writer.finish()
    writer.close()


@pytest.mark.parametrize("format", HDF5_FORMATS)
def test_a_writer_continues(tmp_path, format):
    path = tmp_path / "x.hdf5"
    expected = images([7, "x", 9, 10, 11], counts=(3,) if format == "hdf5" else (0, 3, 2))
    some = {image_id: expected[image_id] for image_id in (7, "x")}
    write(path, some, format, finish=False)
    assert os.listdir(tmp_path) == ["x.hdf5.partial"]
    with pytest.raises(InputError, match="is not finished; run the extraction again"):
        Hdf5Features(path)
    writer = Hdf5Writer(path, format)
    assert writer.done == {7, "x"}
    with pytest.raises(InputError, match="'x': is already in the output"):
        writer.append(expected["x"])
    writer.close()
    write(path, {9: expected[9]}, format)
    assert sorted(os.listdir(tmp_path)) == ["x.hdf5", "x_imgid2idx.pkl"]
    assert Hdf5Writer(path, format).done == {7, "x", 9}
    write(path, expected, format)
    assert_holds(Hdf5Features(path), expected)
    assert sorted(os.listdir(tmp_path)) == ["x.hdf5", "x_imgid2idx.pkl"]
    before = path.stat()
    write(path, expected, format)
    assert path.stat() == before


def test_a_writer_continues_a_file_of_the_original_programs(tmp_path):
    path = tmp_path / "x.hdf5"
    expected = images([7, 8, 9], labelled=False)
    write_hdf5(path, {image_id: expected[image_id] for image_id in (7, 8)})
    remove_additions(path, {7: 0, 8: 1})
    write(path, expected)
    assert_holds(Hdf5Features(path), expected)
    assert pickle.loads((tmp_path / "x_imgid2idx.pkl").read_bytes()) == {7: 0, 8: 1, 9: 2}


def test_no_file_is_written_without_images(tmp_path):
    write(tmp_path / "x.hdf5", {})
    assert not list(tmp_path.iterdir())


def test_images_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "x.hdf5"
    expected = images([7])
    for finish in (False, True):
        write(path, expected, finish=finish)
        writer = Hdf5Writer(path)
        with pytest.raises(InputError, match="image 8: has 2 boxes, and the images before it have 3"):
            writer.append(sample(8, count=2))
        with pytest.raises(InputError, match="image 8: has the feature dimension 6"):
            writer.append(sample(8, dim=6))
        assert writer.done == {7}
        writer.close()
    write(path, expected)
    assert_holds(Hdf5Features(path), expected)


def test_a_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "x.hdf5"
    write(path, images([7]), "ban-hdf5")
    with pytest.raises(InputError, match="has the format ban-hdf5; choose another output or format"):
        Hdf5Writer(path, "hdf5")
    path.write_text("mine")
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        Hdf5Writer(path)
    assert path.read_text() == "mine"


def write_and_die(path, expected, step):
    """Exits like a process that is killed before it creates, renames or deletes a file for the ``step``-th time."""

    def die(event, arguments):
        nonlocal step
        if event in ("os.rename", "os.remove", "os.rmdir") or (event == "open" and arguments[2] & os.O_CREAT):
            step -= 1
            if step < 0:
                os._exit(9)

    writer = Hdf5Writer(path)
    for regions in expected.values():
        if regions.image_id not in writer.done:
            writer.append(regions)
    sys.addaudithook(die)
    writer.finish()


@pytest.mark.parametrize("first", [(), (1, 2)])
def test_a_writer_that_is_killed_at_any_step_of_finish(tmp_path, first):
    expected = images([1, 2, 3])
    step, code = 0, 9
    while code:
        path = tmp_path / str(step) / "x.hdf5"
        path.parent.mkdir()
        if first:
            write(path, {image_id: expected[image_id] for image_id in first})
        code = in_a_process(write_and_die, path, expected, step)
        assert code in (0, 9)
        write(path, expected)
        assert_holds(Hdf5Features(path), expected)
        assert pickle.loads((path.parent / "x_imgid2idx.pkl").read_bytes()) == {1: 0, 2: 1, 3: 2}
        assert sorted(os.listdir(path.parent)) == ["x.hdf5", "x_imgid2idx.pkl"]
        step += 1
    assert step > 10
