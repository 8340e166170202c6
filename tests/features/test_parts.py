"""Merging the parts of an output that several processes wrote."""

import errno
import os
import random

import pytest
from feature_files import REGION_FORMATS
from feature_samples import LABELS, assert_same, run_and_kill, sample

from bua.errors import InputError
from bua.features import FlatFeatures, open_features, open_writer
from bua.features import text_rows as text_rows_module
from bua.features.parts import merge_part, part_format
from bua.features.summary import summarize

ABOUT = {
    "object_vocabulary": [f"object {i}" for i in range(1600)],
    "attribute_vocabulary": [f"attribute {i}" for i in range(400)],
}
IDS = [7, 0, "a b.c", "0042", "été", 12, 13, "\udcff"]


def write(path, images, format):
    with open_writer(path, format, ABOUT) as writer:
        for regions in images:
            writer.append(regions)
    return path


def merge(path, parts, format):
    with open_writer(path, format, ABOUT) as writer:
        for part in parts:
            assert merge_part(part, writer) == {}
        done = set(writer.done)
        writer.finish()
    return done


def samples(ids, count=lambda seed: 3):
    return [sample(image_id, count=count(seed), seed=seed) for seed, image_id in enumerate(ids)]


def read(path):
    store = open_features(path)
    return {image_id: store[image_id] for image_id in store}


@pytest.mark.parametrize("format", REGION_FORMATS)
def test_parts_together_are_what_one_writer_writes(tmp_path, format):
    # Two processes may have written the same image; the first is taken.
    images = samples(IDS)
    whole = write(tmp_path / "whole", images, format)
    merge(whole, [], format)
    parts = [
        write(tmp_path / f"part{i}", some, part_format(format))
        for i, some in enumerate((images[:3], [], [images[1], *images[3:5], images[0]], images[5:]))
    ]
    assert merge(tmp_path / "out", parts, format) == set(IDS)
    expected, found = read(whole), read(tmp_path / "out")
    assert set(found) == set(expected)
    for image_id, regions in expected.items():
        assert_same(found[image_id], regions)
    assert not summarize(tmp_path / "out").faults()
    # Merging again changes nothing.
    assert merge(tmp_path / "out", [part for part in parts if part.exists()], format) == set(IDS)
    assert set(read(tmp_path / "out")) == set(expected)


@pytest.mark.parametrize("format", ["tsv", "lxmert-tsv", "oscar-tsv", "vinvl-tsv"])
def test_the_bytes_of_rows_are_those_of_one_writer(tmp_path, format):
    images = samples(IDS)
    write(tmp_path / "whole", images, format)
    parts = [write(tmp_path / f"part{i}", images[4 * i : 4 * i + 4], format) for i in range(2)]
    merge(tmp_path / "out", parts, format)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("format", ["flat", "flat-fp16"])
def test_checksums_of_moved_records_are_those_of_the_data(tmp_path, format):
    """Images without regions and with text as ids have records of their own kinds."""
    ids = [*IDS, *(f"image {i}" for i in range(20)), *range(100, 120)]
    images = samples(ids, count=lambda seed: seed % 4)
    whole = write(tmp_path / "whole", images, format)
    merge(tmp_path / "out", [write(tmp_path / f"part{i}", images[i::3], format) for i in range(3)], format)
    assert list(FlatFeatures(tmp_path / "out").problems()) == []
    expected, found = read(whole), read(tmp_path / "out")
    assert set(found) == set(expected)
    for image_id, regions in expected.items():
        assert_same(found[image_id], regions)


def test_damage_in_a_part_is_found_in_the_output(tmp_path):
    part = write(tmp_path / "part", samples(IDS), "flat")
    content = bytearray((part / "features.bin").read_bytes())
    content[5] ^= 1
    (part / "features.bin").write_bytes(content)
    write(tmp_path / "out", [sample("first")], "flat")
    merge(tmp_path / "out", [part], "flat")
    (problem,) = FlatFeatures(tmp_path / "out").problems()
    assert "image 7: its bytes are not those that were written" in problem


def test_a_part_that_does_not_fit_or_is_incomplete_is_refused(tmp_path):
    part = write(tmp_path / "part", [sample(1)], "flat")
    out = write(tmp_path / "out", [sample(2, dim=6)], "flat")
    with open_writer(out, "flat") as writer:
        with pytest.raises(InputError, match=r"part: dim is 5; .*out needs 6"):
            merge_part(part, writer)
        os.truncate(part / "features.bin", 8)
        with pytest.raises(InputError, match="part"):
            merge_part(part, writer)
    assert set(read(out)) == {2}
    half = write(tmp_path / "half", [sample(1)], "flat-fp16")
    with open_writer(out, "flat") as writer, pytest.raises(InputError, match=r"half: dtype is float16; .* float32"):
        merge_part(half, writer)


def test_images_that_the_format_cannot_hold_have_a_reason(tmp_path):
    part = write(tmp_path / "part", [sample(1), sample(2, count=4), sample(3)], part_format("hdf5"))
    with open_writer(tmp_path / "out", "hdf5") as writer:
        reasons = merge_part(part, writer)
        writer.finish()
    assert list(reasons) == [2]
    assert "has 4 boxes, and the images before it have 3" in reasons[2]
    assert set(read(tmp_path / "out")) == {1, 3}


@pytest.mark.parametrize("format", ["tsv", "vinvl-tsv", "flat"])
def test_a_full_disk_leaves_complete_records_and_merging_can_be_done_again(tmp_path, monkeypatch, format):
    images = samples(IDS)
    parts = [write(tmp_path / f"part{i}", images[4 * i : 4 * i + 4], format) for i in range(2)]
    out, free = tmp_path / "out", 800

    def limited(write):
        def call(handle, content, *position):
            nonlocal free
            if free == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = write(handle, content[:free], *position)
            free -= written
            return written

        return call

    with monkeypatch.context() as patch:
        module = "bua.features.flat.os.pwrite" if format == "flat" else "bua.features.text_rows.os.write"
        with open_writer(out, format, ABOUT) as writer:
            patch.setattr(module, limited(os.pwrite if format == "flat" else text_rows_module.os.write))
            with pytest.raises(OSError, match="No space left"):
                assert [merge_part(part, writer) for part in parts] == [{}, {}]
            patch.undo()
            assert writer.done < set(IDS)
    assert merge(out, parts, format) == set(IDS)
    assert set(read(out)) == set(IDS)
    assert not summarize(out).faults()


def merge_part_beside(path):
    merge(path, [path.with_name("part")], path.suffix[1:])


@pytest.mark.parametrize("format", ["tsv", "vinvl-tsv", "flat", "npz", "mmf"])
def test_merging_that_is_killed_can_be_done_again(tmp_path, format):
    images = [sample(i, count=30, dim=64, seed=i) for i in range(100)]
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    for attempt in range(3):
        folder = tmp_path / f"{attempt}"
        folder.mkdir()
        part, out = write(folder / "part", images, format), folder / f"out.{format}"
        run_and_kill(merge_part_beside, out, seed + attempt)
        found = merge(out, [part], format)
        # An image of mmf has two files. If only one of them was moved, it is extracted again.
        assert len(found) >= len(images) - (format == "mmf")
        for image_id, regions in read(out).items():
            assert_same(regions, images[image_id], without=LABELS if format == "tsv" else ())
        assert not summarize(out).faults()
