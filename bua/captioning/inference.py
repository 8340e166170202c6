"""Captions of trained models: of the images of a data set, or of one image's regions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor

from bua.captioning.batches import image_batches
from bua.captioning.config import build_model, check_values, constraints, get_cfg
from bua.captioning.decoding import DecodedCaptions, beam_search
from bua.captioning.updown import UpDownCaptioner
from bua.captioning.vocabulary import CaptionVocabulary
from bua.errors import InputError
from bua.structures import Regions
from bua.tasks.box_features import join_boxes
from bua.tasks.checkpoint import (
    TaskModel,
    build_fitting,
    read_task_checkpoint,
    reported_damage,
    restore_cfg,
    restore_weights,
)
from bua.tasks.confident_regions import confident_rows
from bua.tasks.region_batches import RegionBatch, RegionReader
from bua.tasks.training import progress_bar

# Keys of DATA that say what a captioner reads of an image.
INPUT_KEYS = ("BOXES", "MAX_BOXES", "NORMALIZE", "LOOK")


@dataclass
class Captioner(TaskModel):
    """A captioner: ``UpDownCaptioner`` with its vocabulary.

    ``cfg.DATA`` says what it reads of an image, and ``cfg.DECODING`` how captions are made. ``feature_dim`` does not
    count what ``DATA.BOXES`` adds.

    Attributes:
        vocabulary: The words of captions.
    """

    model: UpDownCaptioner
    vocabulary: CaptionVocabulary

    @property
    def max_boxes(self) -> int | None:
        """Number of regions of an image that the model reads, or None for all."""
        return self.cfg.DATA.MAX_BOXES or None

    def vocabularies(self) -> dict[str, Any]:
        return {"words": self.vocabulary.words, "tokenizer": self.vocabulary.tokenizer}

    def inputs(self, batch: RegionBatch) -> tuple[Tensor, Tensor]:
        """Returns what the model reads of a batch on its device: features [B, n, D] and mask [B, n]."""
        if not self.cfg.DATA.LOOK:
            batch = batch.without_regions()
        features = batch.features
        if self.cfg.DATA.NORMALIZE:
            features = F.normalize(features, dim=-1)
        if self.cfg.DATA.BOXES:
            features = join_boxes(features, batch.boxes, sides=False)
        return features, batch.mask


@dataclass
class Caption:
    """A caption of an image.

    Attributes:
        text: The caption as people write it, in lower case.
        words: Its words, or word pieces, as the vocabulary has them.
        score: The score that the beam search ranks captions by: the logarithm of the probability, by default.
        attention: [words, n] float32, the model's attention to each region for each word; a row sums to 1.
    """

    text: str
    words: list[str]
    score: float
    attention: np.ndarray


def load_captioner(path: str | Path, device: str = "cpu", overrides: Sequence[str] = ()) -> Captioner:
    """Reads a model that ``train_caption`` saved, ready to caption.

    Args:
        overrides: Keys of ``DECODING`` and their values, such as "DECODING.BEAM", "3".

    Raises:
        InputError: There is no such file, or it is not such a checkpoint; an override cannot be used.
    """
    advice = "name a checkpoint that bua train-caption wrote"
    saved = read_task_checkpoint(path, ("words", "tokenizer"), advice)
    with reported_damage(path):
        cfg = restore_cfg(get_cfg(), saved, path, check_values)
        _override(cfg, list(overrides))
        vocabulary = CaptionVocabulary(saved["words"], saved["tokenizer"])
        model = build_fitting(lambda: build_model(cfg, vocabulary, saved["feature_dim"]), saved, path)
        return restore_weights(Captioner(model, cfg, saved["feature_dim"], vocabulary), saved, path, device)


def predict(
    captioners: Sequence[Captioner],
    image_ids: np.ndarray,
    reader: RegionReader,
    *,
    name: str = "image_ids",
    batch_size: int = 100,
    progress: bool = True,
) -> dict[int, list[int]]:
    """Predicts the best caption of each image, with one captioner or an ensemble.

    Args:
        captioners: The members of an ensemble predict each word together, with the ``DECODING`` of the first one.
        image_ids: [N] ids of images, all different.
        reader: Reader of features that have all these images.
        name: Name of the data set, for the message about images without features.
        batch_size: Number of images that go through a model at a time.
        progress: Whether to show a progress bar.

    Returns:
        The ids of the words, without begin and end, by image id, in the order of ``image_ids``.

    Raises:
        InputError: The captioners differ in what they read; the features lack images; or their dimension is not the
            captioners'.
    """
    first = captioners[0]
    check_ensemble(captioners)
    first.check_features(reader.dim, reader.name)
    options: dict[str, Any] = {"max_boxes": first.max_boxes, "device": first.device}
    batches = image_batches(image_ids, reader, batch_size, name=name, **options)
    found: dict[int, list[int]] = {}
    with progress_bar(len(image_ids), "images", progress) as bar:
        for batch in batches:
            captions = _decode(captioners, batch)
            found |= zip(batch.image_ids.tolist(), (beam[0] for beam in captions.words(first.vocabulary.end)))
            bar.update(len(batch))
    return {image_id: found[image_id] for image_id in image_ids.tolist()}


def caption_regions(captioners: Sequence[Captioner], regions: Regions) -> list[Caption]:
    """Captions an image.

    Args:
        captioners: As for ``predict``.
        regions: The image's n regions, from the detector that extracted the captioners' training features.

    Returns:
        The captions that the beam search ends with, best first.

    Raises:
        InputError: As for ``predict``.
    """
    first = captioners[0]
    check_ensemble(captioners)
    first.check_features(regions.features.shape[1], f"image {regions.image_id}")
    captions = _decode(captioners, RegionBatch.of_image(regions, first.max_boxes))
    taken = confident_rows(len(regions), regions.object_scores, first.max_boxes)
    captions = DecodedCaptions(*(part.cpu() for part in captions))
    found = []
    for ids, score, attention in zip(
        captions.words(first.vocabulary.end)[0], captions.scores[0], captions.attention[0]
    ):
        # Regions that the captioners do not take get no attention.
        of_regions = np.zeros((len(ids), len(regions)), np.float32)
        of_regions[:, slice(None) if taken is None else taken] = attention[: len(ids)].numpy()
        words = [first.vocabulary.words[number] for number in ids]
        if torch.isfinite(score):
            found.append(Caption(first.vocabulary.decode(ids), words, float(score), of_regions))
    return found


def check_ensemble(captioners: Sequence[Captioner]) -> None:
    """Checks that captioners can predict words together.

    Raises:
        InputError: They have different vocabularies, or read different things of an image.
    """
    first = captioners[0]
    for other in captioners[1:]:
        if other.vocabulary != first.vocabulary:
            raise InputError("ensemble: the captioners have different vocabularies; train them from one folder")
        if other.feature_dim != first.feature_dim or any(
            other.cfg.DATA[key] != first.cfg.DATA[key] for key in INPUT_KEYS
        ):
            raise InputError(
                "ensemble: the captioners read different things of an image; train them with the same features and "
                f"{', '.join(f'DATA.{key}' for key in INPUT_KEYS)}"
            )


@torch.inference_mode()
def _decode(captioners: Sequence[Captioner], batch: RegionBatch) -> DecodedCaptions:
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
    """Sets keys of ``DECODING``."""
    known = [f"DECODING.{key}" for key in cfg.DECODING]
    unknown = [key for key in pairs[::2] if key not in known]
    if unknown or len(pairs) % 2:
        raise InputError(f"{(unknown or pairs)[-1]}: give keys and values; the keys are {', '.join(known)}")
    try:
        cfg.merge_from_list(pairs)
    except ValueError as error:
        raise InputError(f"{' '.join(pairs)}: {' '.join(str(error).split())}") from error
    check_values(cfg, "decoding")
