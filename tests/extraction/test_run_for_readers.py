"""Runs from images to the flavours that readers expect, and the probabilities of all classes, with a fake detector."""

import json

import numpy as np
import pytest
from fake_detector import FakeDetector, FakeExtractorConfig, make_images

from bua.errors import InputError
from bua.extraction import Extractor, RegionChoice, run
from bua.features import open_features


@pytest.fixture
def extract(monkeypatch, tmp_path):
    """``bua.extraction.extract`` on the fake detector and two images, 0.png and 1.png."""
    monkeypatch.setattr(run, "ExtractorConfig", FakeExtractorConfig)
    config = tmp_path / "empty.yaml"
    config.write_text("MODEL:\n  DEVICE: cpu\n")
    make_images(tmp_path / "images", 2)
    for name, number in {"objects": 1600, "attributes": 400}.items():
        (tmp_path / f"{name}_vocab.txt").write_text("".join(f"{name}{i}\n" for i in range(number)))

    def call(output, **options):
        arguments = {"config_file": config, "weights": "random", "min_boxes": 12, "max_boxes": 12, **options}
        return run.extract(tmp_path / "images", output, vocabulary=tmp_path, **arguments)

    return call


def test_probabilities_are_kept_on_request(tmp_path, extract):
    extract(tmp_path / "with", format="npz", keep_probabilities=True)
    extract(tmp_path / "without", format="npz")
    kept, plain = open_features(tmp_path / "with")[0], open_features(tmp_path / "without")[0]
    assert plain.class_probs is None
    assert kept.class_probs.dtype == np.float16
    assert kept.class_probs.shape[0] == 12
    assert (kept.class_probs.argmax(axis=1) == kept.object_ids).all()
    np.testing.assert_allclose(kept.class_probs.max(axis=1), kept.object_scores, rtol=1e-3)
    settings = [json.loads((tmp_path / f"{name}.meta.json").read_text()) for name in ("with", "without")]
    assert [one.get("keep_probabilities") for one in settings] == [True, None]
    with pytest.raises(InputError, match="made with keep_probabilities True, now it is None"):
        extract(tmp_path / "with", format="npz")


def test_probabilities_of_given_boxes_are_kept(tmp_path, extract):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"0": [[5, 5, 9, 9]], "1": [[1, 1, 2, 2], [1, 1, 4, 4]]}))
    # HDF5 is first written elsewhere, and the parts of several devices are npz then.
    extract(tmp_path / "out", reader="m2", keep_probabilities=True, boxes=boxes)
    assert [open_features(tmp_path / "out")[i].class_probs.shape[0] for i in (0, 1)] == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tsv", "keep_probabilities": True}, "format tsv: has no place for the probabilities"),
        ({"reader": "oscar-retrieval", "keep_probabilities": True}, "for oscar-retrieval: has no place for"),
        ({"grid": True, "keep_probabilities": True, "format": "npz"}, "--grid and --keep-probabilities"),
        ({"grid": True, "reader": "uniter"}, "format npz for uniter: needs labels"),
        ({"reader": "volta", "format": "npz"}, "reader volta: reads vilbert-lmdb, not npz"),
        ({"reader": "nobody"}, "reader 'nobody': is unknown"),
    ],
)
def test_options_that_exclude_each_other(tmp_path, extract, options, message):
    with pytest.raises(InputError, match=message):
        extract(tmp_path / "out", **options)
    assert not list(tmp_path.glob("out*"))


def test_a_detector_that_chooses_its_regions_has_no_probabilities():
    class Chooser(FakeDetector):
        def choose(self, batch, choice): ...

        def describe(self, batch, boxes): ...

    with pytest.raises(InputError, match="--keep-probabilities: a detector that chooses"):
        Extractor(Chooser(), RegionChoice(keep_probabilities=True))


def test_a_run_for_another_reader_is_refused(tmp_path, extract):
    assert extract(tmp_path / "out", reader="volta", min_boxes=2).done == 2
    settings = json.loads((tmp_path / "out.meta.json").read_text())
    assert (settings["format"], settings["for"]) == ("vilbert-lmdb", "volta")
    for reader, now in ((None, "None"), ("vilbert-multi-task", "vilbert-multi-task")):
        with pytest.raises(InputError, match=f"made with for volta, now it is {now}"):
            extract(tmp_path / "out", reader=reader, format="vilbert-lmdb", min_boxes=2)
    assert extract(tmp_path / "out", reader="volta", min_boxes=2).skipped == 2


def test_mmf_finds_whole_names_of_coco(tmp_path, extract):
    (tmp_path / "images" / "0.png").rename(tmp_path / "images" / "COCO_train2014_000000000042.png")
    (tmp_path / "images" / "1.png").unlink()
    extract(tmp_path / "out", reader="mmf")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "COCO_train2014_000000000042.npy",
        "COCO_train2014_000000000042_info.npy",
    }


@pytest.mark.parametrize("options", [{"reader": "volta"}, {"reader": "oscar-captioning"}, {"reader": "m2"}])
def test_several_processes_write_a_flavour(tmp_path, extract, options, monkeypatch):
    """The parts of an output are what several devices write, here one that a killed run left behind."""
    keep = options["reader"] != "oscar-captioning"

    class Merger(run.ShardMerger):
        def __init__(self, folder, writer):
            super().__init__(folder, writer)
            extractor = Extractor(FakeDetector(), RegionChoice(12, 12, keep_probabilities=keep))
            with folder.open(folder.new()) as part:
                for outcome in extractor(run.list_images(tmp_path / "images")):
                    part.append(outcome.regions)

    monkeypatch.setattr(run, "ShardMerger", Merger)
    assert extract(tmp_path / "out", keep_probabilities=keep, **options).skipped == 2
    store = open_features(tmp_path / "out")
    assert sorted(store) == [0, 1]
    assert (store[0].class_probs is not None) == keep
