import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from feature_samples import assert_same, sample

from bua.errors import InputError
from bua.features.npz import NpzFeatures, NpzWriter


def test_what_is_written_is_read(tmp_path):
    ids = [5, "a.b", "a/b", "a%2Fb", "..", "été", "0005"]
    writer = NpzWriter(tmp_path / "out")
    for image_id in ids:
        writer.append(sample(image_id))
    writer.sync()
    writer.finish()
    writer.close()
    store = NpzFeatures(tmp_path / "out")
    assert set(store) == set(ids) == NpzWriter(tmp_path / "out").done
    assert len(list((tmp_path / "out").iterdir())) == len(ids)
    assert "5" in store
    for image_id in ids:
        assert_same(store[image_id], sample(image_id))


def test_milvlgs_reader_reads_it(tmp_path):
    regions = sample(5, count=4, dim=6)
    NpzWriter(tmp_path).append(regions)
    with np.load(tmp_path / "5.npz", allow_pickle=True) as arrays:
        assert set(arrays) == {"x", "bbox", "num_bbox", "image_h", "image_w", "info"}
        assert arrays["x"].shape == (4, 6)
        assert arrays["bbox"].shape == (4, 4)
        assert arrays["x"].dtype == arrays["bbox"].dtype == np.float32
        assert (int(arrays["num_bbox"]), int(arrays["image_h"]), int(arrays["image_w"])) == (4, 480, 640)
        info = arrays["info"].item()
    assert (info["image_id"], info["image_h"], info["image_w"], info["num_boxes"]) == ("5", 480, 640, 4)
    assert np.array_equal(info["objects_id"], regions.object_ids)
    assert np.array_equal(info["objects_conf"], regions.object_scores)
    assert np.array_equal(info["attrs_id"], regions.attribute_ids)
    assert np.array_equal(info["attrs_conf"], regions.attribute_scores)
    assert info["objects_id"].dtype == info["attrs_id"].dtype == np.int64
    assert info["objects_conf"].dtype == info["attrs_conf"].dtype == np.float32


def test_numpy_1_reads_it(tmp_path):
    NpzWriter(tmp_path).append(sample("é"))
    with zipfile.ZipFile(tmp_path / "é.npz") as archive:
        info = archive.read("info.npy")
    # Both versions can read these names of modules. Protocol 4 and later would store the names in another way.
    assert b"cnumpy.core.multiarray\n" in info
    assert b"_core" not in info


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_milvlgs_files_are_read(tmp_path, protocol, core):
    expected = sample("a.jpg", count=2)
    info = {
        "image_id": "a",
        "image_h": np.int64(480),
        "image_w": 640,
        "num_boxes": 2,
        "objects_id": expected.object_ids,
        "objects_conf": expected.object_scores,
        "attrs_id": expected.attribute_ids,
        "attrs_conf": expected.attribute_scores,
    }
    x, bbox = torch.from_numpy(expected.features), torch.from_numpy(expected.boxes)
    np.savez_compressed(tmp_path / "a.jpg.npz", x=x, bbox=bbox, num_bbox=2, image_h=480, image_w=640, info=info)
    replace_info(tmp_path / "a.jpg.npz", rename(pickle.dumps(np.array(info, dtype=object), protocol), core))
    assert_same(NpzFeatures(tmp_path)["a.jpg"], expected)


def rename(data, core):
    """Replaces the names of numpy's internal modules in a pickle by those of another version of numpy."""
    for name in (b"numpy._core", b"numpy.core"):
        for suffix in (b".multiarray", b".numeric"):
            # The name is either a line, or a string after its length.
            data = data.replace(b"c" + name + suffix + b"\n", b"c" + core + suffix + b"\n")
            data = data.replace(
                bytes([0x8C, len(name + suffix)]) + name + suffix, bytes([0x8C, len(core + suffix)]) + core + suffix
            )
    # The length of the frame is wrong now, but the frame is optional.
    start = data.find(b"\x95")
    return data if start != 2 else data[:2] + data[11:]


def replace_info(path, data):
    with np.load(path, allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "info"}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    np.savez(path, **kept)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("info.npy", header.getvalue() + data)


