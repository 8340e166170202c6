import numpy as np
import pytest

from bua.errors import InputError
from bua.features.npz import NpzFeatures, NpzWriter
from bua.structures import Regions


def regions_of(image_id, labelled=True):
    rng = np.random.default_rng(1)
    labels = {
        "object_ids": rng.integers(0, 1600, 4),
        "object_scores": rng.random(4, np.float32),
        "attribute_ids": rng.integers(0, 400, 4),
        "attribute_scores": rng.random(4, np.float32),
    }
    boxes, features = rng.random((4, 4), np.float32), rng.random((4, 6), np.float32)
    return Regions(image_id, 640, 480, boxes, features, **(labels if labelled else {}))


def test_what_is_written_is_read(tmp_path):
    ids = [5, "a.b", "a/b", "a%2Fb", "..", "été", "0005"]
    writer = NpzWriter(tmp_path / "out")
    for image_id in ids:
        writer.append(regions_of(image_id))
    writer.close()
    store = NpzFeatures(tmp_path / "out")
    assert set(store) == set(ids) == NpzWriter(tmp_path / "out").done
    assert len(list((tmp_path / "out").iterdir())) == len(ids)
    assert "5" in store
    for image_id in ids:
        regions, expected = store[image_id], regions_of(image_id)
        assert (regions.image_id, regions.width, regions.height) == (image_id, 640, 480)
        for field in ("boxes", "features", "object_ids", "object_scores", "attribute_ids", "attribute_scores"):
            assert getattr(regions, field).dtype == getattr(expected, field).dtype
            assert np.array_equal(getattr(regions, field), getattr(expected, field))


def test_keys_and_types_for_other_readers(tmp_path):
    NpzWriter(tmp_path).append(regions_of(5))
    with np.load(tmp_path / "5.npz", allow_pickle=False) as arrays:
        assert arrays["x"].shape == (4, 6)
        assert arrays["bbox"].shape == (4, 4)
        assert arrays["x"].dtype == arrays["bbox"].dtype == arrays["objects_conf"].dtype == np.float32
        assert (int(arrays["num_bbox"]), int(arrays["image_h"]), int(arrays["image_w"])) == (4, 480, 640)
        assert arrays["objects_id"].dtype == arrays["attrs_id"].dtype == np.int64


def test_files_of_milvlg_are_read_without_unpickling(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    x, bbox = np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32)
    info = np.array({"objects_id": Trap()}, dtype=object)
    np.savez_compressed(tmp_path / "a.jpg.npz", x=x, bbox=bbox, num_bbox=2, image_h=48, image_w=64, info=info)
    regions = NpzFeatures(tmp_path)["a.jpg"]
    assert (regions.width, regions.height) == (64, 48)
    assert np.array_equal(regions.features, x)
    assert regions.object_ids is None


def test_regions_without_labels(tmp_path):
    NpzWriter(tmp_path).append(regions_of(5, labelled=False))
    assert NpzFeatures(tmp_path)[5].object_ids is None


def test_a_file_that_cannot_be_written_leaves_no_trace(tmp_path, monkeypatch):
    writer = NpzWriter(tmp_path)
    writer.append(regions_of(5))

    def full_disk(file, **_):
        file.write(b"PK half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bua.features.npz.np.savez", full_disk)
    for image_id in (5, 6):
        with pytest.raises(OSError, match="No space"):
            writer.append(regions_of(image_id))
    assert [entry.name for entry in tmp_path.iterdir()] == ["5.npz"]
    assert len(NpzFeatures(tmp_path)[5]) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK half a zip", "cannot be read as npz"),
        (b"", "cannot be read as npz"),
        ({"y": np.zeros(3)}, "x is not a file"),
        ({"x": np.ones((3, 2)), "bbox": np.ones((2, 4)), "image_w": 1, "image_h": 1}, "need \\(n, d\\)"),
        ({"x": np.array([None])}, "cannot be read as npz"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "a.npz"
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    with pytest.raises(InputError, match=message) as raised:
        NpzFeatures(tmp_path)["a"]
    assert str(path) in str(raised.value)


def test_ids_that_are_no_file_names(tmp_path):
    writer = NpzWriter(tmp_path)
    for image_id in ("", "a" * 300):
        with pytest.raises(InputError, match="image id"):
            writer.append(regions_of(image_id))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="needs a folder"):
        NpzWriter(tmp_path / "file")
