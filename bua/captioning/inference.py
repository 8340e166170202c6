"""Captions by trained models: of the images of a data set, or of one image's regions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor

from bua.captioning.batches import image_batches
from bua.captioning.config import build_model, check_values, constraints, get_cfg
from bua.captioning.decoding import Captions, beam_search
from bua.captioning.updown import UpDownCaptioner
from bua.captioning.vocabulary import CaptionVocabulary
from bua.checkpoint import read_checkpoint
from bua.errors import InputError
from bua.structures import Regions
from bua.tasks.region_batches import RegionBatch, RegionReader
from bua.tasks.training import progress_bar, restore_cfg, restore_weights

# What a checkpoint of a captioner holds beside the weights.
NEEDED = ("model", "config", "words", "tokenizer", "feature_dim")
# Keys of DATA that say what of an image a captioner reads.
READ = ("BOXES", "MAX_BOXES", "NORMALIZE", "LOOK")


@dataclass
class Captioner:
    """A model with what it takes to caption images.

    Attributes:
        cfg: as ``bua.captioning.config.get_cfg``; its ``DATA`` says what the model reads, ``DECODING`` how captions
            are made.
        feature_dim: of the features that it reads.
    """

    model: UpDownCaptioner
    vocabulary: CaptionVocabulary
    cfg: CfgNode
    feature_dim: int

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def describe(self) -> dict:
        """What ``load_captioner`` needs in a checkpoint beside the weights."""
        return {
            "config": self.cfg.dump(),
            "words": self.vocabulary.words,
            "tokenizer": self.vocabulary.tokenizer,
            "feature_dim": self.feature_dim,
        }

    def inputs(self, batch: RegionBatch) -> tuple[Tensor, Tensor]:
        """What the model reads of a batch on its device: features [B, n, D] and mask [B, n]."""
        features, mask = batch.features, batch.mask
        if self.cfg.DATA.NORMALIZE:
            features = F.normalize(features, dim=-1)
        if self.cfg.DATA.BOXES:
            sides = batch.boxes[..., 2:] - batch.boxes[..., :2]
            features = torch.cat([features, batch.boxes, sides.prod(dim=-1, keepdim=True)], dim=-1)
        return features, mask if self.cfg.DATA.LOOK else torch.zeros_like(mask)

    @property
    def max_boxes(self) -> int | None:
        return self.cfg.DATA.MAX_BOXES or None


@dataclass
class Caption:
    """What a captioner says of an image.

    Attributes:
        text: as people write it, in lower case.
        words: its words, or word pieces, as the vocabulary has them.
        score: what captions compete by: the logarithm of the probability, by default.
        attention: [words, n] float32, how much the model looked at each region for each word; a row sums to 1.
    """

    text: str
    words: list[str]
    score: float
    attention: np.ndarray


def load_captioner(path: str | Path, device: str = "cpu", overrides: Sequence[str] = ()) -> Captioner:
    """A model that ``train_caption`` saved, ready to caption.

    Args:
        overrides: keys of ``DECODING`` and their values, such as "DECODING.BEAM", "3".

    Raises:
        InputError: no such file, or something else than such a checkpoint; overrides that do not fit.
    """
    saved = read_checkpoint(path)
    lacking = [name for name in NEEDED if name not in saved]
    if lacking:
        raise InputError(f"{path}: lacks {', '.join(lacking)}; name a checkpoint that tools/train_caption.py wrote")
    cfg = get_cfg()
    restore_cfg(cfg, saved["config"], path)
    _override(cfg, list(overrides))
    vocabulary = CaptionVocabulary(saved["words"], saved["tokenizer"])
    model = build_model(cfg, vocabulary, saved["feature_dim"])
    restore_weights(model, saved["model"], path)
    return Captioner(model.to(device).eval(), vocabulary, cfg, saved["feature_dim"])


def predict(
    captioners: Sequence[Captioner],
    image_ids: np.ndarray,
    reader: RegionReader,
    *,
    name: str = "those asked for",
    batch_size: int = 100,
    progress: bool = True,
) -> dict[int, list[int]]:
    """The best caption of each image, by a captioner or by several together.

    Args:
        captioners: several predict each word together; the first one's ``DECODING`` is taken.
        image_ids: [N], all different.
        reader: of all their images.
        name: what asks for them, for the message where some lack features.

    Returns:
        ids of words, without begin and end, by image id, in the order of ``image_ids``.

    Raises:
        InputError: captioners that do not go together, or were trained on other features; images that the features
            lack.
    """
    first = captioners[0]
    check_together(captioners)
    if reader.dim != first.feature_dim:
        raise InputError(
            f"{reader.name}: {reader.dim} numbers a region, where the captioner learned from {first.feature_dim}; "
            "use features of the detector that it learned from"
        )
    batches = image_batches(image_ids, reader, batch_size, name=name, max_boxes=first.max_boxes)
    found = {}
    with progress_bar(len(image_ids), "images", progress) as bar:
        for batch in batches:
            captions = _decode(captioners, batch)
            found |= zip(batch.image_ids.tolist(), (beam[0] for beam in captions.words(first.vocabulary.end)))
            bar.update(len(batch))
    return {image_id: found[image_id] for image_id in image_ids.tolist()}


def caption_regions(captioners: Sequence[Captioner], regions: Regions) -> list[Caption]:
    """The captions of an image that the beam ends with, best first.

    Args:
        captioners: as for ``predict``.
        regions: of the image, from the detector that the captioners' features came from.

    Raises:
        InputError: captioners that do not go together, or were trained on other features.
    """
    first = captioners[0]
    check_together(captioners)
    if regions.features.shape[1] != first.feature_dim:
        raise InputError(
            f"{regions.image_id}: {regions.features.shape[1]} numbers a region, where the captioner learned from "
            f"{first.feature_dim}; use the detector that its features came from"
        )
    used = slice(first.max_boxes)
    sides = np.array([regions.width, regions.height] * 2, np.float32)
    batch = RegionBatch(
        torch.from_numpy(regions.features[used])[None],
        torch.from_numpy(regions.boxes[used] / sides)[None],
        torch.ones(1, len(regions.boxes[used]), dtype=torch.bool),
        np.array([regions.image_id]),
    )
    captions = _decode(captioners, batch)
    found = []
    for ids, score, attention in zip(
        captions.words(first.vocabulary.end)[0], captions.scores[0], captions.attention[0]
    ):
        looked = np.zeros((len(ids), len(regions)), np.float32)
        looked[:, used] = attention[: len(ids)].cpu().numpy()
        words = [first.vocabulary.words[number] for number in ids]
        if torch.isfinite(score):
            found.append(Caption(first.vocabulary.decode(ids), words, float(score), looked))
    return found


def check_together(captioners: Sequence[Captioner]) -> None:
    """
    Raises:
        InputError: captioners that cannot caption together: other words, or other inputs.
    """
    first = captioners[0]
    for other in captioners[1:]:
        if other.vocabulary != first.vocabulary:
            raise InputError("ensemble: the captioners have different vocabularies; train them from one folder")
        if other.feature_dim != first.feature_dim or any(other.cfg.DATA[key] != first.cfg.DATA[key] for key in READ):
            raise InputError(
                "ensemble: the captioners read different things of an image; train them with the same features and "
                f"{', '.join(f'DATA.{key}' for key in READ)}"
            )


@torch.inference_mode()
def _decode(captioners: Sequence[Captioner], batch: RegionBatch) -> Captions:
    first = captioners[0]
    for captioner in captioners:
        captioner.model.eval()
    decoding = first.cfg.DECODING
    return beam_search(
        [captioner.model for captioner in captioners],
        *first.inputs(batch.to(first.device)),
        beam=decoding.BEAM,
        max_length=first.cfg.DATA.MAX_LENGTH,
        constraints=constraints(first.cfg, first.vocabulary),
        length_penalty=decoding.LENGTH_PENALTY or None,
        alpha=decoding.ALPHA,
    )


def _override(cfg: CfgNode, pairs: list[str]) -> None:
    known = [f"DECODING.{key}" for key in cfg.DECODING]
    unknown = [key for key in pairs[::2] if key not in known]
    if unknown or len(pairs) % 2:
        raise InputError(f"{(unknown or pairs)[-1]}: give keys and values; the keys are {', '.join(known)}")
    try:
        cfg.merge_from_list(pairs)
    except ValueError as error:
        raise InputError(f"{' '.join(pairs)}: {' '.join(str(error).split())}") from error
    check_values(cfg, "decoding")
