import json

import pytest
from feature_files import REGION_FORMATS
from feature_samples import LABELS, assert_same, sample

from bua.errors import InputError
from bua.features import convert_features, open_features, open_writer
from bua.features.convert import copy_missing

ABOUT = {
    "object_vocabulary": [f"object {number}" for number in range(1600)],
    "attribute_vocabulary": [f"attribute {number}" for number in range(400)],
    "weights": "sha256:1",
}
# The fields that a format cannot hold.
LOST = {"tsv": LABELS}


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Makes syncing do nothing, so that the tests do not wait for the disk."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def images():
    return {image_id: sample(image_id, seed=seed) for seed, image_id in enumerate((7, "a b", "ü"))}


@pytest.fixture
def source(tmp_path, images):
    with open_writer(tmp_path / "source", "flat", ABOUT) as writer:
        for regions in images.values():
            writer.append(regions)
        writer.finish()
    return tmp_path / "source"


@pytest.mark.parametrize("format", REGION_FORMATS)
def test_every_format_converts_to_others(source, tmp_path, images, format):
    """Everything that both formats can hold arrives. test_readers.py converts from and to all formats and flavours."""
    first = tmp_path / "first"
    assert convert_features(source, first, format) == 3
    for second in ("flat-fp16", "lxmert-tsv"):
        path = tmp_path / f"second {second}"
        if second == "lxmert-tsv" and format in LOST:
            with pytest.raises(InputError, match=rf"second {second} \(lxmert-tsv\): image 7: has no object_ids"):
                convert_features(first, path, second)
            continue
        assert convert_features(first, path, second, ABOUT) == 3
        converted = dict(open_features(path))
        assert converted.keys() == images.keys()
        for image_id, regions in images.items():
            assert_same(converted[image_id], regions, {*LOST.get(format, ()), *LOST.get(second, ())})


