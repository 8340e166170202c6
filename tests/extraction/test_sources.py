import io
import json
import os

import pytest

from bua.errors import InputError
from bua.extraction import ImageFile, list_images


@pytest.fixture
def folder(tmp_path):
    for name in ("b.v2.jpg", "COCO_val2014_000000000042.jpg", "sub/10.PNG", "été 1.jpeg", "notes.txt"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


def ids(images):
    return [image.image_id for image in images]


def test_folder_with_subfolders(folder):
    images = list_images(folder)
    assert ids(images) == [42, "b.v2", 10, "été 1"]
    assert images[2] == ImageFile(str(folder / "sub/10.PNG"), 10)


def test_glob(folder):
    assert ids(list_images(f"{folder}/*.jpg")) == [42, "b.v2"]
    assert ids(list_images(f"{folder}/**/*.PNG")) == [10]


def test_one_image(folder):
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


def test_list_on_standard_input(monkeypatch):
    lines = "a.jpg\nsub/b c.jpg\t007\nété.jpg\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert list_images("-", "/root") == [
        ImageFile("/root/a.jpg", "a"),
        ImageFile("/root/sub/b c.jpg", "007"),
        ImageFile("/root/été.jpg", "été"),
    ]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a.jpg\n\xff.jpg\n")))
    with pytest.raises(InputError, match="standard input: line 2: not UTF-8"):
        list_images("-")


def test_different_names_have_different_ids(tmp_path):
    names = ["a.jpg", "a.b.jpg", "a.c.jpg", " a.jpg", "a .jpg", "A.jpg", "1.jpg", "01.jpg", "-1.jpg", "1.0.jpg"]
    names += ["\u00e9.jpg", "e\u0301.jpg", "猫.jpg"]
    for name in names:
        (tmp_path / name).touch()
    found = list_images(tmp_path)
    assert {os.path.basename(image.path) for image in found} == set(names)
    assert {image.image_id for image in found} == {
        *["a", "a.b", "a.c", " a", "a ", "A", 1, "01", -1, "1.0", "\u00e9", "e\u0301", "猫"]
    }
    path = tmp_path / "list.txt"
    path.write_text("\n".join(names), encoding="utf-8")
    assert set(ids(list_images(path))) == set(ids(found))


def test_folders_behind_links_are_visited_once(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "1.jpg").touch()
    (tmp_path / "far" / "back").symlink_to(tmp_path / "near")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "there").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "2.gif").touch()
    assert ids(list_images(tmp_path / "near")) == [2, 1]


def test_what_cannot_be_read_in_a_folder_does_not_end_the_list(tmp_path, caplog):
    (tmp_path / "1.jpg").touch()
    (tmp_path / "2.jpg").symlink_to(tmp_path / "2.jpg")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "3.jpg")
    assert ids(list_images(tmp_path)) == [1, 2, 3]
    (record,) = caplog.records
    assert f"{tmp_path}/loop: cannot be read: Too many levels" in record.getMessage()


def test_a_pipe_is_no_source_unless_it_has_another_end_already(tmp_path):
    for name in ("pipe", "pipe.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: cannot be read: it is a named pipe"):
            list_images(tmp_path / name, tmp_path)
    end, other = os.pipe()
    os.write(other, b"a.jpg\n")
    os.close(other)
    assert ids(list_images(f"/dev/fd/{end}")) == ["a"]
    os.close(end)


def test_ids_of_any_length_and_names_that_are_not_utf8(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(f"a.jpg\t{'9' * 5000}\n{'8' * 5000}.jpg\n{'7' * 20}.jpg\n")
    assert ids(list_images(path)) == ["9" * 5000, "8" * 5000, 77777777777777777777]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "caf\udce9.jpg").touch()
    (image,) = list_images(tmp_path / "images")
    assert image == ImageFile(f"{tmp_path}/images/caf\udce9.jpg", r"caf\xe9")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x" * 300, "no such file"),
        ("a\0b.jpg", "no such file"),
        ("{0..99999999999}.jpg", "this range has more than 1000000"),
        ("{0.." + "9" * 5000 + "}.jpg", "no such file"),
    ],
)
def test_sources_that_no_file_can_be(source, message):
    with pytest.raises(InputError, match=message):
        list_images(source)


