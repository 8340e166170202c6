"""The public interface: ``bua.pipeline`` loads what a task needs once, and applies it to images in any form.

The tasks have the names, and the results the forms, that they have in Hugging Face's transformers.
"""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bua.captioning.inference import Captioner, caption_regions, load_captioner
from bua.config import check_device
from bua.detection.found_objects import detect_objects, found_objects
from bua.errors import InputError
from bua.extraction.extractor_config import RegionChoice
from bua.extraction.image_detector import ImageDetector, open_detector
from bua.grounding.inference import GroundingModel, ground_phrases, load_grounding
from bua.io.image_inputs import ImageInput, as_bgr
from bua.modeling.efficientdet import EfficientDetBoxes
from bua.modeling.vinvl import VinVLDetector
from bua.structures import RegionPredictions, Regions
from bua.tasks.checkpoint import TaskModel
from bua.vqa.inference import VqaModel, answer_question, load_vqa
from bua.weights.zoo import PACKAGED

# The detector and the models that come with the package. They know only the drawn images of the data set Shapes.
DETECTOR, VQA, CAPTIONER, GROUNDING = "shapes", "shapes-vqa", "shapes-captioning", "shapes-grounding"

logger = logging.getLogger(__name__)


def pipeline(
    task: str,
    model: str | Path | TaskModel | ImageDetector | None = None,
    *,
    detector: str | Path | ImageDetector | None = None,
    config_file: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    min_boxes: int | None = None,
    max_boxes: int | None = None,
    vocabulary: str | Path | None = None,
    batch_size: int | None = None,
    engine: str | None = None,
) -> "Pipeline":
    """Loads what a task needs, once, and returns a function of images.

    Args:
        task: "image-feature-extraction", "object-detection", "visual-question-answering", "image-to-text" or
            "phrase-grounding".
        model: The task's model: a checkpoint of ``train_vqa``, ``train_caption`` or ``train_grounding``, what the
            task's loading function returns for one, the name of one that comes with the package, or an address
            (hf://...). For the first two tasks, this is the detector. By default the one that comes with the package,
            which knows only drawn images.
        detector: The detector that extracted the features which the model was trained on: a checkpoint, a name in
            ``bua.weights.zoo.ZOO``, an address, or what ``open_detector`` returns. It may be left out for models that
            come with the package.
        config_file, overrides: The detector's configuration, as for ``bua.config.load_cfg``; by default the one that
            the checkpoint holds, or that belongs to the released weights.
        device: "cpu", "cuda", "cuda:1", ...; by default a GPU if there is one.
        min_boxes, max_boxes: Limits on the number of regions of an image; by default those of the features that the
            model was trained on, or 10 and 100 if these are not known.
        vocabulary: Folder with the names of the detector's classes, as for ``open_detector``.
        batch_size: Number of images that go through the detector at a time; by default 1 on the CPU, and 8 on a GPU.
        engine: The detector's engine, "torch" or "detectron2"; by default "torch" if it has the detector.

    Raises:
        InputError: The task is unknown, a file cannot be read, or the model and the detector do not fit each other.
    """
    if task not in PIPELINES:
        raise InputError(f"task {task!r}: is unknown; use one of {', '.join(PIPELINES)}")
    kind = PIPELINES[task]
    configured = dict(zip(overrides[::2], overrides[1::2])).get("MODEL.DEVICE")
    device = device or configured or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device, "device")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give 1 or more")
    if kind.model_class is None and model is not None and detector is not None:
        raise InputError(f"{task}: the model is the detector; give one of them")
    task_model = None if kind.model_class is None else _task_model(task, model, device, with_detector=bool(detector))
    chosen = detector or (model if task_model is None else None) or DETECTOR
    if not isinstance(chosen, ImageDetector):
        if isinstance(chosen, TaskModel):
            raise InputError(f"{task}: the detector is a task's model; give a detector")
        trained_on = task_model.features if task_model else {}
        chosen = open_detector(
            chosen,
            config_file=config_file,
            overrides=overrides,
            device=device,
            choice=_choice(min_boxes, max_boxes, trained_on),
            vocabulary=vocabulary,
            engine=engine,
            boxes_only=kind is ObjectDetection,
        )
    if task_model is not None:
        warn_of_other_features(task_model, chosen)
    return kind(chosen, task_model, batch_size)


