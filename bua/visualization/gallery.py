"""The images of a page: what a detector finds in each, and what the models on its regions say about it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import cv2
import numpy as np


@dataclass
class Answered:
    """A question about an image.

    Attributes:
        answers: the best, with what the model takes for their accuracy, 0 to 1; best first.
        truth: what most people said.
        drawn: [H, W, 3] uint8 BGR, where the model looked.
    """

    question: str
    answers: Sequence[tuple[str, float]]
    truth: str
    drawn: np.ndarray


@dataclass
class Captioned:
    """A caption.

    Attributes:
        drawn: [H, W, 3] uint8 BGR, where the model looked for each word.
    """

    text: str
    drawn: np.ndarray


@dataclass
class Grounded:
    """A sentence whose phrases were found in an image.

    Attributes:
        words: of the sentence.
        spans: the first word of each phrase, and the one behind its last; from left to right, without overlap.
        colors: of each phrase, BGR, as in the drawing.
        right: whether it is where people say.
        drawn: [H, W, 3] uint8 BGR, the box of each phrase.
    """

    words: Sequence[str]
    spans: Sequence[tuple[int, int]]
    colors: Sequence[tuple[int, int, int]]
    right: Sequence[bool]
    drawn: np.ndarray


@dataclass
class GalleryImage:
    """One image of the gallery; what is not there is left out.

    Attributes:
        title: such as its file name.
        predicted: [H, W, 3] uint8 BGR, with the boxes that the detector found drawn.
        predicted_labels: what they say.
        annotated: likewise with the annotation.
        annotated_labels: what that says.
    """

    title: str
    predicted: np.ndarray
    predicted_labels: Sequence[str]
    annotated: np.ndarray | None = None
    annotated_labels: Sequence[str] = ()
    questions: Sequence[Answered] = field(default_factory=list)
    caption: Captioned | None = None
    phrases: Grounded | None = None


def gallery(images: Sequence[GalleryImage]) -> str:
    """HTML of the images, with a switch for the annotations where there are some."""
    switch = (
        '<input class="choice" type="radio" name="view" id="found" checked>'
        '<input class="choice" type="radio" name="view" id="beside">'
        '<div class="switch"><label for="found">What they find</label>'
        '<label for="beside">Beside the annotation</label></div>'
    )
    with_annotation = any(image.annotated is not None for image in images)
    with_tasks = any(image.questions or image.caption or image.phrases for image in images)
    body = "".join(_article(image) for image in images)
    return f'{switch if with_annotation else ""}<div class="gallery{" tasks" if with_tasks else ""}">{body}</div>'


def _article(image: GalleryImage) -> str:
    count = len(image.predicted_labels)
    parts = [_labelled("found", image.predicted, image.predicted_labels, f"{image.title}: {count} found")]
    if image.annotated is not None:
        caption = f"Annotation: {len(image.annotated_labels)} objects"
        parts.append(_labelled("annotated", image.annotated, image.annotated_labels, caption))
    if image.phrases is not None:
        parts.append(_phrases(image.phrases))
    parts += [_answered(question) for question in image.questions]
    if image.caption is not None:
        text = image.caption.text
        alt = f"Where the model looked for each word of: {text}"
        parts.append(_figure("caption", image.caption.drawn, alt, f"<q>{escape(text)}</q>"))
    return f"<article>{''.join(parts)}</article>"


def _labelled(kind: str, image: np.ndarray, labels: Sequence[str], caption: str) -> str:
    alt = f"{caption}: {'; '.join(labels)}" if labels else caption
    return _figure(kind, image, alt, escape(caption))


def _answered(asked: Answered) -> str:
    best = asked.answers[0][0]
    is_right = best == asked.truth
    others = ", ".join(f"{escape(text)} {100 * score:.0f}%" for text, score in asked.answers)
    truth = "" if is_right else f", people said <em>{escape(asked.truth)}</em>"
    text = f"{escape(asked.question)} <strong>{escape(best)}</strong> {_mark(is_right)}{truth}<small>{others}</small>"
    return _figure("answered", asked.drawn, f"Where the model looked for: {asked.question}", text)


def _phrases(grounded: Grounded) -> str:
    text, done = [], 0
    for (start, end), (blue, green, red), is_right in zip(grounded.spans, grounded.colors, grounded.right):
        text += [escape(word) for word in grounded.words[done:start]]
        phrase = escape(" ".join(grounded.words[start:end]))
        text.append(f'<span class="phrase" style="--c:rgb({red},{green},{blue})">{phrase}</span> {_mark(is_right)}')
        done = end
    text += [escape(word) for word in grounded.words[done:]]
    alt = f"Where the phrases are of: {' '.join(grounded.words)}"
    return _figure("grounded", grounded.drawn, alt, " ".join(text))


def _mark(is_right: bool) -> str:
    return '<b class="right" title="right">✓</b>' if is_right else '<b class="wrong" title="wrong">✗</b>'


def _figure(kind: str, image: np.ndarray, alt: str, caption: str) -> str:
    height, width = image.shape[:2]
    return (
        f'<figure class="{kind}"><img src="{_data_uri(image)}" width="{width}" height="{height}" loading="lazy" '
        f'alt="{escape(alt)}"><figcaption>{caption}</figcaption></figure>'
    )


def _data_uri(image: np.ndarray) -> str:
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
