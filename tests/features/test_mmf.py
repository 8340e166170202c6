import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from feature_samples import assert_same, run_and_kill, sample

from bua.errors import InputError
from bua.features import open_features
from bua.features.mmf import MmfFeatures, MmfWriter


def regions_of(image_id, **shape):
    return sample(image_id, seed=zlib.crc32(str(image_id).encode()) % 100, **shape)


def test_what_is_written_is_read(tmp_path):
    ids = [5, "a.b", "a/b", "a%2Fb", "..", "été", "0005", "x", "x_info", "x%5Finfo", "_info", "x_info_info"]
    writer = MmfWriter(tmp_path / "out")
    for number, image_id in enumerate(ids):
        writer.append(regions_of(image_id, labelled=number % 2 == 0))
    writer.finish()
    writer.close()
    assert isinstance(open_features(tmp_path / "out"), MmfFeatures)
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(ids)
    store = MmfFeatures(tmp_path / "out")
    assert set(store) == set(ids) == MmfWriter(tmp_path / "out").done
    assert "5" in store
    for number, image_id in enumerate(ids):
        assert_same(store[image_id], regions_of(image_id, labelled=number % 2 == 0))
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(store.__getitem__, ids * 5))) == 5 * len(ids)


def test_mmfs_reader_reads_it(tmp_path):
    MmfWriter(tmp_path).append(regions_of(5))
    path = str(tmp_path / "5.npy")
    features = np.load(path, allow_pickle=True)
    info = np.load("{}_info.npy".format(path.split(".npy")[0]), allow_pickle=True).item()
    assert (features.dtype, features.shape) == (np.float32, (3, 5))
    assert (info["bbox"].dtype, info["bbox"].shape) == (np.float32, (3, 4))
    assert (info["num_boxes"], info["image_width"], info["image_height"]) == (3, 640, regions_of(5).height)
    np.testing.assert_array_equal(info["objects"], regions_of(5).object_ids)


def test_all_versions_of_numpy_read_it_without_warnings(tmp_path):
    MmfWriter(tmp_path).append(regions_of(5))
    data = (tmp_path / "5_info.npy").read_bytes()
    assert b"numpy.core.multiarray" in data
    assert b"numpy._core" not in data
    code = "import sys, numpy; print(sorted(numpy.load(sys.argv[1], allow_pickle=True).item()))"
    command = [sys.executable, "-W", "error", "-c", code, tmp_path / "5_info.npy"]
    assert "bbox" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_files_of_mmfs_extraction_are_read(tmp_path):
    expected = regions_of(7)
    probabilities = np.full((3, 1600), 1e-4, np.float32)
    probabilities[np.arange(3), expected.object_ids] = expected.object_scores
    info = {
        "bbox": expected.boxes,
        "num_boxes": 2,
        "objects": expected.object_ids,
        "cls_prob": probabilities,
        "image_width": np.int64(640),
        "image_height": expected.height,
    }
    np.save(tmp_path / "7_info.npy", info)
    np.save(tmp_path / "7.npy", expected.features)
    expected.attribute_ids = expected.attribute_scores = None
    expected.class_probs = probabilities.astype(np.float16)
    assert_same(MmfFeatures(tmp_path)[7], expected)


def test_an_image_without_regions(tmp_path):
    MmfWriter(tmp_path).append(regions_of(1, count=0))
    assert_same(MmfFeatures(tmp_path)[1], regions_of(1, count=0))


def test_incomplete_images_are_left_out(tmp_path):
    writer = MmfWriter(tmp_path)
    writer.append(regions_of(1))
    writer.append(regions_of(2))
    os.unlink(tmp_path / "2.npy")
    (tmp_path / "3.npy.tmp").write_bytes(b"cut")
    assert set(MmfFeatures(tmp_path)) == MmfWriter(tmp_path).done == {1}


def write_for_long(path):
    writer = MmfWriter(path)
    for image_id in range(5000):
        if image_id not in writer.done:
            writer.append(regions_of(image_id, dim=2048))


def test_killed_writers_leave_complete_images(tmp_path):
    path = tmp_path / "out"
    # One image is there before, since a process may be killed before it writes its first.
    MmfWriter(path).append(regions_of(0, dim=2048))
    for seed in range(10):
        run_and_kill(write_for_long, path, seed)
        done = MmfWriter(path).done
        assert done == set(range(len(done)))
    store = MmfFeatures(path)
    assert store
    for image_id in store:
        assert_same(store[image_id], regions_of(image_id, dim=2048))


class Dangerous:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_wrong_files_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = MmfWriter(tmp_path / "out")
    for image_id in range(1, 9):
        writer.append(regions_of(image_id))
    folder = tmp_path / "out"
    info = {"bbox": np.zeros((3, 4)), "image_width": 1, "image_height": 1}
    (folder / "1.npy").write_bytes((folder / "1.npy").read_bytes()[:-5])
    np.save(folder / "2.npy", np.zeros(4))
    np.save(folder / "3_info.npy", {"bbox": Dangerous()})
    np.save(folder / "4_info.npy", {"bbox": np.zeros((3, 4))})
    np.save(folder / "5_info.npy", info | {"bbox": np.zeros((3, 5))})
    np.save(folder / "6_info.npy", np.zeros(3))
    np.save(folder / "7_info.npy", info | {"objects": np.zeros(2)})
    np.save(folder / "8_info.npy", info | {"objects": np.full(3, 9), "cls_prob": np.zeros((3, 9))})
    store = MmfFeatures(folder)
    for image_id, message in (
        (1, r"1\.npy: cannot be read as npy"),
        (2, r"2\.npy: has the shape \(4,\)"),
        (3, r"3_info\.npy: .*system"),
        (4, r"4_info\.npy: image_width: is missing"),
        (5, r"5_info\.npy: bbox has the shape \(3, 5\)"),
        (6, r"6_info\.npy: holds numbers"),
        (7, r"7_info\.npy: objects has the shape \(2,\)"),
        (8, r"8_info\.npy: cls_prob has the shape \(3, 9\)"),
    ):
        with pytest.raises(InputError, match=message):
            store[image_id]
    assert not (tmp_path / "ran").exists()
    with pytest.raises(KeyError):
        store[9]


def test_paths_with_other_content_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.npz").touch()
    for name in ("file", "folder"):
        with pytest.raises(InputError, match=name):
            MmfWriter(tmp_path / name)
    with pytest.raises(InputError, match="none"):
        MmfFeatures(tmp_path / "none")


def test_ids_that_cannot_be_file_names_are_refused(tmp_path):
    writer = MmfWriter(tmp_path)
    for image_id in ("", "x" * 300):
        with pytest.raises(InputError, match="image id"):
            writer.append(regions_of(image_id))
    writer.append(regions_of("x" * 225))
    assert MmfWriter(tmp_path).done == {"x" * 225}
