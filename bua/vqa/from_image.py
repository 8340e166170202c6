"""Answers a question about an image, and draws the model's attention."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.extraction.image_detector import ImageDetector
from bua.io.image_inputs import ImageInput, as_bgr, name_of
from bua.io.images import naming_image
from bua.structures import Regions
from bua.visualization.draw import draw_answer
from bua.vqa.inference import Answer, VqaModel, answer_question, load_vqa


@dataclass
class AnsweredImage:
    """The answers to a question about an image.

    Attributes:
        answers: The best answers, best first.
        regions: The image's n regions.
        attention: [n] float32, the model's attention to each region; sums to 1, or is 0 if the model sees no regions.
        drawing: [H, W, 3] uint8 BGR, the image with the regions that get the most attention, below the question and
            the best answer.
    """

    answers: list[Answer]
    regions: Regions
    attention: np.ndarray
    drawing: np.ndarray


def answer(
    image: ImageInput, question: str, *, detector: ImageDetector, vqa: str | Path | VqaModel, top: int = 5
) -> AnsweredImage:
    """Answers a question about an image.

    Args:
        image: An image in one of the forms that ``bua.io.image_inputs.as_bgr`` takes.
        detector: The detector that extracted the model's training features, with the choice of regions, as
            ``bua.extraction.image_detector.open_detector`` loads it.
        vqa: A checkpoint of ``train_vqa``, or what ``load_vqa`` returns for one.
        top: Number of answers, 1 or more.

    Raises:
        InputError: A file cannot be read, the model knows no word of the question, or it was trained on features of
            another dimension.
    """
    model = vqa if isinstance(vqa, VqaModel) else load_vqa(vqa, str(detector.device))
    decoded = as_bgr(image)
    with naming_image(name_of(image)):
        (regions,) = detector.regions([decoded])
    answers, attention = answer_question(model, regions, question, top)
    return AnsweredImage(
        answers, regions, attention, draw_answer(decoded, regions.boxes, attention, question, answers[0].text)
    )
