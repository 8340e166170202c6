import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_detector import FEATURES, REGIONS, FakeDetector, assert_same_regions, make_images
from hypothesis import given, settings
from hypothesis import strategies as st

from bua.config import load_cfg
from bua.errors import InputError
from bua.extraction import Extractor, ExtractorConfig, ImageFile, RegionChoice
from bua.extraction.extractor import FLUSH_BATCHES
from bua.io.images import read_image
from bua.modeling import build_detector
from bua.modeling.optimize import optimize_for_inference
from bua.precision import set_float32_precision

CONFIG = Path(__file__).parents[2] / "configs" / "vg_r101.yaml"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), 40)


def outcomes_of(images, choice=None, detector=None, **options):
    return list(Extractor(detector or FakeDetector(), choice or RegionChoice(), **options)(images))


@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_the_order_is_kept(images, batch_size):
    outcomes = outcomes_of(images, num_workers=3, batch_size=batch_size)
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
    assert [outcome.image.image_id for outcome in batched] == list(range(len(images)))
    for image, regions, _ in batched:
        assert_same_regions(regions, plain[image])
    assert max(map(len, detector.batches)) <= batch_size


def test_batches_are_full_whatever_the_sizes_of_the_images(images):
    detector = FakeDetector()
    outcomes_of(images, detector=detector, batch_size=16)
    assert [len(batch) for batch in detector.batches] == [16, 16, 8]
    assert {image_id % 3 for image_id in detector.batches[0]} == {0, 1, 2}


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
                assert wake.wait_for(lambda: {1, 2} <= decoded, timeout=300)
            return super().infer(batch, boxes, regress=regress)

    assert len(outcomes_of(images, detector=Slow(), num_workers=2)) == len(images)


@pytest.mark.parametrize(("too_large", "fail"), [(2, []), (0, [0, 1, 2, 3, 4, 5])])
def test_out_of_memory_falls_back_to_single_images(images, too_large, fail):
    outcomes = outcomes_of(images[:6], detector=FakeDetector(too_large=too_large), batch_size=3)
    failed = {outcome.image.image_id: outcome.reason for outcome in outcomes if outcome.regions is None}
    assert sorted(failed) == fail
    assert [outcome.image for outcome in outcomes] == images[:6]
    assert set(failed.values()) <= {"CUDA out of memory. Tried to allocate"}


def test_an_image_that_cannot_be_read_has_a_reason(images, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    bad = [ImageFile(str(tmp_path / "text.jpg"), "text"), ImageFile(str(tmp_path / "gone.jpg"), "gone")]
    mixed = [bad[0], images[0], bad[1], *images[1:3]]
    in_order = outcomes_of(mixed, batch_size=3)
    assert [outcome.image for outcome in in_order] == mixed
    outcomes = {outcome.image.image_id: outcome for outcome in in_order}
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


SLIM = [
    *["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"],
    *["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"],
    *["MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RESNETS.DEPTH", "50", "MODEL.RPN.CONV_DIMS", "[16]"],
    *["MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.BUA.ATTRIBUTES.NUM_CLASSES", "5"],
    *["MODEL.RPN.POST_NMS_TOPK_TEST", "30", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128"],
]


@pytest.mark.parametrize(
    ("norm", "choice"),
    [
        ("FrozenBN", RegionChoice()),
        ("GN", RegionChoice(12, 12)),  # the way without windows
        ("FrozenBN", RegionChoice(12, 12, regressed=True)),
        ("FrozenBN", RegionChoice(boxes="boxes.json")),
        ("FrozenBN", RegionChoice(grid=True)),
    ],
)
def test_a_network_gives_the_same_for_images_of_any_sizes_together(images, tmp_path, monkeypatch, norm, choice):
    monkeypatch.chdir(tmp_path)
    given = {str(i): [[1, 2, 30, 30], [0, 0, 47, 31], [20, 3, 25, 20]][: 1 + i % 3] for i in range(6)}
    (tmp_path / "boxes.json").write_text(json.dumps(given))
    torch.manual_seed(0)
    cfg = load_cfg(CONFIG, [*SLIM, "MODEL.RESNETS.NORM", norm])
    detector = optimize_for_inference(build_detector(cfg))
    one_by_one = outcomes_of(images[:7], choice, detector)
    together = outcomes_of(images[:7], choice, detector, batch_size=5)
    for (image, expected, reason), (other_image, found, other_reason) in zip(one_by_one, together, strict=True):
        assert (image, reason) == (other_image, other_reason)
        if reason is None:
            np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)
            np.testing.assert_allclose(found.features, expected.features, atol=1e-5 * expected.features.max())
            assert np.array_equal(found.object_ids, expected.object_ids) or choice.grid
    assert (one_by_one[-1].regions is None) == (choice.boxes is not None)


def test_the_batch_size_follows_the_device():
    assert Extractor(FakeDetector(), RegionChoice()).batch_size == 1
    assert Extractor(FakeDetector(), RegionChoice(), batch_size=3).batch_size == 3


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "highest"), ("tf32", "highest"), ("bf16", "highest")])
def test_loading_a_detector_sets_the_precision_of_float32(precision, expected):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        ExtractorConfig(str(CONFIG), tuple(SLIM), "random", precision=precision).load_detector()
        # On a CPU, TF32 is float32.
        assert torch.get_float32_matmul_precision() == expected
    finally:
        set_float32_precision(before)
