"""Training of a captioner from a configuration: with cross-entropy, then for CIDEr-D."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from bua.captioning.batches import CaptionBatch, CaptionLoader
from bua.captioning.cider import CiderD, DocumentFrequencies
from bua.captioning.config import build_model, constraints
from bua.captioning.dataset import PROGRAM, CaptionDataset
from bua.captioning.decoding import Constraints
from bua.captioning.inference import Captioner, load_captioner, predict
from bua.captioning.self_critical import self_critical_loss
from bua.captioning.updown import caption_loss
from bua.errors import InputError
from bua.tasks.training import TaskTraining

# Number of images whose n-grams tell whether a file of document frequencies was made from the same captions.
_CHECKED = 1000

Losses = Callable[[nn.Module, CaptionBatch], dict[str, Tensor]]


def train_caption(cfg: CfgNode, resume: bool | str = False) -> dict[str, float]:
    """Trains a captioner, see ``TaskTraining.run``; ``bua.engine.launch`` runs it on several devices.

    Returns:
        "CIDEr-D" of the last evaluation, in percent, on the vocabulary's words. ``bua eval-caption`` computes the
        scores that papers report.
    """
    return CaptionTraining(cfg).run(resume)


class CaptionTraining(TaskTraining[Captioner, CaptionDataset, CaptionBatch]):
    """What the training of a captioner does differently from other tasks."""

    program, unit, metric = PROGRAM, "images", "CIDEr-D"
    loader: CaptionLoader

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        by_loss = {"cross_entropy": cross_entropy, "self_critical": self_critical}
        self._losses = by_loss[cfg.SOLVER.LOSS](self)

    def load(self, *splits: str) -> CaptionDataset:
        return CaptionDataset.load(self.cfg.DATA.FOLDER, *splits)

    def build(self) -> Captioner:
        vocabulary = self.dataset.vocabulary
        model = build_model(self.cfg, vocabulary, self.reader.dim)
        if self.cfg.MODEL.WEIGHTS:
            _start_from(self.cfg.MODEL.WEIGHTS, model, self.dataset)
        return Captioner(model, self.cfg, self.reader.dim, vocabulary)

    def build_loader(self, loading: dict[str, Any]) -> CaptionLoader:
        return CaptionLoader(
            self.dataset,
            self.reader,
            captions_per_image=self.cfg.DATA.CAPTIONS_PER_IMAGE or None,
            max_length=self.cfg.DATA.MAX_LENGTH,
            max_boxes=self.trained.max_boxes,
            **loading,
        )

    def losses(self, model: nn.Module, batch: CaptionBatch) -> dict[str, Tensor]:
        return self._losses(model, batch)

    def evaluate(self, validation: CaptionDataset) -> dict[str, float]:
        options: dict[str, Any] = {"batch_size": self.cfg.TEST.IMS_PER_BATCH, "progress": False}
        found = predict([self.trained], validation.image_ids, self.reader, name=validation.name, **options)
        return {"CIDEr-D": 100 * float(self._validation_cider.score(list(found.values()), list(found)).mean())}

    @cached_property
    def _validation_cider(self) -> CiderD:
        assert self.validation is not None
        return CiderD(self.validation.references())


def cross_entropy(training: CaptionTraining) -> Losses:
    """Returns the losses of training with cross-entropy."""
    captioner, loader = training.trained, training.loader
    solver, unk = captioner.cfg.SOLVER, captioner.vocabulary.unk
    growth = solver.SCHEDULED_SAMPLING

    def losses(model: nn.Module, batch: CaptionBatch) -> dict[str, Tensor]:
        # The loader counts the batches that were taken, including this one.
        epoch = (loader.epoch * loader.batches_per_epoch + loader.position - 1) // loader.batches_per_epoch
        probability = min(growth.MOST, growth.STEP * (epoch // growth.EPOCHS))
        logits = model(*captioner.inputs(batch), batch.tokens, sampling_probability=probability)
        return {"loss_words": caption_loss(logits, batch.targets, batch.target_mask, unk=unk, scale=solver.LOSS_SCALE)}

    return losses


def self_critical(training: CaptionTraining) -> Losses:
    """Returns the losses of self-critical training.

    Raises:
        InputError: ``MODEL.WEIGHTS`` is empty, or the document frequencies are of other captions.
    """
    cfg, captioner = training.cfg, training.trained
    settings = cfg.SOLVER.SELF_CRITICAL
    if not cfg.MODEL.WEIGHTS:
        raise InputError(
            "MODEL.WEIGHTS: empty; self-critical training starts from a captioner that was trained with cross-entropy, "
            "name its checkpoint"
        )
    reward = build_reward(training.dataset, end=settings.END_IN_REWARD, frequencies=settings.FREQUENCIES or None)
    forbidden = constraints(cfg, captioner.vocabulary)
    if settings.METHOD != "beam":
        # With the other methods, forbidden words would change the distribution that captions are drawn from, but not
        # the likelihood in the loss, whose gradient would then not be that of the mean reward.
        forbidden = Constraints(suppress=forbidden.suppress)

    def losses(model: nn.Module, batch: CaptionBatch) -> dict[str, Tensor]:
        return self_critical_loss(
            model,
            *captioner.inputs(batch),
            batch.image_ids.tolist(),
            reward,
            method=settings.METHOD,
            samples=settings.SAMPLES,
            max_length=cfg.DATA.MAX_LENGTH,
            constraints=forbidden,
            end_in_reward=settings.END_IN_REWARD,
            scale=cfg.SOLVER.LOSS_SCALE,
        )

    return losses


def build_reward(dataset: CaptionDataset, *, end: bool, frequencies: str | None = None) -> Callable[..., np.ndarray]:
    """Returns the reward of ``self_critical_loss``: CIDEr-D against all captions of a data set, on ids of words.

    Args:
        end: Whether the end of a caption counts as a word.
        frequencies: A file that ``bua count-caption-ngrams`` wrote; None counts the n-grams of ``dataset``.

    Raises:
        InputError: The file was made from other captions.
    """
    references = dataset.references(end=end)
    if frequencies is None:
        return CiderD(references).score
    counted = DocumentFrequencies.load(frequencies)
    some = [caption for captions in list(references.values())[:_CHECKED] for caption in captions]
    if not counted.has_all(some):
        raise InputError(
            f"{frequencies}: lacks n-grams of {dataset.name}; count them again with bua count-caption-ngrams"
        )
    return CiderD(references, counted).score


def _start_from(weights: str, model: nn.Module, dataset: CaptionDataset) -> None:
    """Copies the weights of a captioner into ``model``; ``weights`` is the path of its checkpoint."""
    other = load_captioner(weights)
    if other.vocabulary != dataset.vocabulary:
        raise InputError(
            f"{weights}: has another vocabulary than {dataset.name}; start from a captioner that was trained on it"
        )
    try:
        model.load_state_dict(other.model.state_dict())
    except RuntimeError as error:
        raise InputError(
            f"{weights}: does not fit MODEL.UPDOWN and the features: {' '.join(str(error).split())}"
        ) from error
