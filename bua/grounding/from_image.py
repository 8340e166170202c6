"""An image and a sentence in, the sentence's phrases with their boxes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.extraction.extractor import Extractor
from bua.extraction.extractor_config import ExtractorConfig
from bua.grounding.inference import GroundedPhrase, GroundingModel, ground_phrases, load_grounding
from bua.io.images import read_image
from bua.structures import Regions
from bua.visualization.draw import class_colors, draw_regions


@dataclass
class Grounded:
    """What ``ground`` found.

    Attributes:
        phrases: from left to right.
        regions: of the image.
        image: [H, W, 3] uint8 BGR, each phrase's box in a colour of its own.
    """

    phrases: list[GroundedPhrase]
    regions: Regions
    drawing: np.ndarray


def ground(
    image: str | Path, sentence: str, *, extractor: ExtractorConfig, grounding: str | Path | GroundingModel
) -> Grounded:
    """Finds what the phrases of a sentence mean in an image file.

    Args:
        sentence: its phrases may be in brackets, see ``ground_phrases``.
        extractor: the detector that the model's training features came from, and what is extracted; as
            ``bua.extraction.extractor_config.extractor_config`` makes it.
        grounding: a checkpoint of ``train_grounding``, or what ``load_grounding`` made of one.

    Raises:
        InputError: a file that cannot be read, a sentence without phrases, a detector with other features.
    """
    device = extractor.cfg().MODEL.DEVICE
    model = grounding if isinstance(grounding, GroundingModel) else load_grounding(grounding, device)
    regions = Extractor(extractor.load(), extractor.choice).regions_of(image)
    phrases = ground_phrases(model, regions, sentence)
    return Grounded(phrases, regions, draw_phrases(read_image(image), phrases))


def draw_phrases(image: np.ndarray, phrases: Sequence[GroundedPhrase]) -> np.ndarray:
    """Each phrase's box with its words on a copy of the image, the first phrase in the first of ``class_colors``'
    colours, and so on.

    Args:
        image: [H, W, 3] uint8 BGR.

    Returns:
        [H', W', 3] uint8 BGR, as ``draw_regions``.
    """
    boxes = np.array([phrase.box for phrase in phrases], np.float32).reshape(-1, 4)
    return draw_regions(image, boxes, [phrase.text for phrase in phrases], class_colors(range(len(phrases))))
