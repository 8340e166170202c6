import base64
import json
import multiprocessing
import os
import pickle
import resource
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from feature_samples import assert_same, run_and_kill, sample

from bua.errors import InputError
from bua.features.vinvl import VinvlFeatures, VinvlWriter

FORMATS = ("vinvl-tsv", "oscar-tsv")
ABOUT = {
    "object_vocabulary": [f"object {number}" for number in range(1600)],
    "attribute_vocabulary": [f"Attribüt {number}" for number in range(400)],
}
IDS = [5, "a.b", "a/b", "été", 'say "hi"', "0005", "two words"]


def regions_of(image_id, **shape):
    return sample(image_id, seed=zlib.crc32(str(image_id).encode()) % 100, **shape)


def write(path, regions, format="vinvl-tsv", finish=True, about=ABOUT):
    writer = VinvlWriter(path, format, about)
    for one in regions:
        writer.append(one)
    if finish:
        writer.finish()
    writer.close()


def rows_by_lineidx(path):
    """Reads the rows as TSVFile of VinVL and Oscar does."""
    with open(os.path.splitext(path)[0] + ".lineidx") as file:
        offsets = [int(line.strip()) for line in file]
    rows = []
    with open(path) as file:
        for offset in offsets:
            file.seek(offset)
            rows.append([cell.strip() for cell in file.readline().split("\t")])
    return rows


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("labelled", [True, False])
def test_what_is_written_is_read(tmp_path, format, labelled):
    path = tmp_path / "out.tsv"
    write(path, [regions_of(image_id, labelled=labelled) for image_id in IDS], format)
    store = VinvlFeatures(path)
    assert store.format == format
    assert list(store) == IDS
    assert "5" in store
    for image_id in IDS:
        assert_same(store[image_id], regions_of(image_id, labelled=labelled))
    with pytest.raises(KeyError):
        store[6]


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_without_regions(tmp_path, format):
    write(tmp_path / "out.tsv", [regions_of(1, count=0, dim=0)], format)
    assert_same(VinvlFeatures(tmp_path / "out.tsv")[1], regions_of(1, count=0, dim=0))


def test_scene_graph_benchmarks_reader_reads_it(tmp_path):
    path = tmp_path / "predictions.tsv"
    write(path, [regions_of(image_id) for image_id in IDS])
    rows, sizes = rows_by_lineidx(path), rows_by_lineidx(tmp_path / "predictions.hw.tsv")
    assert [row[0] for row in rows] == [row[0] for row in sizes] == [str(image_id) for image_id in IDS]
    with open(tmp_path / "predictions.labelmap.json") as file:
        labelmap = json.load(file)
    for image_id, row, size in zip(IDS, rows, sizes):
        expected, content = regions_of(image_id), json.loads(row[1])
        assert json.loads(size[1]) == [{"height": expected.height, "width": 640}]
        assert (content["image_h"], content["image_w"], content["relations"]) == (expected.height, 640, None)
        for number, one in enumerate(content["objects"]):
            assert one["bbox_id"] == number
            assert one["rect"] == expected.boxes[number].tolist()
            assert one["class"] == f"object {expected.object_ids[number]}"
            assert labelmap["label_to_idx"][one["class"]] == expected.object_ids[number] + 1
            assert one["conf"] == expected.object_scores[number]
            assert one["attributes"] == [f"Attribüt {expected.attribute_ids[number]}"]
            assert labelmap["attribute_to_idx"][one["attributes"][0]] == expected.attribute_ids[number] + 1
            feature = np.frombuffer(base64.b64decode(one["feature"]), np.float32)
            np.testing.assert_array_equal(feature, expected.features[number])


