"""What the page shows of an image: each function takes what the user chose, and returns HTML."""

import functools
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bua.app import views
from bua.app.models import CAPTIONING, FEATURES, GROUNDING, OBJECTS, VQA, Models
from bua.errors import InputError
from bua.features.npz import NpzWriter
from bua.grounding.phrases import find_phrases
from bua.io.images import read_image
from bua.structures import Regions
from bua.tasks.words import WordVocabulary, tokenize
from bua.visualization.draw import class_colors, draw_attention
from bua.visualization.labels import region_label
from bua.visualization.strip import best_shares, draw_words

ANSWERS = 5
NO_IMAGE = "Choose an image first."
# Features files are removed after this time. The browser gets its copy at once.
KEPT_SECONDS = 600.0


def _shown(show: Callable[..., str]) -> Callable[..., str]:
    """Makes a method that takes the path of an image first show what is wrong with the input, and a missing image."""

    @functools.wraps(show)
    def show_or_explain(self: "Results", path: str | None, *others: Any) -> str:
        if path is None:
            return views.message(NO_IMAGE)
        try:
            return show(self, path, *others)
        except InputError as error:
            # The folder that the upload was put into means nothing to the user.
            return views.message(str(error).replace(str(path), Path(path).name))

    return show_or_explain


class Results:
    """Applies the models to images.

    Args:
        models: The models.
        folder: Folder for features files.
    """

    def __init__(self, models: Models, folder: Path):
        self.models, self.folder = models, folder
        self._pipelines = models.pipelines

    @_shown
    def objects(self, path: str, threshold: float) -> str:
        """Shows the objects whose probability is at least ``threshold``, with their attributes."""
        image = read_image(path)
        found = self._pipelines[OBJECTS](_rgb(image), threshold=threshold)
        names = self._pipelines[OBJECTS].detector.objects or []
        height, width = image.shape[:2]
        boxes = views.linked_boxes(
            [list(one["box"].values()) for one in found],
            [region_label(one["label"], [attribute["label"] for attribute in one["attributes"]]) for one in found],
            [one["score"] for one in found],
            class_colors(names.index(one["label"]) for one in found),
            (width, height),
        )
        return views.objects(image, Path(path).name, boxes, len(self._regions(image)), threshold)

    @_shown
    def answers(self, path: str, question: str) -> str:
        """Shows the best answers to a question, and the model's attention."""
        if not question.strip():
            return views.message("Write a question about the image.")
        image, pipeline = read_image(path), self._pipelines[VQA]
        found = pipeline(_rgb(image), question=question, top_k=ANSWERS, return_regions=True)
        attention = found[0]["attention"]
        drawn = draw_attention(image, found[0]["regions"].boxes, attention, shown=3) if attention.any() else None
        answers = [(one["answer"], one["score"]) for one in found]
        return views.answers(question, answers, drawn, _unknown(tokenize(question), pipeline.model.words))

    @_shown
    def caption(self, path: str) -> str:
        """Shows the caption, and the region with the most attention for each word."""
        image = read_image(path)
        (found,) = self._pipelines[CAPTIONING](_rgb(image), return_regions=True)
        attention = found["attention"]
        drawn = draw_words(image, found["regions"].boxes, attention)
        return views.caption(found["generated_text"], list(zip(found["words"], best_shares(attention), drawn)))

    @_shown
    def phrases(self, path: str, sentence: str) -> str:
        """Shows the region of each phrase of a sentence."""
        if not sentence.strip():
            return views.message("Write a sentence about the image.")
        image, pipeline = read_image(path), self._pipelines[GROUNDING]
        found = pipeline(_rgb(image), text=sentence, return_regions=True)
        words, spans = find_phrases(sentence, pipeline.model.vocabulary, pipeline.model.phrase_tags)
        height, width = image.shape[:2]
        boxes = views.linked_boxes(
            [one["regions"].boxes[one["scores"].argmax()] for one in found],
            [one["label"] for one in found],
            [one["score"] for one in found],
            class_colors(range(len(found))),
            (width, height),
        )
        return views.phrases(image, words, spans, boxes, _unknown(words, pipeline.model.vocabulary))

    def features_file(self, path: str | None) -> str | None:
        """Writes the features of an image's regions as bua's format npz, with the names of their classes in addition:
        ``object_names`` and ``attribute_names``, [n] strings.

        Returns:
            The file, or None if there is no image or it cannot be read.
        """
        try:
            if path is None:
                return None
            regions = replace(self._regions(read_image(path)), image_id=Path(path).stem)
            return str(self._write(regions))
        except InputError:
            # The place of the regions says what is wrong.
            return None

    def _regions(self, image: np.ndarray) -> Regions:
        regions: Regions = self._pipelines[FEATURES](_rgb(image), return_regions=True)
        return regions

    def _write(self, regions: Regions) -> Path:
        for old in self.folder.iterdir():
            # Another request may remove the folder at the same time.
            with suppress(FileNotFoundError):
                if old.stat().st_mtime < time.time() - KEPT_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        NpzWriter(folder).append(regions)
        (file,) = folder.glob("*.npz")
        objects, attributes = self._pipelines[OBJECTS].detector.class_names()
        with zipfile.ZipFile(file, "a") as archive:
            for key, names, ids in (
                ("object_names", objects, regions.object_ids),
                ("attribute_names", attributes, regions.attribute_ids),
            ):
                if ids is not None:
                    with archive.open(f"{key}.npy", "w") as member:
                        np.lib.format.write_array(member, np.array([names[id] for id in ids], dtype=str))
        return file


def _rgb(image: np.ndarray) -> np.ndarray:
    return image[:, :, ::-1]


def _unknown(words: Sequence[str], vocabulary: WordVocabulary) -> list[str]:
    """Returns the words that a model does not know, each once."""
    return [word for word in dict.fromkeys(words) if word not in vocabulary]