def detectron2_file(path, attributes=True, objects=(1, 0), **more):
    rng = np.random.default_rng(0)
    info = {"objects": np.array(objects), "cls_prob": np.float32([[0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])}
    if attributes:
        # A part of a larger tensor, as the selection of the kept regions returns it. The scores are of all proposals.
        info["attrs_id"] = torch.softmax(torch.from_numpy(rng.random((4, 5), np.float32)), -1)[1:3]
        info["attrs_scores"] = torch.from_numpy(rng.random((7, 5), np.float32))
    x = rng.random((2, 6), np.float32)
    np.savez_compressed(
        path, x=x, bbox=np.ones((2, 4)), num_bbox=2, image_h=48, image_w=64, image_h_inner=6, info=info | more
    )
    return info


@pytest.mark.parametrize("attributes", [True, False])
def test_files_of_milvlgs_detectron2_models_are_read(tmp_path, attributes):
    info = detectron2_file(tmp_path / "a.npz", attributes)
    regions = NpzFeatures(tmp_path)["a"]
    assert regions.object_ids.tolist() == [1, 0]
    assert regions.object_scores.tolist() == np.float32([0.7, 0.1]).tolist()
    if attributes:
        assert np.array_equal(regions.attribute_ids, info["attrs_id"].argmax(1))
        assert np.array_equal(regions.attribute_scores, info["attrs_id"].amax(1))
    else:
        assert regions.attribute_ids is None


def test_background_in_files_of_detectron2_models_is_replaced(tmp_path):
    detectron2_file(tmp_path / "a.npz", objects=(3, 0))
    regions = NpzFeatures(tmp_path)["a"]
    assert regions.object_ids.tolist() == [1, 0]
    assert regions.object_scores.tolist() == np.float32([0.7, 0.1]).tolist()


def test_tensors_beyond_their_storage_are_refused(tmp_path):
    class Tensor:
        def __reduce__(self):
            function, (storage, *_) = torch.ones(4).__reduce_ex__(2)[:2]
            return function, (storage, 0, (2, 10**9), (0, 0), False, {})

    detectron2_file(tmp_path / "a.npz", attrs_id=Tensor())
    with pytest.raises(InputError, match="only 4 numbers"):
        NpzFeatures(tmp_path)["a"]


def test_older_files_of_milvlg_are_read(tmp_path):
    x, bbox = np.arange(6, dtype=np.float32).reshape(3, 2), np.zeros((2, 4), np.float32)
    np.savez(tmp_path / "a.npz", x=x, bbox=bbox, num_bbox=2, image_h=48, image_w=64)
    regions = NpzFeatures(tmp_path)["a"]
    assert np.array_equal(regions.features, x.T)
    assert regions.object_ids is None


class Trap:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "trap",
    [
        Trap(pytest.fail, "code from a pickle was executed"),
        Trap(exec, "raise SystemExit"),
        Trap(subprocess.run, ["false"]),
        Trap(torch.load, "x"),
        Trap(torch.storage._load_from_bytes, pickle.dumps(Trap(exec, "raise SystemExit"), 2)),
        Trap(sys.exit),
    ],
)
def test_code_in_pickles_is_not_executed(tmp_path, trap):
    arrays = {"x": np.ones((2, 3)), "bbox": np.ones((2, 4)), "num_bbox": 2, "image_h": 48, "image_w": 64}
    np.savez(tmp_path / "a.npz", **arrays, info=np.array({"objects_id": trap}, dtype=object))
    with pytest.raises(InputError, match="info is a pickle that is not loaded") as raised:
        NpzFeatures(tmp_path)["a"]
    assert str(tmp_path / "a.npz") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_regions_without_labels_or_boxes(tmp_path):
    writer = NpzWriter(tmp_path)
    for regions in (sample(5, labelled=False), sample(6, count=0)):
        writer.append(regions)
        assert_same(NpzFeatures(tmp_path)[regions.image_id], regions)


def test_a_file_that_cannot_be_written_leaves_no_trace(tmp_path, monkeypatch):
    writer = NpzWriter(tmp_path)
    writer.append(sample(5))

    def full_disk(file, *_, **__):
        file.write(b"PK half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bua.features.npz.np.lib.format.write_array", full_disk)
    for image_id in (5, 6):
        with pytest.raises(OSError, match="No space"):
            writer.append(sample(image_id))
    assert [entry.name for entry in tmp_path.iterdir()] == ["5.npz"]
    assert len(NpzFeatures(tmp_path)[5]) == 3
    assert writer.done == {5}


def test_files_of_a_killed_writer_are_overwritten(tmp_path):
    (tmp_path / "5.npz.tmp").write_bytes(b"PK half")
    writer = NpzWriter(tmp_path)
    assert writer.done == set()
    writer.append(sample(5))
    assert [entry.name for entry in tmp_path.iterdir()] == ["5.npz"]


FILE = {"x": np.ones((2, 3)), "bbox": np.ones((2, 4)), "num_bbox": 2, "image_h": 48, "image_w": 64}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK half a zip", "cannot be read as npz"),
        (b"", "cannot be read as npz"),
        ({"y": np.zeros(3)}, "x is not a file"),
        ({"x": np.ones((3, 5)), "bbox": np.ones((2, 4)), "image_w": 1, "image_h": 1}, "not \\(n, d\\)"),
        ({"x": np.array([None])}, "cannot be read as npz"),
        (FILE | {"info": np.array([1, None])}, "info is an array of object with the shape \\(2,\\)"),
        (FILE | {"info": np.array(1)}, "info is an array of int64"),
        (FILE | {"info": np.array([], dtype=object).reshape(0)}, "info is an array of object with the shape \\(0,\\)"),
        (FILE | {"info": np.array(None)}, "info is a NoneType"),
        (FILE | {"info": np.array({"objects_id": [1]})}, "info: objects_id has the shape \\(1,\\) instead of \\(2,\\)"),
        (FILE | {"info": np.array({"objects_id": "x"})}, "info: "),
        (FILE | {"info": np.array({"objects": np.array([1, 2])})}, "info: 'cls_prob'"),
        (FILE | {"info": np.array({"objects": np.array([1, 2]), "cls_prob": np.ones(2)})}, "info: "),
    ],
)
def test_wrong_files_are_named(tmp_path, content, message):
    path = tmp_path / "a.npz"
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    with pytest.raises(InputError, match=message) as raised:
        NpzFeatures(tmp_path)["a"]
    assert str(path) in str(raised.value)


def test_ids_and_paths_that_cannot_be_used_are_refused(tmp_path):
    writer = NpzWriter(tmp_path)
    for image_id in ("", "a" * 300):
        with pytest.raises(InputError, match="image id"):
            writer.append(sample(image_id))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").touch()
    with pytest.raises(InputError, match=r", and no \.npz files"):
        NpzWriter(folder)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot create this folder"):
        NpzWriter(tmp_path / "file")
