"""Training of a question answering model from a configuration."""

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from bua.errors import InputError
from bua.tasks.layers import Standardize
from bua.tasks.region_batches import BatchMaker, RegionReader
from bua.tasks.training import open_reader, start, train_head
from bua.vqa.accuracy import soft_score, upper_bound
from bua.vqa.batches import VqaBatch, VqaLoader
from bua.vqa.config import build_model
from bua.vqa.cooccurrence import load_word_vectors
from bua.vqa.dataset import PROGRAM, VqaDataset
from bua.vqa.inference import VqaModel, predict

# Enough for mean and deviation of features.
SAMPLED_IMAGES = 500


def train_vqa(cfg: CfgNode, resume: bool = False) -> dict[str, float]:
    """Trains on ``DATA.TRAIN`` into ``OUTPUT_DIR``, and scores ``DATA.VAL`` after every epoch; the checkpoint with the
    best score is ``model_best.pth``. Every checkpoint holds the vocabularies. ``bua.engine.launch`` runs it on several
    devices.

    Args:
        resume: goes on from the newest checkpoint in ``OUTPUT_DIR`` where there is one.

    Returns:
        ``soft_score`` and ``upper_bound`` (what the answer vocabulary allows) of the last evaluation, in percent.
    """
    run = start(cfg)
    reader = open_reader(cfg, PROGRAM)
    dataset = VqaDataset.concatenate([VqaDataset.load(cfg.DATA.FOLDER, split) for split in cfg.DATA.TRAIN])
    model = build_model(cfg, len(dataset.words), len(dataset.answers), reader.dim)
    if cfg.DATA.WORD_VECTORS:
        vectors = load_word_vectors(cfg.DATA.FOLDER, cfg.DATA.WORD_VECTORS)
        dim = model.embedding.words.embedding_dim
        if vectors[0].shape[1] != dim:
            raise InputError(f"EMBEDDING_DIM is {dim}; {cfg.DATA.FOLDER} has word vectors of {vectors[0].shape[1]}")
        model.embedding.initialize(*vectors)
    if isinstance(model.standardize, Standardize):
        model.standardize.fit(some_regions(reader, dataset))
    model.to(run.device)
    loader = VqaLoader(dataset, reader, word_padding=model.word_padding, **run.loading)
    validation = VqaDataset.load(cfg.DATA.FOLDER, cfg.DATA.VAL) if cfg.DATA.VAL else None
    if validation is not None and validation.targets is None:
        raise InputError(f"DATA.VAL: {validation.name} has no answers; name a split that has, or '' for none")
    vqa = VqaModel(model, dataset.words, dataset.answers, look=cfg.DATA.LOOK)

    def evaluate() -> dict[str, float]:
        labels = predict([vqa], validation, reader, batch_size=cfg.TEST.IMS_PER_BATCH, progress=False)
        return {"soft_score": soft_score(labels, validation.targets), "upper_bound": upper_bound(validation.targets)}

    return train_head(
        cfg,
        model,
        loader,
        lambda model, batch: {"loss_answers": vqa_loss(model, batch.to(run.device), look=cfg.DATA.LOOK)},
        accelerator=run.accelerator,
        ids=lambda batch: batch.question_ids.tolist(),
        unit="questions",
        evaluate=evaluate if validation is not None else None,
        best="soft_score",
        extra=vqa.describe(cfg),
        resume=resume,
    )


def vqa_loss(model: nn.Module, batch: VqaBatch, look: bool = True) -> Tensor:
    """Binary cross-entropy with the soft targets, summed over the answers, the mean over the questions (both seeds'
    ``instance_bce_with_logits``)."""
    mask = batch.mask if look else torch.zeros_like(batch.mask)
    logits, _ = model(batch.features, batch.boxes, mask, batch.words)
    return F.binary_cross_entropy_with_logits(logits, batch.targets(), reduction="sum") / len(batch)


def some_regions(reader: RegionReader, dataset: VqaDataset) -> Tensor:
    """[N, D] float32, the features of ``SAMPLED_IMAGES`` images, or of all where there are fewer."""
    images = np.unique(dataset.image_ids)
    images = images[:: max(1, len(images) // SAMPLED_IMAGES)][:SAMPLED_IMAGES]
    batch = BatchMaker(images, reader, dataset.name)(np.arange(len(images)))
    return batch.features[batch.mask].float()
