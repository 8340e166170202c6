"""An image in, its captions and a strip of images of where the model looked for each word out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bua.captioning.inference import Caption, Captioner, caption_regions, load_captioner
from bua.extraction.extractor import Extractor
from bua.extraction.extractor_config import ExtractorConfig
from bua.io.images import read_image
from bua.structures import Regions
from bua.visualization.strip import draw_strip


@dataclass
class Captioned:
    """What ``caption`` found.

    Attributes:
        captions: that the beam ended with, best first.
        regions: of the image.
        strip: [H, W, 3] uint8 BGR, an image for each word of the best caption: where the model looked.
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
) -> Captioned:
    """Captions an image file.

    Args:
        extractor: the detector that the captioner's training features came from, and what is extracted; as
            ``bua.extraction.extractor_config.extractor_config`` makes it.
        captioner: a checkpoint of ``train_caption``, or what ``load_captioner`` made of one, or several that predict
            together.
        overrides: as for ``load_captioner``, for checkpoints.

    Raises:
        InputError: a file that cannot be read, a detector with other features.
    """
    return next(caption_all([image], extractor=extractor, captioner=captioner, overrides=overrides))


def caption_all(
    images: Iterable[str | Path],
    *,
    extractor: ExtractorConfig,
    captioner: str | Path | Captioner | Sequence[str | Path | Captioner],
    overrides: Sequence[str] = (),
) -> Iterator[Captioned]:
    """Captions image files one after the other with one detector; arguments and errors as for ``caption``."""
    several = [captioner] if isinstance(captioner, str | Path | Captioner) else captioner
    device = extractor.cfg().MODEL.DEVICE
    captioners = [one if isinstance(one, Captioner) else load_captioner(one, device, overrides) for one in several]
    loaded = Extractor(extractor.load(), extractor.choice)
    for image in images:
        regions = loaded.regions_of(image)
        captions = caption_regions(captioners, regions)
        best = captions[0]
        strip = draw_strip(read_image(image), regions.boxes, best.words, best.attention)
        yield Captioned(captions, regions, strip)
