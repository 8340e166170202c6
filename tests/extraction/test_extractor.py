import json
import threading

import numpy as np
import pytest
import torch
from fake_detector import FEATURES, REGIONS, FakeDetector, assert_same_regions, make_images
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.errors import InputError
from bua.extraction import Extractor, ImageFile, RegionChoice
from bua.extraction.extractor import FLUSH_BATCHES, WAITING_BATCHES
from bua.io.images import read_image


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), 40)


def outcomes_of(images, choice=None, detector=None, **options):
    return list(Extractor(detector or FakeDetector(), choice or RegionChoice(), **options)(images))


def test_one_at_a_time_keeps_the_order(images):
    outcomes = outcomes_of(images, num_workers=3)
    assert [outcome.image for outcome in outcomes] == images
    assert all(outcome.regions.image_id == outcome.image.image_id for outcome in outcomes)


@settings(max_examples=15, deadline=None)
@given(batch_size=st.integers(1, 9), num_workers=st.integers(0, 3), flushes=st.sets(st.integers(0, 40)))
def test_batches_workers_and_flushes_change_nothing(images, batch_size, num_workers, flushes):
    plain = {outcome.image: outcome.regions for outcome in outcomes_of(images)}
    stream = list(images)
    for place in sorted(flushes, reverse=True):
        stream.insert(place, FLUSH_BATCHES)
    detector = FakeDetector()
    batched = outcomes_of(stream, detector=detector, batch_size=batch_size, num_workers=num_workers)
    assert sorted(outcome.image.image_id for outcome in batched) == list(range(len(images)))
    for image, regions, _ in batched:
        assert_same_regions(regions, plain[image])
    assert max(map(len, detector.batches)) <= batch_size


def test_batches_are_of_one_size_and_full_while_there_is_more(images):
    detector = FakeDetector()
    outcomes_of(images, detector=detector, batch_size=4)
    assert all(len({image_id % 3 for image_id in batch}) == 1 for batch in detector.batches)
    assert [len(batch) for batch in detector.batches][:-3] == [4] * (len(detector.batches) - 3)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (1, 2), (4, 2)])
def test_no_more_images_are_in_progress_than_it_says_and_none_after_a_flush(images, batch_size, num_workers):
    extractor = Extractor(FakeDetector(), RegionChoice(), batch_size=batch_size, num_workers=num_workers)
    given, done, in_progress = 0, 0, []

    def stream():
        nonlocal given
        for image in images * 4:
            given += 1
            yield image
            in_progress.append(given - done)
        yield FLUSH_BATCHES
        assert done == given == 4 * len(images)

    for _ in extractor(stream()):
        done += 1
    # The image that is asked for next is not in progress yet.
    assert max(in_progress) <= extractor.max_in_progress + 1


def test_an_image_of_a_rare_size_does_not_wait_for_ever(images):
    detector = FakeDetector()
    common = [image for image in images if image.image_id % 3 == 0]
    outcomes_of([images[1], *common * 3], detector=detector, batch_size=2)
    assert [1] not in detector.batches[:-1]
    detector = FakeDetector()
    several = [images[1], images[2], images[0]] * (WAITING_BATCHES + 1)
    outcomes_of(several, detector=detector, batch_size=20)
    assert all(len(batch) == WAITING_BATCHES + 1 for batch in detector.batches)


def test_images_are_decoded_ahead_of_the_detector(images, monkeypatch):
    decoded = set()
    wake = threading.Condition()

    class Slow(FakeDetector):
        @staticmethod
        def prepare(image, image_id):
            with wake:
                decoded.add(image_id)
                wake.notify_all()
            return FakeDetector.prepare(image, image_id)

        def infer(self, batch, boxes=None, *, regress=True):
            # The first image is let through when the two after it are decoded.
            with wake:
                assert wake.wait_for(lambda: {1, 2} <= decoded, timeout=20)
            return super().infer(batch, boxes, regress=regress)

    assert len(outcomes_of(images, detector=Slow(), num_workers=2)) == len(images)


@pytest.mark.parametrize(("too_large", "fail"), [(2, []), (0, [0, 1, 2, 3, 4, 5])])
def test_out_of_memory_falls_back_to_single_images(images, too_large, fail):
    outcomes = outcomes_of(images[:6], detector=FakeDetector(too_large=too_large), batch_size=3)
    failed = {outcome.image.image_id: outcome.reason for outcome in outcomes if outcome.regions is None}
    assert sorted(failed) == fail
    assert len(outcomes) == 6
    assert set(failed.values()) <= {"CUDA out of memory. Tried to allocate"}


