"""Captions images, and draws the model's attention for each word."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.captioning.inference import Caption, Captioner, caption_regions, load_captioner
from bua.extraction.image_detector import ImageDetector
from bua.io.image_inputs import ImageInput, as_bgr, name_of
from bua.io.images import naming_image
from bua.structures import Regions
from bua.visualization.strip import draw_strip


@dataclass
class CaptionedImage:
    """The captions of an image.

    Attributes:
        captions: The captions that the beam search ended with, best first.
        regions: The image's regions.
        strip: [H, W, 3] uint8 BGR, for each word of the best caption the image with the model's attention.
    """

    captions: list[Caption]
    regions: Regions
    strip: np.ndarray


def caption(
    image: ImageInput,
    *,
    detector: ImageDetector,
    captioner: str | Path | Captioner | Sequence[str | Path | Captioner],
    overrides: Sequence[str] = (),
) -> CaptionedImage:
    """Captions an image.

    Args:
        image: An image in one of the forms that ``bua.io.image_inputs.as_bgr`` takes.
        detector: The detector that extracted the captioner's training features, with the choice of regions, as
            ``bua.extraction.image_detector.open_detector`` loads it.
        captioner: A checkpoint of ``train_caption``, or what ``load_captioner`` returns for one; or several for an
            ensemble.
        overrides: As for ``load_captioner``; for checkpoints.

    Raises:
        InputError: A file cannot be read, or the captioner was trained on features of another dimension.
    """
    return next(caption_all([image], detector=detector, captioner=captioner, overrides=overrides))


def caption_all(
    images: Iterable[ImageInput],
    *,
    detector: ImageDetector,
    captioner: str | Path | Captioner | Sequence[str | Path | Captioner],
    overrides: Sequence[str] = (),
) -> Iterator[CaptionedImage]:
    """Yields the captions of images, with one loaded captioner; arguments and errors as for ``caption``."""
    several = [captioner] if isinstance(captioner, str | Path | Captioner) else captioner
    device = str(detector.device)
    captioners = [one if isinstance(one, Captioner) else load_captioner(one, device, overrides) for one in several]
    for image in images:
        decoded = as_bgr(image)
        with naming_image(name_of(image)):
            (regions,) = detector.regions([decoded])
        captions = caption_regions(captioners, regions)
        best = captions[0]
        yield CaptionedImage(captions, regions, draw_strip(decoded, regions.boxes, best.words, best.attention))
