"""Training of a question answering model from a configuration."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from bua.errors import InputError
from bua.tasks.layers import Standardize
from bua.tasks.region_batches import BatchMaker, RegionBatch, RegionReader
from bua.tasks.training import TaskTraining
from bua.vqa.accuracy import soft_score, upper_bound
from bua.vqa.batches import VqaBatch, VqaLoader
from bua.vqa.classifier import TwoStreamClassifier
from bua.vqa.config import build_model
from bua.vqa.cooccurrence import load_answer_vectors, load_embedding_tables
from bua.vqa.dataset import PROGRAM, VqaDataset
from bua.vqa.inference import VqaModel, predict

# Number of images whose features are enough to compute their mean and deviation.
SAMPLED_IMAGES = 500
# The standard deviation of the numbers that DATA.BOXES adds, after standardising. They are 7 beside hundreds of
# features, most of which vary together: with a deviation of 1, BAN learned nothing of them on Shapes in 8 epochs.
BOX_FACTOR = 6.0


def train_vqa(cfg: CfgNode, resume: bool | str = False) -> dict[str, float]:
    """Trains a question answering model, see ``TaskTraining.run``; ``bua.engine.launch`` runs it on several devices.

    Returns:
        "soft_score" and "upper_bound", the score that the answer vocabulary allows, of the last evaluation, in percent.
    """
    return VqaTraining(cfg).run(resume)


class VqaTraining(TaskTraining[VqaModel, VqaDataset, VqaBatch]):
    """What the training of a question answering model does differently from other tasks."""

    program, unit, metric, scores = PROGRAM, "questions", "soft_score", ("train_soft_score",)

    def load(self, *splits: str) -> VqaDataset:
        return VqaDataset.concatenate([VqaDataset.load(self.cfg.DATA.FOLDER, split) for split in splits])

    def load_validation(self, split: str) -> VqaDataset:
        validation = super().load_validation(split)
        if validation.targets is None:
            raise InputError(f"DATA.VAL: {validation.name} has no answers; name a split that has, or '' for none")
        return validation

    def build(self) -> VqaModel:
        words, answers = self.dataset.words, self.dataset.answers
        model = build_model(self.cfg, len(words), len(answers), self.reader.dim)
        if self.cfg.DATA.WORD_VECTORS:
            tables = load_embedding_tables(self.cfg.DATA.FOLDER, self.cfg.DATA.WORD_VECTORS)
            model.embedding.initialize(*tables, source=self.cfg.DATA.FOLDER)
        if self.cfg.DATA.ANSWER_VECTORS:
            assert isinstance(model.classifier, TwoStreamClassifier), "check_values sees to it"
            vectors = load_answer_vectors(self.cfg.DATA.FOLDER)
            model.classifier.initialize_text(vectors, source=self.cfg.DATA.FOLDER)
        trained = VqaModel(model, self.cfg, self.reader.dim, words, answers)
        if isinstance(model.standardize, Standardize):
            regions = some_regions(self.reader, self.dataset)
            # The mask is that of the regions before DATA.LOOK hides them.
            seen = trained.visible(regions).features[regions.mask].float()
            factors = torch.ones(seen.shape[1])
            factors[self.reader.dim :] = BOX_FACTOR
            model.standardize.fit(seen, factors)
        return trained

    def build_loader(self, loading: dict[str, Any]) -> VqaLoader:
        return VqaLoader(self.dataset, self.reader, word_padding=self.trained.model.word_padding, **loading)

    def losses(self, model: nn.Module, batch: VqaBatch) -> dict[str, Tensor]:
        loss, score = vqa_loss(model, self.trained.visible(batch))
        return {"loss_answers": loss, "train_soft_score": 100 * score}

    def evaluate(self, validation: VqaDataset) -> dict[str, float]:
        assert validation.targets is not None
        batch_size = self.cfg.TEST.IMS_PER_BATCH
        labels = predict([self.trained], validation, self.reader, batch_size=batch_size, progress=False)
        return {"soft_score": soft_score(labels, validation.targets), "upper_bound": upper_bound(validation.targets)}

    def item_ids(self, batch: VqaBatch) -> list[int]:
        return batch.question_ids.tolist()


def vqa_loss(model: nn.Module, batch: VqaBatch) -> tuple[Tensor, Tensor]:
    """Returns the loss and the score of the answers to a batch of questions, both [] float32.

    The loss is the binary cross-entropy with the soft targets, summed over the answers and averaged over the questions
    (``instance_bce_with_logits`` in hengyuan-hu's code and ban-vqa). The score, 0 to 1, is the mean soft score of the
    answers with the highest logits (``compute_score_with_logits`` there); it has no gradient.
    """
    logits, _ = model(batch.features, batch.boxes, batch.mask, batch.words)
    targets = batch.targets()
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(batch)
    return loss, targets.gather(1, logits.detach().argmax(dim=1, keepdim=True)).mean()


def some_regions(reader: RegionReader, dataset: VqaDataset) -> RegionBatch:
    """Returns the regions of ``SAMPLED_IMAGES`` images, or of all images if there are fewer."""
    images = np.unique(dataset.image_ids)
    images = images[:: max(1, len(images) // SAMPLED_IMAGES)][:SAMPLED_IMAGES]
    return BatchMaker(images, reader, dataset.name)(np.arange(len(images)))
