"""An image and a question in, answers and an image of where the model looked out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.extraction.extractor import Extractor
from bua.extraction.extractor_config import ExtractorConfig
from bua.io.images import read_image
from bua.structures import Regions
from bua.visualization.draw import draw_attention
from bua.vqa.inference import Answer, VqaModel, answer_question, load_vqa


@dataclass
class Answered:
    """What ``answer`` found.

    Attributes:
        answers: best first.
        regions: of the image.
        attention: [n] float32, how much the model looked at each region; sums to 1.
        image: [H, W, 3] uint8 BGR, the regions that it looked at most, drawn.
    """

    answers: list[Answer]
    regions: Regions
    attention: np.ndarray
    drawing: np.ndarray


def answer(
    image: str | Path, question: str, *, extractor: ExtractorConfig, vqa: str | Path | VqaModel, top: int = 5
) -> Answered:
    """Answers a question about an image file.

    Args:
        extractor: the detector that the model's training features came from, and what is extracted; as
            ``bua.extraction.extractor_config.extractor_config`` makes it.
        vqa: a checkpoint of ``train_vqa``, or what ``load_vqa`` made of one.
        top: number of answers.

    Raises:
        InputError: a file that cannot be read, an empty question, a detector with other features.
    """
    device = extractor.cfg().MODEL.DEVICE
    model = vqa if isinstance(vqa, VqaModel) else load_vqa(vqa, device)
    regions = Extractor(extractor.load(), extractor.choice).regions_of(image)
    answers, attention = answer_question(model, regions, question, top)
    return Answered(answers, regions, attention, draw_attention(read_image(image), regions.boxes, attention))
