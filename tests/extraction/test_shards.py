"""Shards that are written and merged in one process."""

import errno

import pytest
from fake_detector import FakeDetector, assert_same_features, make_images
from feature_files import REGION_FORMATS

from bua.errors import InputError
from bua.extraction import Extractor, RegionChoice, run
from bua.extraction.run_files import FailureLog
from bua.extraction.shards import Shard, ShardFolder, ShardMerger, ShardWriter, Written, explaining_write_errors
from bua.features import open_features, open_writer
from bua.features.summary import summarize

ABOUT = {"object_vocabulary": [f"o{i}" for i in range(8)], "attribute_vocabulary": [f"a{i}" for i in range(5)]}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), 12)


class ShardedExtractor:
    """Does what the processes of a pool do, with two images in each shard, of which some are left as they are.

    Args:
        left: Number of the shard from which on none is reported, as if their processes had died.
    """

    def __init__(self, folder, left=1000, detector=None, choice=None):
        self.writer, self.left = ShardWriter(folder), left
        self.extractor = Extractor(detector or FakeDetector(), choice or RegionChoice(12, 12))

    def __call__(self, images):
        for number, outcome in enumerate(self.extractor(images)):
            yield self.writer.write(outcome)
            if number % 2 and (shard := self.writer.close()) and number // 2 < self.left:
                yield shard
        if shard := self.writer.close():
            yield shard


def extract(images, output, format, extractor=None, **options):
    """Returns the summary of a run whose extractor is made by ``extractor`` from the folder of shards."""
    folder = ShardFolder(output.with_name(f"{output.name}.shards"), format, ABOUT)
    with open_writer(output, format, ABOUT) as writer:
        merger = ShardMerger(folder, writer)
        merger.merge_rest()
        merger.sync()
        extractor = (extractor or ShardedExtractor)(folder)
        summary = run.write_features(extractor, images, writer, FailureLog(output), merger=merger, **options)
        merger.remove()
    return summary


def one_device(images, output, format):
    return extract(images, output, format, lambda folder: Extractor(FakeDetector(), RegionChoice(12, 12)))


@pytest.mark.parametrize("left", [1000, 2], ids=["all shards are reported", "some processes died"])
@pytest.mark.parametrize("format", REGION_FORMATS)
def test_shards_give_what_one_device_writes(images, tmp_path, format, left, monkeypatch):
    monkeypatch.setattr(run, "SYNC_SECONDS", 0)
    summary = extract(images, tmp_path / "out", format, lambda folder: ShardedExtractor(folder, left))
    assert (summary.done, summary.skipped, summary.failed) == (12, 0, 0)
    one_device(images, tmp_path / "one", format)
    assert_same_features(tmp_path / "one", tmp_path / "out")
    assert not summarize(tmp_path / "out").faults()
    assert not (tmp_path / "out.shards").exists()
    # What was merged is done.
    assert extract(images, tmp_path / "out", format).skipped == 12


class Interrupted(ShardedExtractor):
    def __call__(self, images):
        yield from super().__call__(images[:7])
        raise KeyboardInterrupt


@pytest.mark.parametrize("then", [one_device, extract], ids=["one device", "many devices"])
@pytest.mark.parametrize("format", ["tsv", "flat-fp16", "npz", "hdf5"])
def test_shards_of_an_interrupted_run_are_done(images, tmp_path, format, then):
    with pytest.raises(KeyboardInterrupt):
        extract(images, tmp_path / "out", format, lambda folder: Interrupted(folder, left=1))
    assert (tmp_path / "out.shards").exists()
    summary = then(images, tmp_path / "out", format)
    assert (summary.done, summary.skipped, summary.failed) == (5, 7, 0)
    one_device(images, tmp_path / "one", format)
    assert_same_features(tmp_path / "one", tmp_path / "out")


def test_a_shard_is_removed_when_the_output_has_been_synced(images, tmp_path):
    folder = ShardFolder(tmp_path / "out.shards", "tsv", ABOUT)
    events = list(ShardedExtractor(folder)(images[:4]))
    assert [type(event) for event in events] == [Written, Written, Shard] * 2
    with open_writer(tmp_path / "out", "tsv", ABOUT) as writer:
        merger, synced = ShardMerger(folder, writer), []
        assert merger.merge(events[2]) == {}
        assert len(folder.shards()) == 2
        writer.sync = lambda: synced.append(len(folder.shards()))
        merger.sync()
        assert synced == [2]
        assert folder.shards() == [events[5].path]


