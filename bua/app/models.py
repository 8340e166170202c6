"""The detector and the tasks' models of the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bua.app.shared_detector import SharedDetector
from bua.config import check_device
from bua.errors import InputError
from bua.extraction.extractor_config import RegionChoice
from bua.extraction.image_detector import ImageDetector, open_detector
from bua.pipelines import DETECTOR, PIPELINES, Pipeline, pipeline
from bua.tasks.checkpoint import TaskModel

OBJECTS, FEATURES = "object-detection", "image-feature-extraction"
VQA, CAPTIONING, GROUNDING = "visual-question-answering", "image-to-text", "phrase-grounding"
# What each task does for the user, and the option that names its model.
TASKS = {
    VQA: ("Questions are not answered", "--vqa"),
    CAPTIONING: ("Captions are not written", "--captioner"),
    GROUNDING: ("Sentences are not grounded", "--grounding"),
}


@dataclass
class Models:
    """The pipelines of the page, which share one detector.

    Attributes:
        pipelines: The pipelines by the names of their tasks; those of objects and features always exist.
        hidden: For each task without a pipeline, a sentence that says why.
        only_shapes: Whether the detector is the one that comes with the package, which knows only drawn images.
    """

    pipelines: dict[str, Pipeline]
    hidden: dict[str, str]
    only_shapes: bool


def load_models(
    detector: str | Path = DETECTOR,
    *,
    models: Mapping[str, str | Path | None] | None = None,
    config_file: str | Path | None = None,
    overrides: Sequence[str] = (),
    vocabulary: str | Path | None = None,
    device: str | None = None,
    min_boxes: int | None = None,
    max_boxes: int | None = None,
    engine: str | None = None,
) -> Models:
    """Loads a detector and the tasks' models.

    Args:
        detector, config_file, overrides, vocabulary: As for ``bua.extraction.image_detector.open_detector``.
        models: The model of each task, as for ``bua.pipeline``. A task without one has the model that comes with the
            package, if this was trained with the detector's features, and is hidden otherwise.
        device: A torch device; by default a GPU if there is one.
        min_boxes, max_boxes: Limits on the number of regions of an image; by default those of the features that the
            tasks' models were trained on, or 10 and 100 if these are not known.
        engine: The detector's engine, as for ``open_detector``.

    Raises:
        InputError: A file cannot be read, the names of the detector's classes are not known, or a model in ``models``
            does not fit the detector.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device, "--device")
    opened = open_detector(
        detector,
        config_file=config_file,
        overrides=overrides,
        device=device,
        vocabulary=vocabulary,
        engine=engine,
    )
    found: dict[str, TaskModel] = {}
    hidden = {}
    for task, (what, option) in TASKS.items():
        given = (models or {}).get(task)
        try:
            found[task] = _packaged(task, opened, device) if given is None else _load(task, given, device)
        except InputError as error:
            if given is not None:
                raise
            hidden[task] = f"{what}: {error}. Name a model that was trained with this detector ({option})."
    trained_on = [model.features for model in found.values()]
    choice = RegionChoice(
        min_boxes=_first_known(min_boxes, *(features.get("min_boxes") for features in trained_on), 10),
        max_boxes=_first_known(max_boxes, *(features.get("max_boxes") for features in trained_on), 100),
    )
    choice.check()
    shared = SharedDetector(opened, choice)
    pipelines = {task: pipeline(task, detector=shared) for task in (OBJECTS, FEATURES)}
    pipelines |= {task: pipeline(task, model, detector=shared) for task, model in found.items()}
    return Models(pipelines, hidden, only_shapes=str(detector) == DETECTOR)


def _load(task: str, path: str | Path, device: str) -> TaskModel:
    return PIPELINES[task].load_model(path, device)


def _packaged(task: str, opened: ImageDetector, device: str) -> TaskModel:
    """Returns the model that comes with the package.

    Raises:
        InputError: It was trained with the features of another detector than ``opened``, or its file cannot be read.
    """
    name = PIPELINES[task].default_model
    assert name is not None
    model = _load(task, name, device)
    if model.features.get("weights") != opened.fingerprint:
        raise InputError(f"the model that comes with the package ({name}) was trained with another detector")
    return model


def _first_known(*values: int | None) -> int:
    return next(value for value in values if value is not None)
