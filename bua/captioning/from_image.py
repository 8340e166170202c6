"""Captions image files, and draws the model's attention for each word."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.captioning.inference import Caption, Captioner, caption_regions, load_captioner
from bua.extraction.extractor_config import ExtractorConfig
from bua.extraction.image_regions import image_regions
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
    image: str | Path,
    *,
    extractor: ExtractorConfig,
    captioner: str | Path | Captioner | Sequence[str | Path | Captioner],
    overrides: Sequence[str] = (),
) -> CaptionedImage:
    """Captions an image file.

    Args:
        extractor: The detector that extracted the captioner's training features, and the choice of regions; as
            ``bua.extraction.extractor_config.extractor_config`` makes it.
        captioner: A checkpoint of ``train_caption``, or what ``load_captioner`` returns for one; or several for an
            ensemble.
        overrides: As for ``load_captioner``; for checkpoints.

    Raises:
        InputError: A file cannot be read, or the captioner was trained on features of another dimension.
    """
    return next(caption_all([image], extractor=extractor, captioner=captioner, overrides=overrides))


def caption_all(
    images: Iterable[str | Path],
    *,
    extractor: ExtractorConfig,
    captioner: str | Path | Captioner | Sequence[str | Path | Captioner],
    overrides: Sequence[str] = (),
) -> Iterator[CaptionedImage]:
    """Yields the captions of image files, with one detector; arguments and errors as for ``caption``."""
    several = [captioner] if isinstance(captioner, str | Path | Captioner) else captioner
    device = extractor.cfg().MODEL.DEVICE
    captioners = [one if isinstance(one, Captioner) else load_captioner(one, device, overrides) for one in several]
    for decoded, regions in image_regions(images, extractor):
        captions = caption_regions(captioners, regions)
        best = captions[0]
        yield CaptionedImage(captions, regions, draw_strip(decoded, regions.boxes, best.words, best.attention))
