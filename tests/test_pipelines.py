"""The public interface, with the models that come with the package."""

import io
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import bua
import bua.pipelines
from bua.errors import InputError
from bua.extraction.extractor_config import RegionChoice
from bua.extraction.image_detector import open_detector
from bua.shapes.make import make_shapes
from bua.structures import Regions

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    """Paths of three drawn images."""
    root = tmp_path_factory.mktemp("shapes") / "shapes"
    make_shapes(root, 3, 0, 0, seed=5)
    return [str(path) for path in sorted(root.glob("VG_100K*/*.jpg"))]


@pytest.fixture(scope="module")
def detector():
    return open_detector("shapes", device="cpu", choice=RegionChoice(min_boxes=24, max_boxes=24))


def test_object_detection_gives_labelled_boxes_with_attributes(images, detector):
    found = bua.pipeline("object-detection", detector=detector)(images[0], threshold=0.3)
    assert found == sorted(found, key=lambda one: -one["score"])
    width, height = Image.open(images[0]).size
    for one in found:
        assert set(one) == {"label", "score", "box", "attributes"}
        assert one["label"] in detector.objects
        assert 0 <= one["box"]["xmin"] <= one["box"]["xmax"] <= width
        assert 0 <= one["box"]["ymin"] <= one["box"]["ymax"] <= height
        assert all(attribute["label"] in detector.attributes for attribute in one["attributes"])


def test_features_are_nested_lists_a_tensor_or_regions(images, detector):
    extract = bua.pipeline("image-feature-extraction", detector)
    regions = extract(images[0], return_regions=True)
    tensor = extract(images[0], return_tensors=True)
    assert isinstance(regions, Regions)
    assert tensor.shape == (1, 24, 512)
    assert tensor[0].numpy().tobytes() == regions.features.tobytes()
    assert extract(images[0]) == tensor.tolist()


def test_answers_captions_and_phrases_have_the_forms_of_transformers(images, detector):
    answer = bua.pipeline("visual-question-answering", "shapes-vqa", detector=detector)
    answers = answer(image=images[0], question="what color is the circle?", top_k=3)
    assert [set(one) for one in answers] == [{"answer", "score"}] * 3
    assert answers == answer({"image": images[0], "question": "what color is the circle?"}, top_k=3)
    (caption,) = bua.pipeline("image-to-text", "shapes-captioning", detector=detector)(images[0])
    assert caption["generated_text"]
    phrases = bua.pipeline("phrase-grounding", "shapes-grounding", detector=detector)(
        images[0], text="[a circle] above [a square]", return_regions=True
    )
    assert [one["label"] for one in phrases] == ["a circle", "a square"]
    assert [(one["start"], one["end"]) for one in phrases] == [(0, 2), (3, 5)]
    assert all(len(one["scores"]) == len(one["regions"]) == 24 for one in phrases)


def test_lists_give_lists_and_generators_give_iterators(images, detector):
    answer = bua.pipeline("visual-question-answering", "shapes-vqa", detector=detector, batch_size=2)
    questions = ["what color is the circle?", "how many objects are there?", "is there a star?"]
    expected = [answer(image, question=question) for image, question in zip(images, questions)]
    assert answer(images, question=questions) == expected
    assert answer([{"image": image, "question": q} for image, q in zip(images, questions)]) == expected
    stream = answer({"image": image, "question": q} for image, q in zip(images, questions))
    assert not isinstance(stream, list)
    assert list(stream) == expected
    assert answer([], question="is there a star?") == []


def test_all_forms_of_an_image_give_the_same_regions(images, detector):
    extract = bua.pipeline("image-feature-extraction", detector)
    expected = extract(images[0], return_regions=True)
    rgb = np.ascontiguousarray(cv2.imread(images[0])[:, :, ::-1])
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    for form in (
        Path(images[0]),
        Path(images[0]).read_bytes(),
        io.BytesIO(Path(images[0]).read_bytes()),
        Image.fromarray(rgb),
        rgb,
        tensor,
    ):
        assert (extract(form, return_regions=True).boxes == expected.boxes).all()


