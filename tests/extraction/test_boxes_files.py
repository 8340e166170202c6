import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from bua.errors import InputError
from bua.extraction import load_boxes
from bua.features import open_features
from bua.features.npz import NpzWriter
from bua.features.tsv import TsvWriter
from bua.structures import Regions

# In no order that sorting would give; over the edge, and of no width.
BOXES = {
    7: np.array([[50, 2, 60.5, 9], [-3, -4, 5, 6], [50, 2, 60.5, 9]], np.float32),
    "été 1.b": np.array([[3, 3, 3, 3]], np.float32),
    "007": np.array([[1e4, 0, 2e4, 1 / 3]], np.float32),
}


def assert_boxes(loaded, expected=BOXES):
    assert set(loaded) == set(expected)
    assert len(loaded) == len(expected)
    for image_id, boxes in expected.items():
        assert image_id in loaded
        assert loaded[image_id].dtype == np.float32
        assert loaded[image_id].flags.writeable
        np.testing.assert_array_equal(loaded[image_id], boxes)
    assert "gone" not in loaded
    with pytest.raises(KeyError):
        loaded["gone"]


def regions(image_id, boxes):
    features = np.ones((len(boxes), 3), np.float32)
    return Regions(image_id=image_id, width=60, height=40, boxes=boxes, features=features)


def test_json(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({str(image_id): boxes.tolist() for image_id, boxes in BOXES.items()} | {"none": []}))
    assert_boxes(load_boxes(path), BOXES | {"none": np.zeros((0, 4), np.float32)})


@pytest.mark.parametrize("whole", [False, True])
def test_coco_json(tmp_path, whole):
    path = tmp_path / "coco.json"
    records = [
        {"image_id": 2, "bbox": [1, 2, 10, 20], "category_id": 3},
        {"image_id": "a", "bbox": [0, 0, 1, 1]},
        {"image_id": 2, "bbox": [0.5, 0, 3, 4]},
    ]
    path.write_text(json.dumps({"images": [], "annotations": records} if whole else records))
    expected = {
        2: np.array([[1, 2, 11, 22], [0.5, 0, 3.5, 4]], np.float32),
        "a": np.array([[0, 0, 1, 1]], np.float32),
    }
    assert_boxes(load_boxes(path), expected)


def test_rows(tmp_path):
    path = tmp_path / "boxes.tsv"
    rows = ["\t".join(map(str, [image_id, *map(float, box)])) for image_id, boxes in BOXES.items() for box in boxes[:1]]
    # An image's rows need not follow each other.
    rows += ["\t".join(map(str, [7, *map(float, box)])) for box in BOXES[7][1:]]
    path.write_text("\r\n".join(rows) + "\n\n", encoding="utf-8")
    assert_boxes(load_boxes(path))
    path.write_text(rows[0])
    assert_boxes(load_boxes(path), {7: BOXES[7][:1]})


def test_npz_archive(tmp_path):
    path = tmp_path / "boxes.npz"
    np.savez(path, **{str(image_id): boxes.astype(np.float64) for image_id, boxes in BOXES.items()})
    assert_boxes(load_boxes(path))


def test_folder_of_npy(tmp_path):
    for image_id, boxes in BOXES.items():
        np.save(tmp_path / f"{image_id}.npy", boxes.astype(np.float64))
    loaded = load_boxes(tmp_path)
    assert_boxes(loaded)
    assert_boxes(pickle.loads(pickle.dumps(loaded)))


def test_folder_of_npz_that_hold_boxes_alone_as_milvlgs_mode_2(tmp_path):
    for image_id, boxes in BOXES.items():
        np.savez_compressed(tmp_path / f"{image_id}.npz", bbox=boxes, num_bbox=len(boxes), image_h=40, image_w=60)
    assert_boxes(load_boxes(tmp_path))


