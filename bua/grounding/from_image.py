"""Finds the phrases of a sentence in an image, and draws their boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.extraction.image_detector import ImageDetector
from bua.grounding.inference import GroundedPhrase, GroundingModel, ground_phrases, load_grounding
from bua.io.image_inputs import ImageInput, as_bgr, name_of
from bua.io.images import naming_image
from bua.structures import Regions
from bua.visualization.draw import class_colors, draw_regions


@dataclass
class GroundedImage:
    """The phrases of a sentence with their boxes in an image.

    Attributes:
        phrases: The phrases from left to right.
        regions: The image's regions.
        drawing: [H, W, 3] uint8 BGR, the image with each phrase's box in a separate colour.
    """

    phrases: list[GroundedPhrase]
    regions: Regions
    drawing: np.ndarray


def ground(
    image: ImageInput, sentence: str, *, detector: ImageDetector, grounding: str | Path | GroundingModel
) -> GroundedImage:
    """Finds the phrases of a sentence in an image.

    Args:
        image: An image in one of the forms that ``bua.io.image_inputs.as_bgr`` takes.
        sentence: The sentence; its phrases may be in brackets, see ``ground_phrases``.
        detector: The detector that extracted the model's training features, with the choice of regions, as
            ``bua.extraction.image_detector.open_detector`` loads it.
        grounding: A checkpoint of ``train_grounding``, or what ``load_grounding`` returns for one.

    Raises:
        InputError: A file cannot be read, the sentence has no phrases, or the model was trained on features of another
            dimension.
    """
    model = grounding if isinstance(grounding, GroundingModel) else load_grounding(grounding, str(detector.device))
    decoded = as_bgr(image)
    with naming_image(name_of(image)):
        (regions,) = detector.regions([decoded])
    phrases = ground_phrases(model, regions, sentence)
    return GroundedImage(phrases, regions, draw_phrases(decoded, phrases))


def draw_phrases(image: np.ndarray, phrases: Sequence[GroundedPhrase]) -> np.ndarray:
    """Draws each phrase's box with its words on a copy of an image, in the colours of ``class_colors`` in their order.

    Args:
        image: [H, W, 3] uint8 BGR.

    Returns:
        [H', W', 3] uint8 BGR, as ``draw_regions``.
    """
    boxes = np.array([phrase.box for phrase in phrases], np.float32).reshape(-1, 4)
    return draw_regions(image, boxes, [phrase.text for phrase in phrases], class_colors(range(len(phrases))))
