"""Answers of trained models: to the questions of a data set, or to one about an image's regions."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from bua.checkpoint import read_checkpoint
from bua.errors import InputError
from bua.structures import Regions
from bua.tasks.region_batches import RegionReader
from bua.tasks.training import progress_bar, restore_cfg, restore_weights
from bua.tasks.words import QuestionVocabulary, pad_in_front, tokenize
from bua.vqa.answers import AnswerVocabulary
from bua.vqa.batches import VqaBatch, evaluation_batches
from bua.vqa.config import build_model, get_cfg
from bua.vqa.dataset import VqaDataset, load_vocabularies
from bua.vqa.released import constructor_arguments
from bua.weights.layouts import Weights

logger = logging.getLogger(__name__)

# What a checkpoint of a question answering model holds beside the weights.
NEEDED = ("model", "config", "question_vocabulary", "answer_vocabulary", "feature_dim")


@dataclass
class VqaModel:
    """A model with its vocabularies.

    Attributes:
        model: ``UpDown`` or ``BAN``.
        look: false for one that answers without looking.
    """

    model: nn.Module
    words: QuestionVocabulary
    answers: AnswerVocabulary
    look: bool = True

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def describe(self, cfg: CfgNode) -> dict:
        """What ``load_vqa`` needs in a checkpoint beside the weights."""
        return {
            "config": cfg.dump(),
            "question_vocabulary": self.words.words,
            "answer_vocabulary": self.answers.answers,
            "feature_dim": self.model.feature_dim,
        }


@dataclass
class Answer:
    """An answer with its score, 0 to 1: what the model expects the official accuracy of it to be."""

    text: str
    score: float


def load_vqa(path: str | Path, device: str = "cpu") -> VqaModel:
    """A model that ``train_vqa`` saved, ready to answer.

    Raises:
        InputError: no such file, or something else than such a checkpoint.
    """
    saved = read_checkpoint(path)
    lacking = [name for name in NEEDED if name not in saved]
    if lacking:
        raise InputError(
            f"{path}: lacks {', '.join(lacking)}; name a checkpoint that tools/train_vqa.py wrote, or give a converted "
            "one its vocabularies with tools/convert_checkpoint.py --vqa-folder"
        )
    cfg = get_cfg()
    restore_cfg(cfg, saved["config"], path)
    words, answers = QuestionVocabulary(saved["question_vocabulary"]), AnswerVocabulary(saved["answer_vocabulary"])
    model = build_model(cfg, len(words), len(answers), saved["feature_dim"])
    restore_weights(model, saved["model"], path)
    return VqaModel(model.to(device).eval(), words, answers, cfg.DATA.LOOK)


def add_vocabularies(weights: Weights, folder: str | Path) -> dict:
    """A checkpoint for ``load_vqa`` of the weights of a seed's model, which come without vocabularies.

    Args:
        weights: as ``bua.vqa.released.read_seed_checkpoint`` gives them.
        folder: that ``prepare_vqa`` wrote; its ``question_vocabulary.json`` and ``answer_vocabulary.json`` are in the
            order that the model learned them in.

    Raises:
        InputError: vocabularies of other sizes than the model's.
    """
    vocabularies = load_vocabularies(folder)
    arguments = constructor_arguments(weights)
    sizes = [arguments.pop(name) for name in ("num_words", "num_answers")]
    for vocabulary, size, name in zip(vocabularies, sizes, ("question", "answer")):
        if len(vocabulary) != size:
            unit = "words" if name == "question" else "answers"
            raise InputError(
                f"{folder}: its {name}_vocabulary.json has {len(vocabulary)} {unit}, the model {size}; name a folder "
                "with the vocabularies that it learned from"
            )
    cfg = get_cfg()
    cfg.MODEL.NAME = "BAN" if "attention.forms.weight_v" in weights else "UpDown"
    feature_dim = arguments.pop("feature_dim")
    cfg.MODEL[cfg.MODEL.NAME.upper()].update({name.upper(): value for name, value in arguments.items()})
    with torch.device("meta"):
        model = build_model(cfg, *sizes, feature_dim)
    return {"model": weights, **VqaModel(model, *vocabularies).describe(cfg)}


@torch.inference_mode()
def predict(
    models: Sequence[VqaModel],
    dataset: VqaDataset,
    reader: RegionReader,
    *,
    batch_size: int = 512,
    progress: bool = True,
) -> np.ndarray:
    """The answers of a model, or of several by the mean of their logits.

    Args:
        dataset: its questions may be in another vocabulary than the models'.
        reader: of all their images.

    Returns:
        [N] int64 labels in the models' answer vocabulary, in the data set's order.

    Raises:
        InputError: models with different answers, features of another length than theirs, or that lack images.
    """
    first = models[0]
    for other in models[1:]:
        if other.answers != first.answers:
            raise InputError("ensemble: the models have different answer vocabularies; train them from one folder")
    for one in models:
        if one.model.feature_dim != reader.dim:
            raise InputError(
                f"{reader.name}: {reader.dim} numbers a region, and a model learned from {one.model.feature_dim}; use "
                "features of the detector that it learned from"
            )
    labels = np.zeros(len(dataset), np.int64)
    rows = {question_id: row for row, question_id in enumerate(dataset.question_ids.tolist())}
    # Made first: what features lack is said before the progress.
    streams = [_logits(model, dataset, reader, batch_size) for model in models]
    with progress_bar(len(dataset) * len(models), "questions", progress) as bar:
        for batches in zip(*streams, strict=True):
            mean = sum(logits for _, logits in batches) / len(models)
            where = [rows[question_id] for question_id in batches[0][0].tolist()]
            labels[where] = mean.argmax(dim=1).cpu().numpy()
            bar.update(len(where) * len(models))
    return labels


@torch.inference_mode()
def answer_question(vqa: VqaModel, regions: Regions, question: str, top: int = 5) -> tuple[list[Answer], np.ndarray]:
    """The best answers to a question about an image, and where the model looked.

    Args:
        regions: of the image, from the detector that the model's features came from.

    Returns:
        the ``top`` best answers, best first; [n] float32, how much it looked at each region, which sums to 1.

    Raises:
        InputError: no word of the question is known, or features of another length than the model's.
    """
    if regions.features.shape[1] != vqa.model.feature_dim:
        raise InputError(
            f"features: {regions.features.shape[1]} numbers a region, and the model learned from "
            f"{vqa.model.feature_dim}; use the detector whose features it was trained on"
        )
    vqa.words.check(question)
    unknown = [word for word in tokenize(question) if word not in vqa.words]
    if unknown:
        logger.warning("the model does not know %s; it takes %r instead", ", ".join(unknown), vqa.words.words[-1])
    words = vqa.words.encode(question)
    if vqa.model.word_padding == "front":
        words = pad_in_front(words[None], len(vqa.words))[0]
    features = torch.from_numpy(regions.features).float()[None].to(vqa.device)
    boxes = torch.from_numpy(regions.boxes / np.array([regions.width, regions.height] * 2, np.float32))[None]
    mask = torch.full((1, len(regions)), vqa.look)
    tokens = torch.from_numpy(words.astype(np.int64))[None]
    logits, attention = vqa.model(features, *(x.to(vqa.device) for x in (boxes, mask, tokens)))
    scores, labels = logits[0].sigmoid().topk(min(top, len(vqa.answers)))
    answers = [Answer(vqa.answers.answers[label], score) for label, score in zip(labels.tolist(), scores.tolist())]
    # Both look several times, BAN at each region with each word.
    looked = attention[0].flatten(start_dim=2).sum(dim=2) if attention.dim() == 4 else attention[0]
    return answers, looked.mean(dim=0).cpu().numpy()


def _logits(
    vqa: VqaModel, dataset: VqaDataset, reader: RegionReader, batch_size: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """The questions' ids and the logits of their answers, batch by batch."""
    vqa.model.eval()
    asked = dataset.in_vocabularies(vqa.words, vqa.answers)
    batches = evaluation_batches(asked, reader, batch_size, word_padding=vqa.model.word_padding)

    def answer(batch: VqaBatch) -> torch.Tensor:
        mask = batch.mask if vqa.look else torch.zeros_like(batch.mask)
        return vqa.model(batch.features, batch.boxes, mask, batch.words)[0]

    return ((batch.question_ids, answer(batch.to(vqa.device))) for batch in batches)
