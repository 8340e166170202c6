"""Answers of trained models: to the questions of a data set, or to one question about an image's regions."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
from bua.tasks.region_batches import BatchT, RegionBatch, RegionReader
from bua.tasks.released import constructor_arguments
from bua.tasks.training import progress_bar
from bua.tasks.words import WordVocabulary, pad_in_front, tokenize
from bua.vqa.answers import AnswerVocabulary
from bua.vqa.ban import BAN
from bua.vqa.batches import VqaBatch, evaluation_batches
from bua.vqa.config import build_model, check_values, get_cfg
from bua.vqa.dataset import VqaDataset
from bua.vqa.released import is_ban
from bua.vqa.updown import UpDown
from bua.weights.layouts import Weights

logger = logging.getLogger(__name__)


@dataclass
class VqaModel(TaskModel):
    """A question answering model: ``UpDown`` or ``BAN`` with its vocabularies.

    ``cfg.DATA`` says what it sees of an image. ``feature_dim`` does not count what ``DATA.BOXES`` adds.

    Attributes:
        words: The words of questions.
        answers: The answers that the model chooses from.
    """

    model: UpDown | BAN
    words: WordVocabulary
    answers: AnswerVocabulary

    def vocabularies(self) -> dict[str, Any]:
        return {"question_vocabulary": self.words.words, "answer_vocabulary": self.answers.answers}

    def visible(self, batch: BatchT) -> BatchT:
        """Returns the batch as the model sees it: with all regions masked unless ``DATA.LOOK`` is set, and with the
        boxes joined to the features if ``DATA.BOXES`` is."""
        if not self.cfg.DATA.LOOK:
            batch = batch.without_regions()
        if self.cfg.DATA.BOXES:
            batch = replace(batch, features=join_boxes(batch.features, batch.boxes, sides=True))
        return batch


@dataclass
class Answer:
    """An answer to a question.

    Attributes:
        text: The answer.
        score: 0 to 1, the official accuracy that the model expects of it.
    """

    text: str
    score: float


def load_vqa(path: str | Path, device: str = "cpu") -> VqaModel:
    """Reads a model that ``train_vqa`` saved, ready to answer.

    Raises:
        InputError: There is no such file, or it is not such a checkpoint.
    """
    saved = read_task_checkpoint(
        path,
        ("question_vocabulary", "answer_vocabulary"),
        "name a checkpoint that bua train-vqa wrote, or add the vocabularies to a converted one with "
        "bua convert-checkpoint --vqa-folder or --vocabulary",
    )
    with reported_damage(path):
        cfg = restore_cfg(get_cfg(), saved, path, check_values)
        words, answers = WordVocabulary(saved["question_vocabulary"]), AnswerVocabulary(saved["answer_vocabulary"])
        model = build_fitting(lambda: build_model(cfg, len(words), len(answers), saved["feature_dim"]), saved, path)
        return restore_weights(VqaModel(model, cfg, saved["feature_dim"], words, answers), saved, path, device)


def add_vocabularies(
    weights: Weights, words: WordVocabulary, answers: AnswerVocabulary, source: str | Path = "vocabulary"
) -> dict[str, Any]:
    """Returns the content of a checkpoint for ``load_vqa`` from the weights of the authors' models, which come without
    vocabularies.

    Args:
        weights: As ``read_released_checkpoint`` returns them.
        words, answers: The vocabularies in the order that the model was trained with, from ``load_vocabularies`` or
            ``bua.vqa.authors_vocabularies``.
        source: The folder or files that they are from, for the message.

    Raises:
        InputError: The vocabularies do not have the model's sizes.
    """
    arguments: dict[str, Any] = constructor_arguments(weights)
    for vocabulary, argument, unit in ((words, "num_words", "words"), (answers, "num_answers", "answers")):
        size = arguments.pop(argument)
        if len(vocabulary) != size:
            raise InputError(
                f"{source}: its vocabulary has {len(vocabulary)} {unit}, the model {size}; name the vocabularies that "
                "the model was trained with"
            )
    cfg = get_cfg()
    cfg.MODEL.NAME = "BAN" if is_ban(weights) else "UpDown"
    feature_dim = arguments.pop("feature_dim")
    cfg.MODEL[cfg.MODEL.NAME.upper()].update({name.upper(): value for name, value in arguments.items()})
    with torch.device("meta"):
        model = build_model(cfg, len(words), len(answers), feature_dim)
    return {"model": weights, **VqaModel(model, cfg, feature_dim, words, answers).describe()}


@torch.inference_mode()
def predict(
    models: Sequence[VqaModel],
    dataset: VqaDataset,
    reader: RegionReader,
    *,
    batch_size: int = 512,
    progress: bool = True,
) -> np.ndarray:
    """Predicts the answers of a model, or of several by the mean of their logits.

    Args:
        dataset: N questions. Their vocabulary may differ from the models'.
        reader: Reader of features that have all their images.
        batch_size: Number of questions that go through a model at a time.
        progress: Whether to show a progress bar.

    Returns:
        [N] int64 labels in the models' answer vocabulary, in the order of the data set.

    Raises:
        InputError: The models have different answer vocabularies, the features lack images, or their dimension is not
            the models'.
    """
    first = models[0]
    for other in models[1:]:
        if other.answers != first.answers:
            raise InputError("ensemble: the models have different answer vocabularies; train them from one folder")
    for one in models:
        one.check_features(reader.dim, reader.name)
    labels = np.zeros(len(dataset), np.int64)
    rows = {question_id: row for row, question_id in enumerate(dataset.question_ids.tolist())}
    # These are created before the progress bar, since they raise the error about images without features.
    streams = [_sums_of_logits(group, dataset, reader, batch_size) for group in _of_same_batches(models)]
    with progress_bar(len(dataset) * len(models), "questions", progress) as bar:
        for batches in zip(*streams, strict=True):
            mean = sum(logits for _, logits in batches) / len(models)
            places = [rows[question_id] for question_id in batches[0][0].tolist()]
            labels[places] = mean.argmax(dim=1).cpu().numpy()
            bar.update(len(places) * len(models))
    return labels


@torch.inference_mode()
def answer_question(vqa: VqaModel, regions: Regions, question: str, top: int = 5) -> tuple[list[Answer], np.ndarray]:
    """Answers a question about an image.

    Args:
        regions: The image's n regions, from the detector that extracted the model's training features.
        top: Number of answers.

    Returns:
        The ``top`` best answers, best first, and the model's attention to each region, [n] float32, which sums to 1, or
        is 0 if the model sees no regions.

    Raises:
        InputError: The model knows no word of the question, or it was trained on features of another dimension.
    """
    vqa.check_features(regions.features.shape[1], f"image {regions.image_id}")
    vqa.words.check(question)
    unknown = [word for word in tokenize(question) if word not in vqa.words]
    if unknown:
        logger.warning("the model does not know %s; it takes %r instead", ", ".join(unknown), vqa.words.words[-1])
    words = vqa.words.encode_all([question])
    if vqa.model.word_padding == "front":
        words = pad_in_front(words, len(vqa.words))
    batch = vqa.visible(RegionBatch.of_image(regions)).to(vqa.device)
    tokens = torch.from_numpy(words.astype(np.int64)).to(vqa.device)
    logits, attention = vqa.model(batch.features, batch.boxes, batch.mask, tokens)
    scores, labels = logits[0].sigmoid().topk(min(top, len(vqa.answers)))
    answers = [Answer(vqa.answers.answers[label], score) for label, score in zip(labels.tolist(), scores.tolist())]
    # Both models have several attention maps; BAN's are over pairs of a region and a word.
    maps = attention[0].flatten(start_dim=2).sum(dim=2) if attention.dim() == 4 else attention[0]
    return answers, maps.mean(dim=0).cpu().numpy()


def _of_same_batches(models: Sequence[VqaModel]) -> list[list[VqaModel]]:
    """Returns the models in groups that read the same batches, so that features are read once for a group."""
    groups: list[list[VqaModel]] = []
    for model in models:
        for group in groups:
            first = group[0]
            same_words = model.words.words == first.words.words and model.model.word_padding == first.model.word_padding
            if same_words and model.device == first.device:
                group.append(model)
                break
        else:
            groups.append([model])
    return groups


def _sums_of_logits(
    models: Sequence[VqaModel], dataset: VqaDataset, reader: RegionReader, batch_size: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Returns the ids of the questions and the sums over the models of the logits of their answers, batch by batch.

    Args:
        models: Models that read the same batches.
    """
    for vqa in models:
        vqa.model.eval()
    first = models[0]
    questions = dataset.in_vocabularies(first.words, first.answers)
    batches = evaluation_batches(
        questions, reader, batch_size, word_padding=first.model.word_padding, device=first.device
    )

    def sum_of_logits(batch: VqaBatch) -> Tensor:
        views = ((vqa.model, vqa.visible(batch)) for vqa in models)
        return torch.stack([model(seen.features, seen.boxes, seen.mask, seen.words)[0] for model, seen in views]).sum(0)

    return ((batch.question_ids, sum_of_logits(batch)) for batch in batches)
