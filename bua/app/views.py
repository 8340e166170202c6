"""The HTML of the page's results. All texts are escaped."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from bua.app.models import Models
from bua.visualization.gallery import data_uri

# Pixels of the longer side of an image that the page shows. A larger one is reduced.
SHOWN_SIZE = 1200
# Corners of boxes are taken for the same if they differ by less than this, in percent of the image.
SAME_CORNER = 2


@dataclass
class LinkedBox:
    """A box on an image. Pointing at it or at its text highlights both.

    Attributes:
        text: What is in the box.
        score: 0 to 1.
        color: CSS colour.
        place: (left, top, width, height) in percent of the image.
        layer: Position in the stack of boxes: small boxes lie above large ones.
        shift: Number of boxes before this one that begin at the same corner, whose numbers must not be covered.
    """

    text: str
    score: float
    color: str
    place: tuple[float, float, float, float]
    layer: int
    shift: int


def linked_boxes(
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str],
    scores: Sequence[float],
    colors: Sequence[tuple[int, int, int]],
    size: tuple[int, int],
) -> list[LinkedBox]:
    """Returns boxes with their texts.

    Args:
        boxes: Boxes x1y1x2y2 in pixels.
        texts, scores, colors: The text, the score and the BGR colour of each box.
        size: (width, height) of the image in pixels.
    """
    width, height = size
    places = []
    for x1, y1, x2, y2 in (np.clip(box, 0, (width, height, width, height)).tolist() for box in boxes):
        places.append((100 * x1 / width, 100 * y1 / height, 100 * (x2 - x1) / width, 100 * (y2 - y1) / height))
    areas = [across * down for _, _, across, down in places]
    layers = {number: layer for layer, number in enumerate(sorted(range(len(areas)), key=lambda n: -areas[n]))}
    return [
        LinkedBox(
            text,
            score,
            f"rgb({red},{green},{blue})",
            place,
            layers[number],
            sum(np.allclose(place[:2], before[:2], atol=SAME_CORNER) for before in places[:number]),
        )
        for number, (text, score, (blue, green, red), place) in enumerate(zip(texts, scores, colors, places))
    ]


def objects(image: np.ndarray, name: str, boxes: Sequence[LinkedBox], regions: int, threshold: float) -> str:
    """Returns an image with the objects in it.

    Args:
        image: [H, W, 3] uint8 BGR.
        name: The image's name.
        regions: Number of regions that the tasks' models get.
        threshold: Least probability of an object.
    """
    return _render(
        "objects", _reduced(image), name, f"{image.shape[1]} × {image.shape[0]} pixels", boxes, regions, threshold
    )


def answers(question: str, best: Sequence[tuple[str, float]], drawn: np.ndarray | None, unknown: Sequence[str]) -> str:
    """Returns the answers to a question.

    Args:
        best: The answers and their scores, 0 to 1.
        drawn: [H, W, 3] uint8 BGR, the image with the model's attention; None if the model sees no image.
        unknown: Words that the model does not know.
    """
    return _render("answers", question, best, drawn, unknown)


def caption(text: str, words: Sequence[tuple[str, float, np.ndarray]]) -> str:
    """Returns a caption.

    Args:
        words: For each word the share of the attention that its best region has, 0 to 1, and the image with it.
    """
    return _render("caption", text, words)


def phrases(
    image: np.ndarray,
    words: Sequence[str],
    spans: Sequence[tuple[int, int]],
    boxes: Sequence[LinkedBox],
    unknown: Sequence[str],
) -> str:
    """Returns a sentence and an image with the boxes of its phrases.

    Args:
        image: [H, W, 3] uint8 BGR.
        words: The sentence's words.
        spans: For each phrase the place of its first word and the place behind its last word.
        boxes: The box of each phrase.
        unknown: Words that the model does not know.
    """
    parts: list[tuple[str, int | None]] = []
    done = 0
    for number, (start, end) in enumerate(spans):
        parts += [(" ".join(words[done:start]), None), (" ".join(words[start:end]), number)]
        done = end
    parts.append((" ".join(words[done:]), None))
    # Signs stand apart from words, as tokens do; between phrases, they say nothing.
    parts = [part for part in parts if part[0].strip(" .,;:!?")]
    return _render("phrases", _reduced(image), parts, boxes, unknown)


def message(text: str) -> str:
    """Returns a text in place of a result."""
    return _render("message", text)


def header(models: Models) -> str:
    """Returns the top of the page."""
    return _render("header", models.only_shapes)


def section(title: str, text: str) -> str:
    """Returns the title of a section, with a paragraph."""
    return _render("section", title, text)


def link_styles(count: int) -> str:
    """Returns the CSS that highlights a box when the user points at its text, and a text when at its box, for the
    first ``count`` boxes of an image."""
    pointed, box, text = [], [], []
    for number in range(count):
        one = f'.linked:has([data-n="{number}"]:is(:hover, :focus))'
        pointed.append(f"{one} .box")
        box.append(f'{one} .box[data-n="{number}"]')
        text.append(f'{one} .text[data-n="{number}"]')
    return "\n".join(
        [
            f"{','.join(pointed)} {{ opacity: 0.25; }}",
            f"{','.join(box)} {{ opacity: 1; z-index: 1000; }}",
            f"{','.join(one + ' span' for one in box)} {{ display: block; }}",
            f"{','.join(text)} {{ outline: 2px solid var(--c); }}",
        ]
    )


def _render(macro: str, *arguments: object) -> str:
    return str(getattr(_macros(), macro)(*arguments))


@functools.cache
def _macros() -> object:
    environment = Environment(
        loader=PackageLoader("bua.app"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(data_uri=data_uri, percent=lambda share: f"{100 * share:.0f}%")
    return environment.get_template("views.html").module


def _reduced(image: np.ndarray) -> np.ndarray:
    factor = SHOWN_SIZE / max(image.shape[:2])
    if factor >= 1:
        return image
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