def _task_model(
    task: str, model: str | Path | TaskModel | ImageDetector | None, device: str, *, with_detector: bool
) -> TaskModel:
    """Returns the model of a task that needs one.

    Args:
        with_detector: Whether the caller gives a detector.
    """
    kind = PIPELINES[task]
    assert kind.model_class is not None
    assert kind.default_model is not None
    if isinstance(model, ImageDetector):
        raise InputError(f"{task}: the model is a detector; give it as the detector")
    if model is None:
        hint = "for other images, name a model and its detector"
        logger.warning("%s: the default model knows only the drawn images of Shapes; %s", task, hint)
    elif not with_detector and str(model) not in PACKAGED:
        raise InputError(f"{task}: {model} needs the detector of its features; add --detector, or detector= in Python")
    if isinstance(model, TaskModel) and not isinstance(model, kind.model_class):
        raise InputError(f"{task}: the model is a {type(model).__name__}; give a {kind.model_class.__name__}")
    return model if isinstance(model, TaskModel) else kind.load_model(model or kind.default_model, device)


def _choice(min_boxes: int | None, max_boxes: int | None, trained_on: Mapping[str, Any]) -> RegionChoice:
    """Returns the limits on the number of regions: those that are given, and for the other ones those of the training,
    or 10 and 100, as far as the given ones allow."""
    least, most = trained_on.get("min_boxes", 10), trained_on.get("max_boxes", 100)
    if min_boxes is None:
        min_boxes = least if max_boxes is None else min(least, max_boxes)
    return RegionChoice(min_boxes, max(most, min_boxes) if max_boxes is None else max_boxes)


class Pipeline:
    """A task's pipeline.

    It is called with one input, and returns the result for it; or with a list, and returns a list of results; or with
    another iterable, such as a generator, and returns an iterator of results. An input is an image in one of the forms
    that ``bua.io.image_inputs.as_bgr`` takes, or a dictionary with the key "image" and what else the task needs.

    Attributes:
        detector: The detector.
        model: The task's model, or None if the detector is all that the task needs.
        batch_size: Number of images that go through the detector at a time.
    """

    # The class of the task's model, and the name of the one that comes with the package.
    model_class: type[TaskModel] | None = None
    default_model: str | None = None
    # Takes an image [H, W, 3] uint8 BGR, what ``_find`` returned for it, and the task's options; returns the result.
    _describe: Callable[..., Any]

    def __init__(self, detector: ImageDetector, model: Any = None, batch_size: int | None = None):
        self.detector, self.model = detector, model
        self.batch_size = batch_size or (1 if detector.device.type == "cpu" else 8)

    @staticmethod
    def load_model(path: str | Path, device: str) -> TaskModel:
        """Loads the task's model."""
        raise NotImplementedError

    def __call__(self, inputs: Any = None, **options: Any) -> Any:
        """Returns the results for one or several inputs.

        Args:
            inputs: The input, or several.
            options: What else the task takes. A value for the key "image" may be given in place of ``inputs``. Lists
                of questions or sentences have one element for each image.

        Raises:
            InputError: An image cannot be read, or an input lacks what the task needs.
        """
        inputs = options.pop("image", None) if inputs is None else inputs
        if inputs is None:
            raise InputError("image: is missing; give an image")
        # What is no image either is named by as_bgr. An open file can be iterated over, too.
        if isinstance(inputs, Mapping | ImageInput) or hasattr(inputs, "read") or not isinstance(inputs, Iterable):
            return next(self._results([inputs], options))
        if isinstance(inputs, Sequence):
            return list(self._results(inputs, options))
        return self._results(inputs, options)

    def _find(self, images: list[np.ndarray]) -> Sequence[Any]:
        """Returns what ``_describe`` needs of each image."""
        return self.detector.regions(images)

    def _results(self, inputs: Iterable[Any], options: dict[str, Any]) -> Iterator[Any]:
        per_input = {name: value for name, value in options.items() if isinstance(value, list | tuple)}
        shared = {name: value for name, value in options.items() if name not in per_input}
        waiting: list[tuple[np.ndarray, dict[str, Any]]] = []
        number = -1
        for number, one in enumerate(inputs):
            own = dict(one) if isinstance(one, Mapping) else {"image": one}
            if "image" not in own:
                raise InputError(f"input {number}: has no image; give it under the key 'image'")
            for name, values in per_input.items():
                if number >= len(values):
                    raise InputError(
                        f"{name}: has {len(values)} elements, but there are more images; give one for each"
                    )
                own[name] = values[number]
            waiting.append((as_bgr(own.pop("image")), {**shared, **own}))
            if len(waiting) == self.batch_size:
                yield from self._describe_all(waiting)
                waiting = []
        yield from self._describe_all(waiting)
        for name, values in per_input.items():
            if len(values) > number + 1:
                raise InputError(f"{name}: has {len(values)} elements for {number + 1} images; give one for each")

    def _describe_all(self, batch: list[tuple[np.ndarray, dict[str, Any]]]) -> Iterator[Any]:
        images = [image for image, _ in batch]
        for (image, options), found in zip(batch, self._find(images) if images else ()):
            try:
                inspect.signature(self._describe).bind(image, found, **options)
            except TypeError as error:
                raise InputError(f"{type(self).__name__}: {error}; see its documentation for the options") from error
            yield self._describe(image, found, **options)


