"""Phrases of sentences grounded by a trained model: of a data set, or of a sentence about an image's regions."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode

from bua.checkpoint import read_checkpoint
from bua.errors import InputError
from bua.grounding.ban import BANGrounding
from bua.grounding.batches import evaluation_batches, region_boxes
from bua.grounding.config import build_model, get_cfg
from bua.grounding.dataset import GroundingDataset, load_phrase_tags, load_vocabulary
from bua.grounding.phrases import find_phrases
from bua.grounding.recall import chance_recall, first_hits, grounding_recall, recall_at, recall_by_type
from bua.structures import Regions
from bua.tasks.region_batches import RegionReader
from bua.tasks.training import progress_bar, restore_cfg, restore_weights
from bua.tasks.words import QuestionVocabulary
from bua.vqa.released import constructor_arguments, read_seed_checkpoint

# What a checkpoint of a grounding model holds beside the weights.
NEEDED = ("model", "config", "vocabulary", "phrase_tags", "feature_dim")
# Weights that ban-vqa's model for grounding has, and with an answer classifier those for question answering.
SIGNS = {"embedding.words.weight", "gru.weight_hh_l0", "attention.forms.weight_v"}

logger = logging.getLogger(__name__)


@dataclass
class GroundingModel:
    """A model with its vocabulary.

    Attributes:
        phrase_tags: for each word where in phrases it stands, see ``bua.grounding.phrases``.
    """

    model: BANGrounding
    vocabulary: QuestionVocabulary
    phrase_tags: list[str]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def describe(self, cfg: CfgNode) -> dict:
        """What ``load_grounding`` needs in a checkpoint beside the weights."""
        return {
            "config": cfg.dump(),
            "vocabulary": self.vocabulary.words,
            "phrase_tags": self.phrase_tags,
            "feature_dim": self.model.feature_dim,
        }


@dataclass
class GroundedPhrase:
    """A phrase and where it is in the image.

    Attributes:
        text: its words.
        start, end: it is words ``start`` to ``end`` - 1 of the sentence.
        region: the best one's number.
        box: [4] float32 x1y1x2y2 in pixels, that region's.
        scores: [n] float32, 0 to 1, of all regions, each by itself: what the model takes for the probability that the
            region overlaps with what is meant.
    """

    text: str
    start: int
    end: int
    region: int
    box: np.ndarray
    scores: np.ndarray


@dataclass
class Predictions:
    """The regions for a data set's P phrases, in its order.

    Attributes:
        rankings: P arrays [n] int64, all regions of the phrase's image, best first.
        boxes: of the regions of each image, [n, 4].
    """

    dataset: GroundingDataset
    rankings: list[np.ndarray]
    boxes: dict[int, np.ndarray]

    def recall(self, protocol: str) -> dict[str, float]:
        """What ``bua.grounding.recall.grounding_recall`` gives."""
        return grounding_recall(self._ranked(), self._truth(), protocol=protocol)

    def scores(self, protocol: str) -> dict[str, dict]:
        """The recall of "all" phrases; "chance", what regions in random order have; and "types", each type's."""
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
    """A model ready to ground: of ``train_grounding``, or of ban-vqa, converted or as it is.

    Args:
        folder: that ``prepare_flickr30k`` wrote with the vocabulary of ban-vqa's model, which its checkpoint lacks.

    Raises:
        InputError: no such file, or something else than such a checkpoint.
    """
    seed = read_seed_checkpoint(path)
    saved = read_checkpoint(path) if seed is None else {"model": seed[1]}
    lacking = [name for name in NEEDED if name not in saved]
    if not lacking:
        cfg = get_cfg()
        restore_cfg(cfg, saved["config"], path)
        vocabulary, tags = QuestionVocabulary(saved["vocabulary"]), saved["phrase_tags"]
        model = build_model(cfg, len(vocabulary), saved["feature_dim"])
    elif not saved.get("model", {}).keys() >= SIGNS or "classifier.answers.linear.bias" in saved["model"]:
        raise InputError(f"{path}: no model for grounding; name one of tools/train_grounding.py or of ban-vqa")
    elif folder is None:
        raise InputError(f"{path}: lacks {', '.join(lacking)}; name a folder of prepare_flickr30k.py --vocabulary")
    else:
        vocabulary, tags = load_vocabulary(folder), load_phrase_tags(folder)
        model = BANGrounding(**constructor_arguments(saved["model"]) | {"num_words": len(vocabulary)})
    restore_weights(model, saved["model"], path)
    return GroundingModel(model.to(device).eval(), vocabulary, tags)


@torch.inference_mode()
def predict(
    grounding: GroundingModel,
    dataset: GroundingDataset,
    reader: RegionReader,
    *,
    batch_size: int = 256,
    progress: bool = True,
) -> Predictions:
    """The regions of each image in the model's order for each phrase.

    Raises:
        InputError: images that the features lack, or features of another length than the model's.
    """
    _check_dim(grounding, reader.dim)
    model, device = grounding.model.eval(), grounding.device
    boxes = region_boxes(dataset, reader, progress=progress)
    asked = dataset.in_vocabulary(grounding.vocabulary)
    rankings: list[np.ndarray] = [np.zeros(0, np.int64)] * len(dataset.spans)
    with progress_bar(len(dataset), "sentences", progress) as bar:
        for batch in evaluation_batches(asked, reader, batch_size):
            batch = batch.to(device)
            logits = model(batch.features, batch.mask, batch.words, batch.positions, batch.phrase_mask)
            # A region may fall below the logit of padding, but stays before it.
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
    """Where each phrase of a sentence is in an image.

    Args:
        regions: of the image, from the detector that the model's features came from.
        sentence: the phrases are those in brackets, as in "[a man] in [a hat]"; without brackets, those that
            ``bua.grounding.phrases.find_phrases`` finds, which is not always what people would mark.

    Returns:
        the phrases from left to right.

    Raises:
        InputError: no phrase in the sentence, no regions, or features of another length.
    """
    if not len(regions):
        raise InputError(f"image {regions.image_id}: no regions; extract at least one (--min-boxes)")
    _check_dim(grounding, regions.features.shape[1])
    words, spans = find_phrases(sentence, grounding.vocabulary, grounding.phrase_tags)
    unknown = [word for word in words if word not in grounding.vocabulary]
    if unknown:
        logger.warning("sentence: the model does not know %s, and takes it for a rare word", ", ".join(unknown))
    ids = torch.tensor([[grounding.vocabulary.id_of(word) for word in words]])
    positions = torch.tensor([[end - 1 for _, end in spans]])
    features = torch.from_numpy(regions.features).float()[None]
    masks = torch.ones(1, len(regions), dtype=torch.bool), torch.ones(1, len(spans), dtype=torch.bool)
    inputs = (tensor.to(grounding.device) for tensor in (features, masks[0], ids, positions, masks[1]))
    scores = grounding.model.eval()(*inputs)[0].sigmoid().cpu().numpy()
    best = scores.argmax(axis=1).tolist()
    return [
        GroundedPhrase(" ".join(words[start:end]), start, end, region, regions.boxes[region], row)
        for (start, end), region, row in zip(spans, best, scores)
    ]


def _check_dim(grounding: GroundingModel, dim: int) -> None:
    if dim != grounding.model.feature_dim:
        raise InputError(
            f"features: {dim} numbers a region, and the model takes {grounding.model.feature_dim}; "
            "use the detector whose features it was trained on"
        )
