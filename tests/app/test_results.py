"""What the page shows, without a browser."""

import html
import re

import cv2
import numpy as np
import pytest

from bua.app import views
from bua.app.examples import draw_examples
from bua.app.models import CAPTIONING, GROUNDING, VQA, load_models
from bua.app.results import NO_IMAGE, Results
from bua.extraction.image_detector import ImageDetector
from bua.features import open_features


@pytest.fixture
def results(models, tmp_path):
    (tmp_path / "features").mkdir()
    return Results(models, tmp_path / "features")


@pytest.fixture
def example(tmp_path):
    return draw_examples(tmp_path, 1)[0]


def boxes_in(shown):
    return re.findall(r'class="box" data-n="\d+"', shown)


def test_a_lower_threshold_shows_more_objects_each_with_its_text(results, example):
    few, many = (results.objects(str(example.path), threshold) for threshold in (0.95, 0.01))
    assert len(boxes_in(few)) < len(boxes_in(many))
    assert len(boxes_in(many)) == len(re.findall(r'<li class="text"', many))
    assert "shapes_1.png" in few
    assert "The models below see 24 regions" in few


def test_the_detector_computes_an_image_once_for_all_tasks(models, results, example, monkeypatch):
    detector = models.pipelines[VQA].detector.detector
    infer, calls = detector.infer, []
    monkeypatch.setattr(detector, "infer", lambda *args, **options: calls.append(args) or infer(*args, **options))
    changed = cv2.imread(str(example.path))
    changed[0, 0] = 0
    path = example.path.with_name("changed.png")
    cv2.imwrite(str(path), changed)
    shown = [
        results.objects(str(path), 0.4),
        results.answers(str(path), example.question),
        results.caption(str(path)),
        results.phrases(str(path), example.sentence),
    ]
    assert len(calls) == 1
    assert not any("message" in one for one in shown)


def test_regions_from_kept_predictions_are_those_of_the_detector(models, example):
    shared, image = models.pipelines[VQA].detector, cv2.imread(str(example.path))
    (kept,), (direct,) = shared.regions([image]), ImageDetector.regions(shared, [image])
    np.testing.assert_array_equal(kept.boxes, direct.boxes)
    np.testing.assert_array_equal(kept.object_ids, direct.object_ids)
    np.testing.assert_allclose(kept.features, direct.features, rtol=1e-5, atol=1e-5)


def test_answers_come_with_scores_and_the_attention(results, example):
    shown = results.answers(str(example.path), example.question)
    assert len(re.findall(r"<li><span>", shown)) == 5
    assert shown.count("data:image/jpeg") == 1


def test_unknown_words_are_named(results, example):
    question = "What colour is the circle?"
    assert "does not know the word <q>colour</q>" in " ".join(results.answers(str(example.path), question).split())
    assert "<q>zeppelin</q>" in results.phrases(str(example.path), "[a zeppelin] above [a circle]")


def test_phrases_are_marked_in_the_sentence_and_in_the_image(results, example):
    shown = results.phrases(str(example.path), "[a red circle] is left of [a star].")
    assert re.findall(r"<mark[^>]*>(.*?)</mark>", shown) == ["a red circle", "a star"]
    assert len(boxes_in(shown)) == 2


@pytest.mark.parametrize(
    ("show", "says"),
    [
        (lambda results, path: results.answers(path, "zeppelin"), "none of its words is among"),
        (lambda results, path: results.phrases(path, "above"), "no phrase in it"),
        (lambda results, path: results.phrases(path, "[a circle above"), "unmatched or nested brackets"),
        (lambda results, path: results.answers(path, " "), "Write a question"),
        (lambda results, path: results.phrases(path, ""), "Write a sentence"),
    ],
)
def test_input_that_cannot_be_used_is_explained(results, example, show, says):
    shown = show(results, str(example.path))
    assert "message" in shown
    assert says in html.unescape(shown)


def test_a_damaged_file_is_named_without_its_folder(results, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 is no image")
    for shown in (results.objects(str(path), 0.4), results.caption(str(path))):
        assert "broken.jpg" in shown
        assert str(tmp_path) not in shown
    assert results.features_file(str(path)) is None


def test_without_an_image_each_part_asks_for_one(results):
    shown = [results.objects(None, 0.4), results.answers(None, "?"), results.caption(None), results.phrases(None, "")]
    assert all(NO_IMAGE in one for one in shown)
    assert results.features_file(None) is None


def test_features_file_is_read_by_bua_and_holds_the_names(results, example, models):
    path = results.features_file(str(example.path))
    regions = open_features(path.rpartition("/")[0])["shapes_1"]
    assert (regions.width, regions.height) == cv2.imread(str(example.path)).shape[1::-1]
    assert len(regions) == 24
    names = models.pipelines[VQA].detector.objects
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["object_names"].tolist() == [names[id] for id in regions.object_ids]
        assert len(arrays["attribute_names"]) == 24


def test_a_folder_that_another_request_removes_at_the_same_time_is_no_error(results, example, tmp_path):
    # What is listed, but gone when it is looked at, is like a link to nothing.
    (tmp_path / "features" / "removed").symlink_to("nothing")
    assert results.features_file(str(example.path)) is not None


def test_texts_of_users_are_escaped(results, example):
    shown = results.answers(str(example.path), "circle <script>alert(1)</script>")
    assert "<script>" not in shown
    assert "<script>" not in views.message("<script>")


def test_examples_are_the_same_each_time(tmp_path):
    first, second = ([], [])
    for found, folder in ((first, tmp_path / "a"), (second, tmp_path / "b")):
        found += [(one.path.read_bytes(), one.question, one.sentence) for one in draw_examples(folder, 2)]
    assert first == second


def test_a_task_whose_model_was_trained_with_another_detector_is_hidden(models, tmp_path):
    from bua.checkpoint import read_checkpoint, save_checkpoint
    from bua.weights.zoo import fetch

    # The same detector, with other bytes.
    saved = read_checkpoint(fetch("shapes"))
    save_checkpoint(tmp_path / "other.pth", **saved, note="other")
    found = load_models(tmp_path / "other.pth", models={VQA: "shapes-vqa"}, device="cpu")
    assert set(found.hidden) == {CAPTIONING, GROUNDING}
    assert "trained with another detector" in found.hidden[CAPTIONING]
    assert "--captioner" in found.hidden[CAPTIONING]
    assert VQA in found.pipelines
    assert not found.only_shapes