class ImageFeatureExtraction(Pipeline):
    """Returns the features of an image's regions: nested lists [1, n, D], as transformers does.

    Options: ``return_tensors=True`` for a tensor [1, n, D] float32, ``return_regions=True`` for ``Regions``.
    """

    def _describe(
        self, image: np.ndarray, found: Regions, *, return_tensors: bool = False, return_regions: bool = False
    ) -> Any:
        if return_regions:
            return found
        features = torch.from_numpy(found.features)[None]
        return features if return_tensors else features.tolist()


class ObjectDetection(Pipeline):
    """Returns the objects in an image, best first: a list of {"label", "score", "box", "attributes"}, where the box is
    {"xmin", "ymin", "xmax", "ymax"} in whole pixels, and attributes are a list of {"label", "score"}.

    Options: ``threshold`` (0.4), the least probability of an object, and ``attribute_threshold`` (0.1).
    """

    def __init__(self, detector: ImageDetector, model: Any = None, batch_size: int | None = None):
        super().__init__(detector, model, batch_size)
        self.objects, self.attributes = detector.class_names()

    def _find(self, images: list[np.ndarray]) -> Sequence[Any]:
        # VinVL's detector chooses by the threshold, which is an option of each image, and an EfficientDet itself.
        chooses = isinstance(self.detector.detector, VinVLDetector | EfficientDetBoxes)
        return [None] * len(images) if chooses else self.detector.predictions(images)

    def _describe(
        self,
        image: np.ndarray,
        found: RegionPredictions | None,
        *,
        threshold: float = 0.4,
        attribute_threshold: float = 0.1,
    ) -> list[dict[str, Any]]:
        _check_fraction("threshold", threshold)
        _check_fraction("attribute_threshold", attribute_threshold)
        detector = self.detector.detector
        if found is None:
            inputs = [detector.prepare(image)]
            (objects,) = detect_objects(detector, inputs, threshold, attribute_threshold=attribute_threshold)
        else:
            objects = found_objects(
                found, threshold, attribute_threshold=attribute_threshold, convention=detector.convention
            )
        return [
            {
                "label": self.objects[one.class_id],
                "score": one.score,
                "box": _box(one.box),
                "attributes": [{"label": self.attributes[id], "score": score} for id, score in one.attributes],
            }
            for one in objects
        ]