@pytest.mark.parametrize("format", ["tsv", "npz", "flat", "vilbert-lmdb"])
def test_a_stopped_conversion_continues(source, tmp_path, images, format, monkeypatch):
    target, read = tmp_path / "target", []
    real = type(open_features(source)).__getitem__

    def stop_at_the_last(store, image_id):
        read.append(image_id)
        if image_id == "ü" and read.count("ü") == 1:
            raise KeyboardInterrupt
        return real(store, image_id)

    monkeypatch.setattr("bua.features.flat.FlatFeatures.__getitem__", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        convert_features(source, target, format)
    assert convert_features(source, target, format) == 1
    # The first image is also read for the trial.
    assert read == [7, *images, "ü"]
    monkeypatch.undo()
    assert open_features(target).keys() == images.keys()
    assert convert_features(source, target, format) == 0


def test_settings_are_copied(source, tmp_path):
    settings = {"format": "flat", "weights": "sha256:1", "max_boxes": 36}
    (tmp_path / "source.meta.json").write_text(json.dumps(settings))
    for format in ("tsv", "flat-fp16"):
        convert_features(source, tmp_path / format, format)
        assert json.loads((tmp_path / f"{format}.meta.json").read_text()) == {**settings, "format": format}
    assert open_features(tmp_path / "flat-fp16").about == {**ABOUT, "settings": settings}
    convert_features(tmp_path / "tsv", tmp_path / "again", "flat", {"weights": "sha256:1"})
    expected = {"weights": "sha256:1", "settings": {**settings, "format": "tsv"}}
    assert open_features(tmp_path / "again").about == expected
    (tmp_path / "again.meta.json").unlink()
    convert_features(tmp_path / "again", tmp_path / "npz", "npz")
    assert json.loads((tmp_path / "npz.meta.json").read_text()) == {**settings, "format": "npz"}

    (tmp_path / "source.meta.json").write_text(json.dumps({**settings, "max_boxes": 100}))
    message = r"tsv\.meta\.json: the features have other settings: max_boxes is \d+, and of the source 100; choose"
    with pytest.raises(InputError, match=message):
        convert_features(source, tmp_path / "tsv", "tsv")
    (tmp_path / "source.meta.json").write_text("{")
    with pytest.raises(InputError, match=r"source\.meta\.json: cannot be read as JSON"):
        convert_features(source, tmp_path / "tsv", "tsv")


def test_images_before_one_that_cannot_be_converted_are_kept(tmp_path):
    images = [sample(1), sample(2, labelled=False), sample(3)]
    with open_writer(tmp_path / "source", "npz") as writer:
        for regions in images:
            writer.append(regions)
    target = tmp_path / "target"
    with pytest.raises(InputError, match=r"target \(lxmert-tsv\): image 2: has no object_ids"):
        convert_features(tmp_path / "source", target, "lxmert-tsv")
    assert list(open_features(target)) == [1]
    (tmp_path / "source" / "2.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"2\.npz"):
        convert_features(tmp_path / "source", tmp_path / "second", "vilbert-lmdb")
    assert list(open_features(tmp_path / "second")) == [1]


def test_features_beyond_float16_are_refused_before_anything_is_written(tmp_path):
    regions = sample(1)
    regions.features[0, 0] = 1e6
    with open_writer(tmp_path / "source", "npz") as writer:
        writer.append(regions)
    with pytest.raises(InputError, match=r"target \(flat-fp16\): image 1: features are outside the range of float16"):
        convert_features(tmp_path / "source", tmp_path / "out" / "target", "flat-fp16")
    assert list((tmp_path / "out").glob("*")) == []


def test_ids_that_readers_miss_are_said_once_with_the_name_of_the_target(tmp_path, caplog):
    with open_writer(tmp_path / "source", "flat") as writer:
        writer.append(sample("a/b"))
        writer.finish()
    convert_features(tmp_path / "source", tmp_path / "target", "npz")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path / 'target'}: ids such as 'a/b' are percent-encoded")


def test_where_there_is_nothing_to_copy_nothing_is_written(source, tmp_path):
    with open_writer(tmp_path / "none", "flat") as writer:
        writer.finish()
    for target in ("tsv", "hdf5"):
        with pytest.raises(InputError, match="none: holds no images, so there is nothing to copy"):
            convert_features(tmp_path / "none", tmp_path / target, target)
        with pytest.raises(InputError, match="source: none of its 3 images is in"):
            convert_features(source, tmp_path / target, target, ids={99: 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none", "source"]


def test_a_target_that_is_a_link_to_itself_leaves_no_settings(source, tmp_path):
    (tmp_path / "source.meta.json").write_text('{"max_boxes": 36}')
    for format in ("tsv", "flat"):
        (tmp_path / format).symlink_to(format)
        with pytest.raises(InputError):
            convert_features(source, tmp_path / format, format)
        assert not (tmp_path / f"{format}.meta.json").exists()


def test_unusable_sources_and_targets_are_refused(source, tmp_path):
    with pytest.raises(InputError, match="is the source itself"):
        convert_features(source, tmp_path / "." / "source", "flat")
    with pytest.raises(InputError, match="is unknown; use one of"):
        convert_features(source, tmp_path / "target", "pickle")
    with pytest.raises(InputError, match="gone: cannot be read"):
        convert_features(tmp_path / "gone", tmp_path / "target", "tsv")
    with pytest.raises(InputError, match="holds something other"):
        convert_features(source, tmp_path, "flat")
    assert not (tmp_path / "target").exists()


def test_ids_are_converted_from_lxmerts_to_numbers_and_back(tmp_path):
    """LXMERT has names of files as ids, the other formats have numbers."""
    lxmert, numbers, back = (tmp_path / name for name in ("lxmert.tsv", "numbers", "back.tsv"))
    with open_writer(lxmert, "lxmert-tsv") as writer:
        for seed, image_id in enumerate(("COCO_val2014_000000000042", "COCO_val2014_000000393267")):
            writer.append(sample(image_id, seed=seed))
        writer.finish()
    assert convert_features(lxmert, numbers, "hdf5", ids="number") == 2
    assert list(open_features(numbers)) == [42, 393267]
    assert convert_features(lxmert, numbers, "hdf5", ids="number") == 0
    assert convert_features(numbers, back, "lxmert-tsv", ids="COCO_val2014_{:012d}") == 2
    assert back.read_bytes() == lxmert.read_bytes()
    for ids, message in (("{:012d}", "does not fit"), ("{", "does not fit"), ("x", "give keep, number, a pattern")):
        with pytest.raises(InputError, match=f"ids .*{message}"):
            convert_features(lxmert, tmp_path / "none", "tsv", ids=ids)


def test_a_full_disk_is_reported(source, tmp_path, monkeypatch):
    def full_disk(handle, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full_disk)
    with pytest.raises(InputError, match="No space left on device; free some space and repeat the command"):
        convert_features(source, tmp_path / "target", "tsv")


def test_the_original_caffe_features(shared_data, tmp_path):
    """LXMERT's file can be restored byte for byte from each format that can hold all of it."""
    original = shared_data / "caffe_features" / "train2014_obj36.tsv"
    for first in ("flat", "npz", "vilbert-lmdb", "ban-hdf5", "mmf"):
        convert_features(original, tmp_path / first, first)
    for first in ("flat", "npz", "vilbert-lmdb", "ban-hdf5", "mmf"):
        back = tmp_path / f"{first}.tsv"
        convert_features(tmp_path / first, back, "lxmert-tsv")
        rows = {line.split(b"\t")[0]: line.rstrip() for line in back.read_bytes().splitlines()}
        expected = {line.split(b"\t")[0]: line.rstrip() for line in original.read_bytes().splitlines()}
        assert rows == expected


def test_ids_are_replaced_by_those_of_a_table(tmp_path):
    with open_writer(tmp_path / "features", "flat") as writer:
        for image_id in (1, 2, "a"):
            writer.append(sample(image_id, seed=0))
        writer.finish()
    table = tmp_path / "ids.tsv"
    table.write_text("1\t100007\na\tb c\n9\t63\n", encoding="utf-8")
    for ids, target in ((table, "by file"), ({"1": "100007", "a": "b c"}, "by mapping")):
        assert convert_features(tmp_path / "features", tmp_path / target, "tsv", ids=ids) == 2
        assert list(open_features(tmp_path / target)) == [100007, "b c"]
    assert convert_features(tmp_path / "features", tmp_path / "by file", "tsv", ids=str(table)) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 7\n", "line 1: '1 7' is not a pair old<TAB>new"),
        ("1\t7\t8\n", "is not a pair old<TAB>new"),
        ("1\t\n", "is not a pair old<TAB>new"),
        ("1\t7\n1\t8\n", "line 2: 1 occurs twice"),
        ("1\t7\n2\t7\n", "line 2: 7 occurs twice"),
    ],
)
def test_a_wrong_table_of_ids_is_refused(source, tmp_path, text, message):
    table = tmp_path / "ids.tsv"
    table.write_text(text)
    with pytest.raises(InputError, match=message):
        convert_features(source, tmp_path / "target", "tsv", ids=table)
    assert not (tmp_path / "target").exists()


def test_conversion_that_cannot_succeed_leaves_the_name_free_for_a_corrected_one(tmp_path):
    source, target = tmp_path / "source.tsv", tmp_path / "target.hdf5"
    with open_writer(source, "tsv") as writer:
        for image_id, boxes in ((1, 3), (2, 5)):
            writer.append(sample(image_id, boxes))
        writer.finish()
    (tmp_path / "source.tsv.meta.json").write_text('{"format": "tsv", "min_boxes": 3}')
    with pytest.raises(InputError, match=r"target\.hdf5"):
        convert_features(source, target, "hdf5")
    assert not list(tmp_path.glob("target*"))
    assert convert_features(source, target, "ban-hdf5") == 2


def test_a_second_conversion_at_the_same_time_leaves_the_first_alone(source, tmp_path, images):
    target, staged = tmp_path / "target.hdf5", tmp_path / "target.hdf5.partial"

    class Refusing(dict):
        """Features during whose reading a second conversion begins."""

        def __getitem__(self, image_id):
            if staged.exists():
                with pytest.raises(InputError, match="is writing to it; wait until it is done, or stop it"):
                    convert_features(source, target, "ban-hdf5")
            return super().__getitem__(image_id)

    with open_writer(target, "ban-hdf5") as writer:
        assert copy_missing(Refusing(open_features(source)), writer, "target") == 3
        writer.finish()
    assert len(open_features(target)) == 3


def test_a_conversion_that_fails_keeps_what_an_interrupted_one_has_staged(tmp_path):
    source, target = tmp_path / "source.tsv", tmp_path / "target.hdf5"
    images = sample(1, 3), sample(2, 5)
    with open_writer(source, "tsv") as writer:
        for image in images:
            writer.append(image)
        writer.finish()
    with open_writer(target, "hdf5") as writer:
        writer.append(images[0])
    with pytest.raises(InputError, match=r"target\.hdf5"):
        convert_features(source, target, "hdf5")
    assert (tmp_path / "target.hdf5.partial").exists()


@pytest.mark.parametrize(("format", "order"), [("tsv", [7, "a b", 5]), ("npz", [5, 7, "a b"]), ("mmf", [5, 7, "a b"])])
def test_images_keep_their_order_where_a_format_has_one(tmp_path, format, order):
    with open_writer(tmp_path / "source", "flat") as writer:
        for image_id in (7, "a b", 5):
            writer.append(sample(image_id))
        writer.finish()
    convert_features(tmp_path / "source", tmp_path / "target", format)
    assert list(open_features(tmp_path / "target")) == order