def test_models_are_loaded_once(images, monkeypatch):
    loaded = []
    opened = bua.pipelines.open_detector
    monkeypatch.setattr(
        bua.pipelines, "open_detector", lambda *args, **more: loaded.append(args) or opened(*args, **more)
    )
    extract = bua.pipeline("image-feature-extraction", device="cpu")
    for image in images:
        extract(image)
    assert len(loaded) == 1


def test_number_of_boxes_is_that_of_the_training_unless_it_is_given(detector, caplog):
    caption = bua.pipeline("image-to-text", "shapes-captioning", device="cpu")
    assert (caption.detector.choice.min_boxes, caption.detector.choice.max_boxes) == (24, 24)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        bua.pipeline("image-to-text", "shapes-captioning", max_boxes=30, device="cpu")
    assert "the model was trained on 24 to 24 boxes per image, and gets 24 to 30" in caplog.text


def test_one_limit_on_the_number_of_boxes_moves_the_other(detector):
    caption = bua.pipeline("image-to-text", "shapes-captioning", max_boxes=5, device="cpu")
    assert (caption.detector.choice.min_boxes, caption.detector.choice.max_boxes) == (5, 5)


def test_models_of_other_tasks_are_refused(detector):
    model = bua.pipeline("visual-question-answering", "shapes-vqa", detector=detector).model
    with pytest.raises(InputError, match="the model is a VqaModel; give a Captioner"):
        bua.pipeline("image-to-text", model, detector=detector)
    with pytest.raises(InputError, match="the detector is a task's model"):
        bua.pipeline("object-detection", detector=model)


def test_another_detector_gives_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        bua.pipeline("image-to-text", "shapes-captioning", detector="random", config_file="shapes.yaml", device="cpu")
    assert "random: is not the detector whose features the model was trained on" in caplog.text


def test_default_models_say_what_they_know(caplog):
    with caplog.at_level(logging.WARNING):
        bua.pipeline("visual-question-answering", device="cpu")
    assert "the default model knows only the drawn images of Shapes" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "image-classification"}, "task 'image-classification': is unknown; use one of image-feature"),
        ({"task": "image-to-text", "model": "none.pth"}, "none.pth needs the detector of its features; add --detector"),
        ({"task": "image-to-text", "model": "none.pth", "detector": "shapes"}, r"none\.pth"),
        ({"task": "object-detection", "model": "shapes", "detector": "shapes"}, "the model is the detector"),
        ({"task": "object-detection", "detector": "random"}, "name the configuration file"),
        ({"task": "object-detection", "detector": "random", "config_file": "vg_r50.yaml"}, "names of its classes"),
        ({"task": "image-feature-extraction", "min_boxes": 40, "max_boxes": 3}, "need 0 <= min <= max"),
        ({"task": "image-feature-extraction", "device": "gpu"}, "device is 'gpu'"),
        ({"task": "image-feature-extraction", "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        bua.pipeline(**{"device": "cpu", **arguments})
    assert "\n" not in str(caught.value)


def test_bad_inputs_are_one_line(images, detector):
    answer = bua.pipeline("visual-question-answering", "shapes-vqa", detector=detector)
    for inputs, options, message in [
        ("none.jpg", {"question": "is there a star?"}, r"none\.jpg"),
        (images[0], {}, "question"),
        (images[0], {"question": "is there a star?", "topk": 2}, "topk"),
        (images[0], {"question": "is there a star?", "top_k": 0}, "top_k is 0"),
        (images[0], {"question": "is there a star?", "top_k": "3"}, "top_k is '3'"),
        (images[0], {"question": 3}, "question is 3; give a text"),
        (images[:1], {"question": ["is there a star?"] * 2}, "question: has 2 elements for 1 images"),
        (None, {"question": "is there a star?"}, "image: is missing"),
        (3, {"question": "is there a star?"}, "image: is of type int"),
        (images[:2], {"question": ["is there a star?"]}, "question: has 1 elements"),
        ({"question": "is there a star?"}, {}, "input 0: has no image"),
    ]:
        with pytest.raises(InputError, match=message):
            answer(inputs, **options)