def test_range_of_folders(tmp_path):
    for part in range(3):
        (tmp_path / f"part-{part:02d}").mkdir()
        (tmp_path / f"part-{part:02d}" / f"{part}.jpg").touch()
    assert ids(list_images(f"{tmp_path}/part-{{00..02}}/*.jpg")) == [0, 1, 2]
    with pytest.raises(InputError, match=r"part-03/3.jpg: no such file"):
        list_images(f"{tmp_path}/part-{{03..04}}/{{3..4}}.jpg")


def test_visual_genomes_image_data(tmp_path):
    path = tmp_path / "image_data.json"
    start = "https://cs.stanford.edu/people/rak248"
    records = [
        {"width": 800, "height": 600, "url": f"{start}/VG_100K_2/1.jpg", "image_id": 1, "coco_id": None},
        {"width": 800, "height": 600, "url": f"{start}/VG_100K/2.jpg", "image_id": 2, "coco_id": None},
    ]
    expected = [ImageFile("/vg/VG_100K_2/1.jpg", 1), ImageFile("/vg/VG_100K/2.jpg", 2)]
    path.write_text(json.dumps(records))
    assert list_images(path, "/vg") == expected
    for record in records:
        record["id"] = record.pop("image_id")
    path.write_text(json.dumps(records, indent=1))
    assert list_images(path, "/vg") == expected
    with pytest.raises(InputError, match="image root"):
        list_images(path)


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
        ("a.json", b'{"images": ' + b"[" * 3000, "not JSON"),
        ("a.json", b'{"images": [{"id": 7, "file_name": 5}]}', "file_name of the image 7 is 5; it must be a string"),
        ("a.json", b'{"images": [{"id": ' + b"9" * 5000 + b', "file_name": "a"}]}', "an id is|not JSON"),
        ("a.json", b'{"images": [{"id": ' + b"[" * 900 + b"]" * 900 + b', "file_name": "a"}]}', "an id is"),
        ("a.json", b'{"questions": []}', "needs images"),
        ("a.json", b'[{"id": 1}]', "needs image_id and url"),
        ("a.json", b'[{"url": "a/b/c.jpg"}]', "needs image_id and url"),
        ("a.json", b'[{"image_id": 1, "url": null}]', "needs image_id and url"),
        ("a.json", b'[{"image_id": 1, "url": "a/b/c.jpg"}', "truncated"),
        ("a.json", b"[]", "no images"),
        ("a.json", b'{"images": [{"id": 1}]}', "needs images"),
        ("a.json", b'{"images": []}', "no images"),
        ("a.json", b'{"images": [{"id": null, "file_name": "x.jpg"}]}', "an id is None"),
        ("a.txt", b"x.jpg\t1\t2\n", "line 1"),
        ("a.txt", b"y.jpg\nx.jpg\t\n", "line 2"),
        ("a.txt", b"\n", "no images"),
        ("a.lst", b"\xff\xfe\x00", "line 1: not UTF-8; give an image"),
        ("a.txt", b"one/1.jpg\ntwo/1.jpg\n", "both have the id 1"),
        ("a.txt", b"one/1.jpg\none/1.jpg\n", "one/1.jpg is listed twice"),
    ],
)
def test_bad_sources(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        list_images(path, "root")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_sources_without_images(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list_images(tmp_path / "gone")
    with pytest.raises(InputError, match="no images"):
        list_images(f"{tmp_path}/*.jpg")
    with pytest.raises(InputError, match=r"contains no images .* for tar shards give .*\*\.tar"):
        list_images(tmp_path)
