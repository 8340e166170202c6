"""Training of phrase grounding from a configuration."""

from typing import Any

import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from bua.grounding.batches import GroundingBatch, GroundingLoader, region_boxes, right_regions
from bua.grounding.config import build_model
from bua.grounding.dataset import PROGRAM, GroundingDataset, load_phrase_tags, load_word_vectors
from bua.grounding.inference import GroundingModel, predict
from bua.tasks.training import TaskTraining


def train_grounding(cfg: CfgNode, resume: bool | str = False) -> dict[str, float]:
    """Trains a grounding model, see ``TaskTraining.run``; ``bua.engine.launch`` runs it on several devices.

    Returns:
        The scores of ``grounding_recall`` by the protocol "any" at the last evaluation, in percent.
    """
    return GroundingTraining(cfg).run(resume)


class GroundingTraining(TaskTraining[GroundingModel, GroundingDataset, GroundingBatch]):
    """What the training of a grounding model does differently from other tasks."""

    program, unit, metric = PROGRAM, "sentences", "R@1"

    def load(self, *splits: str) -> GroundingDataset:
        return GroundingDataset.concatenate([GroundingDataset.load(self.cfg.DATA.FOLDER, split) for split in splits])

    def build(self) -> GroundingModel:
        folder, vocabulary = self.cfg.DATA.FOLDER, self.dataset.vocabulary
        model = build_model(self.cfg, len(vocabulary), self.reader.dim)
        if self.cfg.DATA.GLOVE:
            model.embedding.initialize(load_word_vectors(folder), source=folder)
        return GroundingModel(model, self.cfg, self.reader.dim, vocabulary, load_phrase_tags(folder))

    def build_loader(self, loading: dict[str, Any]) -> GroundingLoader:
        progress = self.processes.accelerator.is_main_process
        boxes = region_boxes(self.dataset, self.reader, progress=progress)
        right = right_regions(self.dataset, boxes, progress=progress)
        return GroundingLoader(self.dataset, self.reader, right, **loading)

    def losses(self, model: nn.Module, batch: GroundingBatch) -> dict[str, Tensor]:
        return {"loss_regions": grounding_loss(model, batch)}

    def evaluate(self, validation: GroundingDataset) -> dict[str, float]:
        batch_size = self.cfg.TEST.IMS_PER_BATCH
        return predict(self.trained, validation, self.reader, batch_size=batch_size, progress=False).recall("any")


def grounding_loss(model: nn.Module, batch: GroundingBatch) -> Tensor:
    """Returns the binary cross-entropy of all pairs of a phrase and a region, summed and divided by the number of
    sentences (ban-vqa, train_flickr.py)."""
    logits = model(batch.features, batch.mask, batch.words, batch.positions, batch.phrase_mask)
    # The logits of padding are so low that their loss, with a target of 0, is 0.
    return F.binary_cross_entropy_with_logits(logits, batch.targets(), reduction="sum") / len(batch)
