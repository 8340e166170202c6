"""The content of a page for one image: the objects that the detector found, and the results of the task models."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np


@dataclass
class AnswerPanel:
    """A question about an image with the model's answers.

    Attributes:
        question: Text of the question.
        answers: The best answers, best first, each with the accuracy that the model expects of it, 0 to 1.
        reference: The most frequent of the reference answers.
        drawn: [H, W, 3] uint8 BGR, the image with the model's attention.
    """

    question: str
    answers: Sequence[tuple[str, float]]
    reference: str
    drawn: np.ndarray


@dataclass
class WordPanel:
    """A word of a caption.

    Attributes:
        word: The word.
        share: Share of the attention that the outlined region has, 0 to 1; 0 if the model attended to no region.
        drawn: [H, W, 3] uint8 BGR, the image with the model's attention for this word.
    """

    word: str
    share: float
    drawn: np.ndarray


@dataclass
class CaptionPanel:
    """A caption of an image.

    Attributes:
        text: The caption.
        words: Its words, in order.
        references: Reference captions of the image.
        cider: CIDEr-D of the caption against these, as a fraction.
    """

    text: str
    words: Sequence[WordPanel]
    references: Sequence[str]
    cider: float


@dataclass
class PhrasePanel:
    """A sentence whose phrases were grounded in an image.

    Attributes:
        words: Words of the sentence.
        spans: Index of the first word of each phrase, and of the word after its last one. The phrases are in the order
            of the sentence and do not overlap.
        colors: BGR colour of each phrase's box in the drawing.
        right: Whether the box of each phrase overlaps with an annotated one with an IoU of at least 0.5.
        drawn: [H, W, 3] uint8 BGR, the image with the boxes of the phrases.
    """

    words: Sequence[str]
    spans: Sequence[tuple[int, int]]
    colors: Sequence[tuple[int, int, int]]
    right: Sequence[bool]
    drawn: np.ndarray

    def parts(self) -> Iterator[tuple[str, str | None, bool]]:
        """Yields the parts of the sentence: a text, its CSS colour if it is a phrase, and whether that is right."""
        done = 0
        for (start, end), (blue, green, red), is_right in zip(self.spans, self.colors, self.right):
            if start > done:
                yield " ".join(self.words[done:start]), None, False
            yield " ".join(self.words[start:end]), f"rgb({red},{green},{blue})", is_right
            done = end
        if done < len(self.words):
            yield " ".join(self.words[done:]), None, False


@dataclass
class GalleryImage:
    """An image of the gallery. Parts that are None or empty are left out.

    Attributes:
        title: Title of the image, such as its file name.
        predicted: [H, W, 3] uint8 BGR, the image with the boxes that the detector found.
        predicted_labels: Labels of these boxes.
        annotated: [H, W, 3] uint8 BGR, the image with the annotated boxes.
        annotated_labels: Labels of the annotated boxes.
        questions: Questions about the image.
        caption: Caption of the image.
        phrases: Phrases that were grounded in the image.
    """

    title: str
    predicted: np.ndarray
    predicted_labels: Sequence[str]
    annotated: np.ndarray | None = None
    annotated_labels: Sequence[str] = ()
    questions: Sequence[AnswerPanel] = field(default_factory=list)
    caption: CaptionPanel | None = None
    phrases: PhrasePanel | None = None

    @property
    def has_tasks(self) -> bool:
        """Whether there is a result of any task model."""
        return bool(self.questions or self.caption or self.phrases)


def data_uri(image: np.ndarray) -> str:
    """Returns an image ([H, W, 3] uint8 BGR) as a data URI, which holds it as a JPEG."""
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
