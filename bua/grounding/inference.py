"""Phrases grounded by a trained model: those of a data set, or those of a sentence about an image's regions."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bua.checkpoint import read_checkpoint
from bua.errors import InputError
from bua.grounding.ban import BANGrounding
from bua.grounding.batches import evaluation_batches, region_boxes
from bua.grounding.config import build_model, get_cfg
from bua.grounding.dataset import GroundingDataset, load_phrase_tags, load_vocabulary
from bua.grounding.phrases import check_tags, find_phrases
from bua.grounding.recall import chance_recall, first_hits, grounding_recall, recall_at, recall_by_type
from bua.grounding.released import RELEASED_MODELS, is_grounding_model
from bua.structures import Regions
from bua.tasks.checkpoint import (
    TaskModel,
    build_fitting,
    missing_parts,
    reported_damage,
    restore_cfg,
    restore_weights,
)
from bua.tasks.region_batches import RegionBatch, RegionReader
from bua.tasks.released import constructor_arguments, read_released_checkpoint
from bua.tasks.training import progress_bar
from bua.tasks.words import WordVocabulary
from bua.weights.layouts import Weights
from bua.weights.zoo import fetch

logger = logging.getLogger(__name__)


@dataclass
class GroundingModel(TaskModel):
    """A grounding model: ``BANGrounding`` with its vocabulary.

    Attributes:
        vocabulary: The words of sentences.
        phrase_tags: For each word its usual place in phrases, see ``bua.grounding.phrases``.
    """

    model: BANGrounding
    vocabulary: WordVocabulary
    phrase_tags: list[str]

    def vocabularies(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary.words, "phrase_tags": self.phrase_tags}


@dataclass
class GroundedPhrase:
    """A phrase and its place in the image.

    Attributes:
        text: The words of the phrase.
        start, end: The phrase is words ``start`` to ``end`` - 1 of the sentence.
        region: Index of the best region.
        box: [4] float32 x1y1x2y2 in pixels, the box of that region.
        scores: [n] float32, 0 to 1, for each region the probability, by the model, that it overlaps with what the
            phrase means. The scores do not sum to 1.
    """

    text: str
    start: int
    end: int
    region: int
    box: np.ndarray
    scores: np.ndarray


@dataclass
class Predictions:
    """The regions that a model predicts for the P phrases of a data set.

    Attributes:
        dataset: The data set.
        rankings: P arrays [n] int64: the indices of all regions of the phrase's image, best first.
        boxes: The boxes [n, 4] of the regions by image id.
    """

    dataset: GroundingDataset
    rankings: list[np.ndarray]
    boxes: dict[int, np.ndarray]

    def recall(self, protocol: str) -> dict[str, float]:
        """Returns the scores of ``bua.grounding.recall.grounding_recall``."""
        return grounding_recall(self._ranked(), self._truth(), protocol=protocol)

    def scores(self, protocol: str) -> dict[str, dict[str, Any]]:
        """Returns the recall of "all" phrases; "chance", the recall of regions in random order; and "types", the recall
        of each type of phrase."""
        ranked, truth = self._ranked(), self._truth()
        first = first_hits(ranked, truth, protocol=protocol)
        return {
            "all": recall_at(first),
            "chance": chance_recall(ranked, truth, protocol=protocol),
            "types": recall_by_type(first, self.dataset.types),
        }

    def _ranked(self) -> list[np.ndarray]:
        images = self.dataset.image_ids[self.dataset.sentence_of].tolist()
        return [self.boxes[image_id][order] for image_id, order in zip(images, self.rankings)]

    def _truth(self) -> list[np.ndarray]:
        return [self.dataset.boxes_of(phrase) for phrase in range(len(self.rankings))]


def load_grounding(path: str | Path, device: str = "cpu", *, folder: str | Path | None = None) -> GroundingModel:
    """Reads a model that ``train_grounding`` saved, or ban-vqa's model, converted or as it is, ready to ground.

    Args:
        folder: A folder that ``prepare_flickr30k`` wrote with the vocabulary of ban-vqa's model, which its checkpoint
            lacks.

    Raises:
        InputError: There is no such file, or it is not such a checkpoint.
    """
    path = fetch(path)
    released = read_released_checkpoint(path, RELEASED_MODELS)
    saved: dict[str, Any] = read_checkpoint(path) if released is None else {"model": released[1]}
    missing = missing_parts(saved, ("vocabulary", "phrase_tags"))
    if missing:
        if not is_grounding_model(saved.get("model", {})):
            raise InputError(
                f"{path}: not a model for grounding; name a checkpoint of bua train-grounding or of ban-vqa"
            )
        if folder is None:
            raise InputError(
                f"{path}: lacks {', '.join(missing)}; also name a folder that bua prepare-flickr30k --vocabulary wrote"
            )
        saved = _add_vocabulary(saved["model"], folder)
    with reported_damage(path):
        cfg = restore_cfg(get_cfg(), saved, path)
        vocabulary = WordVocabulary(saved["vocabulary"])
        check_tags(saved["phrase_tags"], vocabulary, path)
        model = build_fitting(lambda: build_model(cfg, len(vocabulary), saved["feature_dim"]), saved, path)
        grounding = GroundingModel(model, cfg, saved["feature_dim"], vocabulary, saved["phrase_tags"])
        return restore_weights(grounding, saved, path, device)


@torch.inference_mode()
def predict(
    grounding: GroundingModel,
    dataset: GroundingDataset,
    reader: RegionReader,
    *,
    batch_size: int = 256,
    progress: bool = True,
) -> Predictions:
    """Ranks the regions of its image for each phrase of a data set.

    Args:
        dataset: The sentences and their phrases. Their vocabulary may differ from the model's.
        reader: Reader of features that have all their images.
        batch_size: Number of sentences that go through the model at a time.
        progress: Whether to show progress bars.

    Raises:
        InputError: The features lack images, or their dimension is not the model's.
    """
    grounding.check_features(reader.dim, reader.name)
    model, device = grounding.model.eval(), grounding.device
    boxes = region_boxes(dataset, reader, progress=progress)
    sentences = dataset.in_vocabulary(grounding.vocabulary)
    rankings: list[np.ndarray] = [np.zeros(0, np.int64)] * len(dataset.spans)
    with progress_bar(len(dataset), "sentences", progress) as bar:
        for batch in evaluation_batches(sentences, reader, batch_size, device=device):
            logits = model(batch.features, batch.mask, batch.words, batch.positions, batch.phrase_mask)
            # A region's logit may be lower than that of padding, which must still come last.
            logits = logits.masked_fill(~batch.mask.unsqueeze(1), -torch.inf)
            orders = logits.argsort(dim=2, descending=True, stable=True).cpu().numpy()
            counts = batch.mask.sum(dim=1).tolist()
            for sentence, order, count in zip(batch.sentences.tolist(), orders, counts):
                first, end = dataset.phrase_offsets[sentence : sentence + 2].tolist()
                rankings[first:end] = order[: end - first, :count]
            bar.update(len(batch))
    return Predictions(dataset, rankings, boxes)


@torch.inference_mode()
def ground_phrases(grounding: GroundingModel, regions: Regions, sentence: str) -> list[GroundedPhrase]:
    """Finds the region of an image that each phrase of a sentence means.

    Args:
        regions: The image's n regions, from the detector that extracted the model's training features.
        sentence: A sentence with its phrases in brackets, as in "[a man] in [a hat]". Without brackets, they are those
            that ``bua.grounding.phrases.find_phrases`` finds, which are not always those that people would mark.

    Returns:
        The phrases from left to right.

    Raises:
        InputError: There is no phrase in the sentence; there are no regions; or the model was trained on features of
            another dimension.
    """
    source = f"image {regions.image_id}"
    if not len(regions):
        raise InputError(f"{source}: no regions; extract at least one (--min-boxes)")
    grounding.check_features(regions.features.shape[1], source)
    vocabulary = grounding.vocabulary
    words, spans = find_phrases(sentence, vocabulary, grounding.phrase_tags)
    unknown = [word for word in words if word not in vocabulary]
    if unknown:
        logger.warning("the model does not know %s; it takes %r instead", ", ".join(unknown), vocabulary.words[-1])
    batch = RegionBatch.of_image(regions).to(grounding.device)
    ids = torch.tensor([[vocabulary.id_of(word) for word in words]], device=grounding.device)
    positions = torch.tensor([[end - 1 for _, end in spans]], device=grounding.device)
    phrase_mask = torch.ones_like(positions, dtype=torch.bool)
    logits = grounding.model.eval()(batch.features, batch.mask, ids, positions, phrase_mask)
    scores = logits[0].sigmoid().cpu().numpy()
    best = scores.argmax(axis=1).tolist()
    return [
        GroundedPhrase(" ".join(words[start:end]), start, end, region, regions.boxes[region], row)
        for (start, end), region, row in zip(spans, best, scores)
    ]


def _add_vocabulary(weights: Weights, folder: str | Path) -> dict[str, Any]:
    """Returns the content of a checkpoint from the weights of ban-vqa's model and the vocabulary of a folder."""
    vocabulary = load_vocabulary(folder)
    arguments: dict[str, Any] = constructor_arguments(weights)
    # Weights of another vocabulary then do not fit, and ``restore_weights`` says so.
    arguments.pop("num_words")
    feature_dim = arguments.pop("feature_dim")
    cfg = get_cfg()
    cfg.MODEL.BAN.update({name.upper(): value for name, value in arguments.items()})
    return {
        "model": weights,
        "config": cfg.dump(),
        "vocabulary": vocabulary.words,
        "phrase_tags": load_phrase_tags(folder),
        "feature_dim": feature_dim,
    }