def test_a_shard_that_another_process_writes_or_that_cannot_be_read_is_left_out(images, tmp_path, caplog):
    """The processes of a killed run may still finish the images that they have."""
    folder = ShardFolder(tmp_path / "out.shards", "flat", ABOUT)
    events = list(ShardedExtractor(folder)(images[:6]))
    first, second, third = (event.path for event in events if isinstance(event, Shard))
    (second / "features" / "header.json").write_text("{")
    with folder.open(first), open_writer(tmp_path / "out", "flat", ABOUT) as writer:
        assert ShardMerger(folder, writer).merge_rest() == {}
        assert writer.done == {4, 5}
    assert caplog.text.count("this shard is left out") == 2
    assert "is writing to it" in caplog.text
    assert third.exists()
    summary = extract(images, tmp_path / "out", "flat")
    assert (summary.done, summary.skipped) == (8, 4)
    assert set(open_features(tmp_path / "out")) == set(range(12))


@pytest.mark.parametrize("where", ["bua.extraction.shards.ShardFolder.open", "bua.features.tsv.TsvWriter.merge"])
def test_a_shard_that_a_full_disk_keeps_from_being_merged_is_not_damaged(images, tmp_path, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def opening_on_a_full_disk(*_):
        with explaining_write_errors(tmp_path / "out.shards"):
            full()

    folder = ShardFolder(tmp_path / "out.shards", "tsv", ABOUT)
    list(ShardedExtractor(folder)(images[:4]))
    left = folder.shards()
    with monkeypatch.context() as patch:
        patch.setattr(where, opening_on_a_full_disk if where.endswith("open") else full)
        with pytest.raises((InputError, OSError), match="No space left on device"):
            extract(images, tmp_path / "out", "tsv")
    assert folder.shards() == left
    assert extract(images, tmp_path / "out", "tsv").skipped == 4


def test_shards_are_kept_when_the_output_is_deleted_before_it_has_them(images, tmp_path):
    class Deleting(ShardedExtractor):
        def __call__(self, images):
            yield from super().__call__(images)
            (tmp_path / "out").unlink()

    with pytest.raises(InputError, match=r"out: was deleted, moved or replaced while it was written; .* same command"):
        extract(images, tmp_path / "out", "tsv", Deleting)
    summary = extract(images, tmp_path / "out", "tsv")
    assert (summary.done, summary.skipped) == (0, 12)
    assert set(open_features(tmp_path / "out")) == set(range(12))


def test_a_shard_that_is_lost_is_a_failure(images, tmp_path):
    class Losing(ShardedExtractor):
        def __call__(self, images):
            for event in super().__call__(images):
                if isinstance(event, Shard) and event.path == self.writer._folder.shards()[0]:
                    event.path.rename(event.path.with_suffix(".lost"))
                else:
                    yield event

    summary = extract(images[:2], tmp_path / "out", "tsv", Losing)
    assert (summary.done, summary.failed) == (0, 2)
    assert "its shard is damaged; run the same command again" in (tmp_path / "out.failures.jsonl").read_text()
    assert extract(images[:2], tmp_path / "out", "tsv").done == 2


def test_an_image_that_fails_when_it_is_merged_is_counted_once(images, tmp_path):
    class Uneven(FakeDetector):
        def regions(self, inputs, boxes=None):
            predictions = super().regions(inputs, boxes)
            if inputs.image_id == 3:
                for name in ("proposals", "objectness", "class_probs", "boxes", "features", "attribute_probs"):
                    setattr(predictions, name, getattr(predictions, name)[:5])
            return predictions

    def uneven(folder):
        return ShardedExtractor(folder, detector=Uneven())

    summary = extract(images, tmp_path / "out", "hdf5", uneven)
    assert (summary.done, summary.failed) == (11, 1)
    assert "has 5 boxes, and the images before it have 12" in (tmp_path / "out.failures.jsonl").read_text()
    assert set(open_features(tmp_path / "out")) == set(range(12)) - {3}
    with pytest.raises(InputError, match=r"has 5 boxes, .*; --on-error skip continues with the other images"):
        extract(images, tmp_path / "stopped", "hdf5", uneven, stop_on_error=True)