def test_oscars_reader_reads_it(tmp_path):
    path = tmp_path / "features.tsv"
    write(path, [regions_of(7), regions_of("b")], "oscar-tsv", about=None)
    for row, image_id in zip(rows_by_lineidx(path), (7, "b"), strict=True):
        content, expected = json.loads(row[1]), regions_of(image_id)
        features = np.frombuffer(base64.b64decode(content["features"]), np.float32).reshape(content["num_boxes"], -1)
        assert features.shape == (3, 5 + 6)
        np.testing.assert_array_equal(features[:, :5], expected.features)
        for values, (x1, y1, x2, y2) in zip(features[:, 5:], expected.boxes):
            width, height = 640, expected.height
            place = [x1 / width, y1 / height, x2 / width, y2 / height, (x2 - x1) / width, (y2 - y1) / height]
            np.testing.assert_allclose(values, place, rtol=1e-5, atol=1e-6)


def vinvl_row(regions, **more):
    objects = [
        {
            "rect": box.tolist(),
            "bbox_id": number,
            "class": "dog",
            "conf": 0.5,
            "feature": base64.b64encode(feature.tobytes()).decode(),
            **more,
        }
        for number, (box, feature) in enumerate(zip(regions.boxes, regions.features))
    ]
    return f"{regions.image_id}\t{json.dumps({'objects': objects, 'relations': None})}\n"


@pytest.mark.parametrize(
    "size",
    ['[{"height": 400, "width": 300}]', '{"width": 300, "height": 400}', "400 300"],
    ids=["list", "dict", "text"],
)
def test_vinvls_rows_are_read_without_names_and_with_hw_tsv(tmp_path, size):
    path, expected = tmp_path / "out.tsv", regions_of("img", labelled=False)
    expected.width, expected.height = 300, 400
    path.write_text(vinvl_row(expected))
    (tmp_path / "out.hw.tsv").write_text(f"img\t{size}\n")
    assert_same(VinvlFeatures(path)["img"], expected)


def test_the_best_of_vinvls_attributes_is_read(tmp_path):
    path, regions = tmp_path / "out.tsv", regions_of(1, labelled=False)
    attributes = {"attributes": ["red", "big", "__no_attribute__"], "attr_scores": [0.25, 0.5, 0.75]}
    path.write_text(vinvl_row(regions, **attributes))
    (tmp_path / "out.hw.tsv").write_text("1\t400 300\n")
    names = {"label_to_idx": {"cat": 1, "dog": 2}, "attribute_to_idx": {"red": 1, "blue": 2, "big": 3}}
    (tmp_path / "out.labelmap.json").write_text(json.dumps(names))
    read = VinvlFeatures(path)[1]
    assert read.object_ids.tolist() == [1, 1, 1]
    assert read.object_scores.tolist() == [0.5] * 3
    assert read.attribute_ids.tolist() == [2, 2, 2]
    assert read.attribute_scores.tolist() == [0.5] * 3
    path.write_text(vinvl_row(regions, attributes=[], attr_scores=[]))
    read = VinvlFeatures(path)[1]
    assert read.object_ids is not None
    assert read.attribute_ids is None


@pytest.mark.parametrize("columns", [2, 3])
def test_oscars_own_rows_are_read(tmp_path, columns):
    path, expected = tmp_path / "features.tsv", regions_of(3, labelled=False)
    corners = expected.boxes / np.array([640, expected.height] * 2, np.float32)
    table = np.hstack([expected.features, corners, corners[:, 2:] - corners[:, :2]])
    text = base64.b64encode(table.astype(np.float32).tobytes()).decode()
    cells = [json.dumps({"num_boxes": 3, "features": text})] if columns == 2 else ["3", text]
    path.write_text("\t".join(["3", *cells]) + "\n")
    assert VinvlFeatures(path).format == "oscar-tsv"
    with pytest.raises(InputError, match=r"features\.tsv: line 1: the size of image '3' is unknown.*hw\.tsv"):
        VinvlFeatures(path)[3]
    (tmp_path / "features.hw.tsv").write_text(f'3\t[{{"height": {expected.height}, "width": 640}}]\n')
    read = VinvlFeatures(path)[3]
    np.testing.assert_allclose(read.boxes, expected.boxes, rtol=1e-5)
    expected.boxes = read.boxes
    assert_same(read, expected)