class VisualQuestionAnswering(Pipeline):
    """Returns the answers to a question about an image, best first: a list of {"answer", "score"}. The score is the
    official accuracy that the model expects of the answer, 0 to 1; scores do not sum to 1.

    Options: ``question``; ``top_k`` (5), the number of answers; ``return_regions=True`` adds "regions" (``Regions``)
    and "attention" ([n] float32, the model's attention to each region) to the answers.
    """

    model_class, default_model = VqaModel, VQA
    load_model = staticmethod(load_vqa)

    def _describe(
        self, image: np.ndarray, found: Regions, *, question: str, top_k: int = 5, return_regions: bool = False
    ) -> list[dict[str, Any]]:
        _check_text("question", question)
        _check_count("top_k", top_k)
        answers, attention = answer_question(self.model, found, question, top_k)
        more = {"regions": found, "attention": attention} if return_regions else {}
        return [{"answer": one.text, "score": one.score, **more} for one in answers]


class ImageToText(Pipeline):
    """Returns captions of an image, best first: a list of {"generated_text", "score"}. Beam search ranks captions by
    the score, which is the logarithm of the caption's probability by default.

    Options: ``num_return_sequences`` (1), the number of captions, at most those of the beam search;
    ``return_regions=True`` adds "words" (the caption's words), "regions" (``Regions``) and "attention" ([words, n]
    float32, the model's attention to each region for each word) to the captions.
    """

    model_class, default_model = Captioner, CAPTIONER
    load_model = staticmethod(load_captioner)

    def _describe(
        self, image: np.ndarray, found: Regions, *, num_return_sequences: int = 1, return_regions: bool = False
    ) -> list[dict[str, Any]]:
        _check_count("num_return_sequences", num_return_sequences)
        results: list[dict[str, Any]] = []
        for caption in caption_regions([self.model], found)[:num_return_sequences]:
            more = {"words": caption.words, "regions": found, "attention": caption.attention} if return_regions else {}
            results.append({"generated_text": caption.text, "score": caption.score, **more})
        return results


class PhraseGrounding(Pipeline):
    """Returns the phrases of a sentence with their places in an image: a list of {"label", "score", "box", "start",
    "end"}. The label is the phrase, which is words ``start`` to ``end`` - 1 of the sentence; the score is the
    probability, by the model, that the box is right, 0 to 1; the box is as in object detection.

    Options: ``text``, the sentence, whose phrases may be in brackets; ``return_regions=True`` adds "regions"
    (``Regions``) and "scores" ([n] float32, of each region) to the phrases.
    """

    model_class, default_model = GroundingModel, GROUNDING
    load_model = staticmethod(load_grounding)

    def _describe(
        self, image: np.ndarray, found: Regions, *, text: str, return_regions: bool = False
    ) -> list[dict[str, Any]]:
        _check_text("text", text)
        return [
            {
                "label": phrase.text,
                "score": float(phrase.scores[phrase.region]),
                "box": _box(phrase.box),
                "start": phrase.start,
                "end": phrase.end,
                **({"regions": found, "scores": phrase.scores} if return_regions else {}),
            }
            for phrase in ground_phrases(self.model, found, text)
        ]


PIPELINES: dict[str, type[Pipeline]] = {
    "image-feature-extraction": ImageFeatureExtraction,
    "object-detection": ObjectDetection,
    "visual-question-answering": VisualQuestionAnswering,
    "image-to-text": ImageToText,
    "phrase-grounding": PhraseGrounding,
}


def warn_of_other_features(model: TaskModel, detector: ImageDetector) -> None:
    """Logs a warning if ``detector`` is not the one that a model was trained with, or gives another number of boxes.

    Raises:
        InputError: The features have another dimension than those that the model was trained on.
    """
    model.check_features(detector.detector.feature_dim, detector.name)
    trained_on = model.features
    if trained_on.get("weights") not in (None, detector.fingerprint):
        logger.warning("%s: is not the detector whose features the model was trained on", detector.name)
    known = {name: trained_on[name] for name in ("min_boxes", "max_boxes") if name in trained_on}
    given = {name: getattr(detector.choice, name) for name in known}
    if known != given:
        logger.warning(
            "the model was trained on %s to %s boxes per image, and gets %s to %s", *known.values(), *given.values()
        )


def _box(box: np.ndarray) -> dict[str, int]:
    return {name: round(value) for name, value in zip(("xmin", "ymin", "xmax", "ymax"), box.tolist())}


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name} is {value!r}; give a text")


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}; give a whole number of 1 or more")


def _check_fraction(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{name} is {value!r}; give a number from 0 to 1")