def test_an_image_that_cannot_be_read_has_a_reason(images, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    bad = [ImageFile(str(tmp_path / "text.jpg"), "text"), ImageFile(str(tmp_path / "gone.jpg"), "gone")]
    outcomes = {outcome.image.image_id: outcome for outcome in outcomes_of([*images[:3], *bad], batch_size=3)}
    assert "not an image" in outcomes["text"].reason
    assert "gone.jpg" in outcomes["gone"].reason
    assert sum(outcome.regions is not None for outcome in outcomes.values()) == 3


def test_regressed_boxes(images):
    (plain,), (regressed,) = outcomes_of(images[:1]), outcomes_of(images[:1], RegionChoice(regressed=True))
    assert not np.array_equal(plain.regions.boxes, regressed.regions.boxes)
    # The fake detector moves a box by the class's number and 1.
    shift = regressed.regions.boxes[:, 0] - regressed.regions.object_ids - 1
    proposals = FakeDetector().regions(FakeDetector.prepare(read_image(images[0].path), 0)).proposals[:, 0]
    assert np.isclose(shift[:, None], proposals).any(axis=1).all()


def test_given_boxes_are_all_described_in_their_order(images, tmp_path):
    given = {"0": [[5, 5, 9, 9], [0, 0, 47, 31], [2, 3, 4, 5]], "2": [[1, 1, 2, 2]]}
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(given))
    outcomes = {o.image.image_id: o for o in outcomes_of(images[:3], RegionChoice(boxes=str(path)), batch_size=3)}
    assert np.array_equal(outcomes[0].regions.boxes, given["0"])
    assert outcomes[0].regions.features.shape == (3, FEATURES)
    assert len(outcomes[2].regions) == 1
    assert outcomes[1].reason == f"{path}: no boxes for the image 1; add them"


def test_grid_cells_lie_side_by_side_over_the_image(images):
    (outcome,) = outcomes_of(images[1:2], RegionChoice(grid=True))
    # 48x40 pixels, and 77x64 for the network: a cell of 32 network pixels is 20 of the image wide.
    assert (outcome.regions.width, outcome.regions.height) == (48, 40)
    top = [[0, 0, 20, 20], [20, 0, 40, 20], [40, 0, 47, 20]]
    bottom = [[0, 20, 20, 39], [20, 20, 40, 39], [40, 20, 47, 39]]
    assert outcome.regions.boxes.tolist() == top + bottom
    assert outcome.regions.features.shape == (6, 1)
    assert outcome.regions.object_ids is None


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (RegionChoice(min_boxes=50, max_boxes=20), "min boxes 50, max boxes 20"),
        (RegionChoice(min_boxes=0, max_boxes=0), "max > 0"),
        (RegionChoice(score_threshold=1.5), "score threshold 1.5"),
        (RegionChoice(nms_threshold=-1), "NMS threshold -1"),
        (RegionChoice(regressed=True, grid=True), "--regressed and --grid"),
        (RegionChoice(boxes="boxes.json", grid=True), "--boxes and --grid"),
    ],
)
def test_bad_choices_are_named(choice, message):
    with pytest.raises(InputError, match=message):
        choice.check()


def test_any_fixed_number_of_regions(images):
    choice = RegionChoice(min_boxes=17, max_boxes=17)
    assert {len(outcome.regions) for outcome in outcomes_of(images, choice)} == {17}
    everything = RegionChoice(min_boxes=REGIONS, max_boxes=REGIONS)
    assert {len(outcome.regions) for outcome in outcomes_of(images[:3], everything)} == {REGIONS}


def test_an_error_in_the_detector_or_the_stream_is_not_hidden_and_ends_the_threads(images):
    class Broken(FakeDetector):
        def infer(self, batch, boxes=None, *, regress=True):
            raise RuntimeError("a defect")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="a defect"):
        outcomes_of(images, detector=Broken(), num_workers=2)

    def stream():
        yield from images[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outcomes_of(stream(), num_workers=2)
    stopped = Extractor(FakeDetector(), RegionChoice(), num_workers=2)(images)
    next(stopped)
    stopped.close()
    assert threading.active_count() == before


def test_sizes_of_images_are_kept(images):
    for outcome in outcomes_of(images[:3], batch_size=2):
        assert (outcome.regions.width, outcome.regions.height) == (48, 32 + 8 * (outcome.image.image_id % 3))
        assert outcome.regions.features.dtype == np.float32
        assert isinstance(outcome.regions.boxes, np.ndarray)
        assert not isinstance(outcome.regions.features, torch.Tensor)