@pytest.mark.parametrize("lineidx", [None, "", "0\n", "0\n7\n", "5\n", "x", "0\n0\n", "0\n99999999\n", "9" * 30])
def test_a_lineidx_that_does_not_fit_is_created_again(tmp_path, lineidx):
    path = tmp_path / "out.tsv"
    write(path, [regions_of(image_id) for image_id in IDS])
    right = (tmp_path / "out.lineidx").read_bytes()
    if lineidx is None:
        (tmp_path / "out.lineidx").unlink()
    else:
        (tmp_path / "out.lineidx").write_text(lineidx)
    store = VinvlFeatures(path)
    assert (tmp_path / "out.lineidx").read_bytes() == right
    for image_id in IDS:
        assert_same(store[image_id], regions_of(image_id))


@pytest.mark.parametrize("format", FORMATS)
def test_a_writer_continues_a_truncated_file(tmp_path, format):
    path = tmp_path / "out.tsv"
    images = [regions_of(image_id, count=1, dim=2) for image_id in (1, "zwei", 3)]
    write(path, images, format)
    data = path.read_bytes()
    ends = [end + 1 for end, byte in enumerate(data) if byte == ord("\n")]
    files = {name: (tmp_path / name).read_bytes() for name in ("out.lineidx", "out.tsv")}
    for cut in sorted(
        {*range(0, len(data), 61), *range(40), *(end + near for end in ends for near in (-2, -1, 0, 1, 2))}
    ):
        path.write_bytes(data[:cut])
        if cut % 2 and (tmp_path / "out.lineidx").exists():
            (tmp_path / "out.lineidx").unlink()
        whole = sum(end <= cut for end in ends)
        writer = VinvlWriter(path, format, ABOUT)
        assert writer.done == {one.image_id for one in images[:whole]}
        for one in images[whole:]:
            writer.append(one)
        writer.finish()
        writer.close()
        assert {name: (tmp_path / name).read_bytes() for name in files} == files


def test_an_incomplete_row_is_left_out(tmp_path, caplog):
    path = tmp_path / "out.tsv"
    write(path, [regions_of(1), regions_of(2)], "oscar-tsv")
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert list(VinvlFeatures(path)) == [1, 2]
    path.write_bytes(data[:-2])
    assert list(VinvlFeatures(path)) == [1]
    assert "line 2 is incomplete" in caplog.text


def read_some(store):
    return [store[image_id].features.sum() for image_id in IDS]


def test_processes_and_threads_read(tmp_path):
    write(tmp_path / "out.tsv", [regions_of(image_id) for image_id in IDS])
    store = VinvlFeatures(tmp_path / "out.tsv")
    expected = read_some(store)
    assert read_some(pickle.loads(pickle.dumps(store))) == expected
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read_some, [store] * 50)) == [expected] * 50
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(read_some, [store] * 4) == [expected] * 4


def write_for_long(path):
    writer = VinvlWriter(path, about=ABOUT)
    for image_id in range(5000):
        if image_id not in writer.done:
            writer.append(regions_of(image_id, dim=2048))


def test_killed_writers_leave_complete_images(tmp_path):
    path = tmp_path / "out.tsv"
    # One image is there before, since a process may be killed before it writes its first.
    writer = VinvlWriter(path, about=ABOUT)
    writer.append(regions_of(0, dim=2048))
    writer.close()
    before = set()
    for seed in range(10):
        run_and_kill(write_for_long, path, seed)
        writer = VinvlWriter(path, about=ABOUT)
        assert before <= writer.done == set(range(len(writer.done)))
        before = writer.done
        writer.close()
    store = VinvlFeatures(path)
    assert list(store) == sorted(before)
    assert store
    for image_id in store:
        assert_same(store[image_id], regions_of(image_id, dim=2048))


