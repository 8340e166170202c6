import json

import pytest

from bua.errors import InputError
from bua.extraction import ImageFile, list_images


@pytest.fixture
def folder(tmp_path):
    for name in ("b.v2.jpg", "COCO_val2014_000000000042.jpg", "sub/10.PNG", "été 1.jpeg", "notes.txt"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "pictures"


def ids(images):
    return [image.image_id for image in images]


def test_folder_with_subfolders(folder):
    images = list_images(folder)
    assert ids(images) == [42, "b.v2", 10, "été 1"]
    assert images[2] == ImageFile(str(folder / "sub/10.PNG"), 10)


def test_glob(folder):
    assert ids(list_images(f"{folder}/*.jpg")) == [42, "b.v2"]
    assert ids(list_images(f"{folder}/**/*.PNG")) == [10]


def test_one_picture(folder):
    assert list_images(folder / "b.v2.jpg") == [ImageFile(str(folder / "b.v2.jpg"), "b.v2")]


def test_list_file(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"a.jpg\r\nsub/b.jpg\t7\r\n\r\n/abs/c.jpg\tsome id\r\n")
    assert list_images(path, "/root") == [
        ImageFile("/root/a.jpg", "a"),
        ImageFile("/root/sub/b.jpg", 7),
        ImageFile("/abs/c.jpg", "some id"),
    ]
    assert list_images(path)[0].path == "a.jpg"


def test_coco_json(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": [{"id": 9, "file_name": "x.jpg"}, {"id": 3, "file_name": "y.jpg"}]}))
    assert list_images(path, "/root") == [ImageFile("/root/x.jpg", 9), ImageFile("/root/y.jpg", 3)]
    with pytest.raises(InputError, match="image root"):
        list_images(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "not JSON"),
        ("a.json", b'{"questions": []}', "needs images"),
        ("a.json", b'[{"id": 1}]', "needs images"),
        ("a.json", b'{"images": [{"id": 1}]}', "needs images"),
        ("a.json", b'{"images": []}', "no pictures"),
        ("a.json", b'{"images": [{"id": null, "file_name": "x.jpg"}]}', "an id is None"),
        ("a.txt", b"x.jpg\t1\t2\n", "line 1"),
        ("a.txt", b"y.jpg\nx.jpg\t\n", "line 2"),
        ("a.txt", b"\n", "no pictures"),
        ("a.gif", b"\xff\xfe\x00", "neither a picture"),
        ("a.txt", b"one/1.jpg\ntwo/1.jpg\n", "both have the id 1"),
    ],
)
def test_bad_sources(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        list_images(path, "root")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list_images(tmp_path / "gone")
    with pytest.raises(InputError, match="no pictures"):
        list_images(f"{tmp_path}/*.jpg")
    with pytest.raises(InputError, match="no pictures"):
        list_images(tmp_path)
