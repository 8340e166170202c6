"""Answers a question about an image file, and draws the model's attention."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.extraction.extractor_config import ExtractorConfig
from bua.extraction.image_regions import image_regions
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
    image: str | Path, question: str, *, extractor: ExtractorConfig, vqa: str | Path | VqaModel, top: int = 5
) -> AnsweredImage:
    """Answers a question about an image file.

    Args:
        extractor: The detector that extracted the model's training features, and the choice of regions; as
            ``bua.extraction.extractor_config.extractor_config`` makes it.
        vqa: A checkpoint of ``train_vqa``, or what ``load_vqa`` returns for one.
        top: Number of answers.

    Raises:
        InputError: A file cannot be read, the model knows no word of the question, or it was trained on features of
            another dimension.
    """
    model = vqa if isinstance(vqa, VqaModel) else load_vqa(vqa, extractor.cfg().MODEL.DEVICE)
    ((decoded, regions),) = image_regions([image], extractor)
    answers, attention = answer_question(model, regions, question, top)
    best = answers[0].text if answers else ""
    return AnsweredImage(answers, regions, attention, draw_answer(decoded, regions.boxes, attention, question, best))