def test_a_full_disk_leaves_complete_rows(tmp_path):
    path = tmp_path / "out.tsv"
    writer = VinvlWriter(path, about=ABOUT)
    writer.append(regions_of(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="large"):
            writer.append(regions_of(2, dim=9999))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert writer.done == {1}
    writer.append(regions_of(3))
    writer.finish()
    writer.close()
    assert [row[0] for row in rows_by_lineidx(path)] == ["1", "3"]
    assert_same(VinvlFeatures(path)[3], regions_of(3))


def test_names_of_labels(tmp_path):
    write(tmp_path / "a.tsv", [regions_of(1)], finish=False)
    # The names in the file are used if none are given.
    write(tmp_path / "a.tsv", [regions_of(2)], about=None)
    assert_same(VinvlFeatures(tmp_path / "a.tsv")[2], regions_of(2))
    with pytest.raises(InputError, match=r"a\.labelmap\.json: its names are not those"):
        VinvlWriter(tmp_path / "a.tsv", about=ABOUT | {"object_vocabulary": ["cat"]})
    writer = VinvlWriter(tmp_path / "b.tsv")
    with pytest.raises(InputError, match=r"image 1: .*names of objects, which are unknown"):
        writer.append(regions_of(1))
    writer.append(regions_of(2, labelled=False))
    writer = VinvlWriter(tmp_path / "c.tsv", about={"object_vocabulary": ["cat"]})
    with pytest.raises(InputError, match="has 1 names"):
        writer.append(regions_of(1))
    assert os.path.getsize(tmp_path / "c.tsv") == 0


def test_a_writer_continues_vinvls_own_file(tmp_path):
    path = tmp_path / "out.tsv"
    path.write_text(vinvl_row(regions_of(1)))
    (tmp_path / "out.hw.tsv").write_text("1\t400 300\n2\t400 300\n")
    write(path, [regions_of(2)])
    assert (tmp_path / "out.hw.tsv").read_text() == "1\t400 300\n2\t400 300\n"
    assert_same(VinvlFeatures(path)[2], regions_of(2))


def test_wrong_fields_are_named(tmp_path):
    path = tmp_path / "out.tsv"
    right = {"image_h": 4, "image_w": 4, "num_boxes": 1}
    table = base64.b64encode(np.array([[1, 2, 0, 0, 1, 1, 1, 1]], np.float32)).decode()
    box = {"rect": [0, 0, 1, 1], "feature": table}
    cells = [
        right | {"features": table},
        right | {"features": "%%%"},
        right | {"features": base64.b64encode(np.arange(8, dtype=np.float32)).decode()},
        right | {"features": base64.b64encode(np.arange(4, dtype=np.float32)).decode()},
        right | {"objects": [{"rect": [0, 0, 1, 1]}]},
        right | {"objects": [box, box | {"feature": table[:16]}]},
        right | {"objects": [box | {"class": "cow"}]},
        right | {"objects": [box | {"rect": [0, 0, 1]}]},
        right | {"objects": 5},
        [1],
    ]
    path.write_text("".join(f"{number}\t{json.dumps(cell)}\n" for number, cell in enumerate(cells)) + "\n10\tcut\n")
    (tmp_path / "out.labelmap.json").write_text('{"label_to_idx": {"dog": 1}}')
    store = VinvlFeatures(path)
    assert list(store) == list(range(11))
    assert store[0].features.tolist() == [[1, 2]]
    for image_id, message in (
        (1, "features: is not base64"),
        (2, "features: the last six of 8 columns are not the places"),
        (3, "features: the last six of 4 columns"),
        (4, "feature: is missing; if this is a file of labels"),
        (5, "feature: the regions have different feature dimensions"),
        (6, "class: 'cow' is not among the names"),
        (7, "rect"),
        (8, "TypeError"),
        (9, "has neither VinVL's objects nor Oscar's features"),
    ):
        with pytest.raises(InputError, match=rf"out\.tsv: line {image_id + 1}: .*{message}"):
            store[image_id]
    with pytest.raises(InputError, match=r"out\.tsv: line 12: has neither"):
        store[10]


def test_paths_with_other_content_are_refused(tmp_path):
    write(tmp_path / "vinvl.tsv", [regions_of(1)])
    with pytest.raises(InputError, match=r"vinvl\.tsv: line 1: is not a row of oscar-tsv"):
        VinvlWriter(tmp_path / "vinvl.tsv", "oscar-tsv")
    for text in ("notes\nmore\n", "x" * 300, "1\t2\n", "1\t640\t480\t1\tAAAA\tAAAA\n", "1\tno row"):
        path = tmp_path / "other.tsv"
        path.write_text(text)
        with pytest.raises(InputError, match=r"other\.tsv: line 1"):
            VinvlFeatures(path)
        for format in FORMATS:
            with pytest.raises(InputError, match=r"other\.tsv: line 1"):
                VinvlWriter(path, format)
        assert path.read_text() == text
    with pytest.raises(InputError, match=r"none\.tsv: cannot be read"):
        VinvlFeatures(tmp_path / "none.tsv")
    (tmp_path / "vinvl.labelmap.json").write_text('{"label_to_idx": {"dog": 3}}')
    with pytest.raises(InputError, match=r"vinvl\.labelmap\.json: is not a dictionary"):
        VinvlFeatures(tmp_path / "vinvl.tsv")
    (tmp_path / "vinvl.labelmap.json").unlink()
    (tmp_path / "vinvl.tsv").write_text(vinvl_row(regions_of(1)))
    (tmp_path / "vinvl.hw.tsv").write_text("1\t3 4\n2\tx\n")
    with pytest.raises(InputError, match=r"vinvl\.hw\.tsv: line 2: '2"):
        VinvlFeatures(tmp_path / "vinvl.tsv")


def test_ids_that_are_not_possible_in_a_row_are_refused(tmp_path):
    writer = VinvlWriter(tmp_path / "out.tsv", about=ABOUT)
    for image_id in ("", "a\tb", "a\nb", "x" * 256):
        with pytest.raises(InputError, match="image id"):
            writer.append(regions_of(image_id))


@pytest.mark.parametrize("format", ["vinvl-tsv", "oscar-tsv"])
@pytest.mark.parametrize("synced", [0, 1, 2])
def test_rows_after_the_last_sync_are_deleted_after_a_crash(tmp_path, format, synced):
    path = tmp_path / "f.tsv"
    images = [regions_of(i) for i in range(3)]
    writer = VinvlWriter(path, format, ABOUT)
    for number, regions in enumerate(images):
        if number == synced:
            writer.sync()
        writer.append(regions)
    ends = list(writer._offsets)
    writer.close()
    # After the crash, the file has its full size, but of the rows after the sync only the last line end is there.
    with open(path, "r+b") as file:
        file.seek(ends[synced] + 3)
        file.write(bytes(ends[-1] - ends[synced] - 4))
    again = VinvlWriter(path, format, ABOUT)
    assert again.done == {regions.image_id for regions in images[:synced]}
    for regions in images[synced:]:
        again.append(regions)
    again.finish()
    again.close()
    assert set(VinvlFeatures(path)) == {regions.image_id for regions in images}
    assert_same(VinvlFeatures(path)[2], images[2])
    assert not (tmp_path / "f.tsv.synced").exists()


def test_rows_that_are_not_read_are_named(tmp_path):
    path = tmp_path / "f.tsv"
    write(path, [regions_of(1), regions_of(2)], "oscar-tsv")
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(path.read_bytes() + b"no columns\n" + first)
    assert list(VinvlFeatures(path).problems()) == ["line 3: no columns", "line 4: image 1 again, which line 1 has"]


def test_names_are_in_about(tmp_path):
    path = tmp_path / "f.tsv"
    write(path, [regions_of(1)])
    assert VinvlFeatures(path).about == ABOUT
    write(tmp_path / "o.tsv", [regions_of(1)], "oscar-tsv")
    assert VinvlFeatures(tmp_path / "o.tsv").about == {}