@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize("format", ["tsv", "npz"])
def test_boxes_of_features(tmp_path, format, count):
    writer = TsvWriter(tmp_path / "out", "tsv") if format == "tsv" else NpzWriter(tmp_path / "out")
    expected = {image_id: np.repeat(boxes, count, axis=0) for image_id, boxes in BOXES.items()}
    for image_id, boxes in expected.items():
        writer.append(regions(image_id, boxes))
    writer.close()
    assert set(open_features(tmp_path / "out")) == set(expected)
    loaded = load_boxes(tmp_path / "out")
    assert_boxes(loaded, expected)
    assert_boxes(pickle.loads(pickle.dumps(loaded)), expected)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"7": [1, 2, 3, 4]}', r"image 7: an array of shape \(4,\); boxes are \(N, 4\)"),
        ("a.json", b'{"7": [[1, 2, 3, 4], [1, 2, 3]]}', "image 7: not boxes"),
        ("a.json", b'{"7": {"x1": 3}}', "image 7: not boxes"),
        ("a.json", b'{"7": [[1, 2, null, 4]]}', "image 7: box 0 .* finite"),
        ("a.json", b'{"7": [[0, 0, 3, 4], [5, 0, 3, 4]]}', "image 7: box 1 .* is 5 0 3 4; .* x1 <= x2"),
        ("a.json", b'{"7": [[NaN, 2, 3, 4]]}', "not JSON"),
        ("a.json", b'{"7"', "not JSON"),
        ("a.json", b'{"7": ' + b"[" * 3000, "not JSON"),
        ("a.json", b'{"7": ' + b"[" * 900 + b"]" * 900 + b"}", "image 7: not boxes"),
        ("a.json", b'[{"image_id": ' + b"[" * 900 + b"]" * 900 + b', "bbox": [1, 2, 3, 4]}]', "record 1: .* needs"),
        ("a.json", b'[{"image_id": null, "bbox": [1, 2, 3, 4]}]', "record 1: .* needs image_id and bbox"),
        ("a.json", b'[{"image_id": 1}]', "record 1: .* needs image_id and bbox"),
        ("a.json", b'[{"image_id": 1, "bbox": [1, 2, 3]}]', "record 1: .* needs image_id and bbox"),
        ("a.json", b'{"annotations": [3]}', "record 1: 3 needs image_id and bbox"),
        ("a.json", b'{"annotations": 3}', "annotations must be a list"),
        ("a.tsv", b"7\t1\t2\t3\t4\n7\t1\t2\t3\n", "line 2: need id<TAB>x1"),
        ("a.tsv", b"7\t1\t2\t3\tx\n", "line 1: need id<TAB>x1"),
        ("a.tsv", b"7\t1\t2\t3\tnan\n", "image 7: box 0 .* finite"),
        ("a.tsv", b"7\t9\t2\t3\t4\n", "image 7: box 0 .* x1 <= x2"),
        ("a.npz", b"PK\x03\x04rubbish", "cannot be read as npz"),
        ("7.npy", b"\x93NUMPY\x01\x00", "give the folder"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        load_boxes(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_bad_file_in_a_folder_affects_only_its_image(tmp_path):
    np.save(tmp_path / "1.npy", np.zeros((2, 4)))
    np.save(tmp_path / "2.npy", np.zeros((2, 5)))
    np.save(tmp_path / "3.npy", np.array([{}], dtype=object))
    (tmp_path / "4.npy").write_bytes(b"")
    os.mkfifo(tmp_path / "5.npy")
    np.save(tmp_path / "6.npy", np.zeros((2, 4)))
    header = (tmp_path / "6.npy").read_bytes()[:128]
    (tmp_path / "6.npy").write_bytes(header.replace(b"(2, 4), }", b"(2" + b"0" * 6 + b", 4), }"))
    (tmp_path / "7.npy").write_bytes(header.replace(b"(2, 4), }      ", b"(2" + b"0" * 12 + b", 4), }"))
    (tmp_path / "8.npy").symlink_to("8.npy")
    boxes = load_boxes(tmp_path)
    assert boxes[1].shape == (2, 4)
    bad = {
        2: r"shape \(2, 5\)",
        5: "it is a named pipe",
        6: "but has only 134 bytes",
        7: "but has only 134 bytes",
        8: "Too many levels",
    }
    for image_id in range(2, 9):
        with pytest.raises(InputError, match=bad.get(image_id, "cannot be read")) as raised:
            boxes[image_id]
        assert str(raised.value).startswith(f"{tmp_path}")


def npz(path, change=None, kind=zipfile.ZIP_STORED, boxes=np.zeros((9, 4))):  # noqa: B008, numpy's arrays are not changed
    """Writes an npz file, whose bytes ``change`` then damages."""
    content = io.BytesIO()
    np.save(content, boxes)
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("bbox.npy", content.getvalue())
    data = bytearray(path.read_bytes())
    if change:
        change(data)
    path.write_bytes(data)


def encrypt(data):
    data[6] |= 1  # in the header of the member
    data[data.index(b"PK\x01\x02") + 8] |= 1  # in the list of members


def compress_by_99(data):
    data[8] = data[data.index(b"PK\x01\x02") + 10] = 99


def spoil(data):
    data[60:80] = b"\xff" * 20


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("change", [spoil, encrypt, compress_by_99])
def test_a_damaged_archive_is_named(tmp_path, kind, change):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder" / "7.npz", tmp_path / "a.npz"):
        npz(path, change, kind)
    with pytest.raises(InputError, match=r"7.npz: cannot be read as npz"):
        load_boxes(tmp_path / "folder")[7]
    with pytest.raises(InputError, match=r"a.npz: cannot be read as npz"):
        load_boxes(tmp_path / "a.npz")


def test_a_small_file_of_a_large_array_takes_no_memory(tmp_path):
    npz(tmp_path / "7.npz", kind=zipfile.ZIP_DEFLATED, boxes=np.zeros((3_000_000, 4)))
    with pytest.raises(
        InputError, match=r"7.npz: cannot be read as npz \(an array of 96000128 bytes is not boxes of one image\)"
    ):
        load_boxes(tmp_path)[7]


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "boxes.json")
    with pytest.raises(InputError, match=r"boxes.json: cannot be read: it is a named pipe"):
        load_boxes(tmp_path / "boxes.json")


def test_archives_with_other_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", **{"7": np.zeros((3, 2))})
    with pytest.raises(InputError, match=r"a.npz: image 7: an array of shape \(3, 2\)"):
        load_boxes(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **{"7": np.array([{}], dtype=object)})
    with pytest.raises(InputError, match=r"b.npz: cannot be read as npz"):
        load_boxes(tmp_path / "b.npz")
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "folder" / "7.npz", x=np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"7.npz: has no array bbox"):
        load_boxes(tmp_path / "folder")[7]


def test_files_that_do_not_exist(tmp_path):
    with pytest.raises(InputError, match=r"gone.json: cannot be read: No such file"):
        load_boxes(tmp_path / "gone.json")
    with pytest.raises(InputError):
        load_boxes(tmp_path)
