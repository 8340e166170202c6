"""Training of phrase grounding from a configuration."""

import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from bua.errors import InputError
from bua.grounding.batches import GroundingBatch, GroundingLoader, region_boxes, right_regions
from bua.grounding.config import build_model
from bua.grounding.dataset import PROGRAM, GroundingDataset, load_phrase_tags, load_word_vectors
from bua.grounding.inference import GroundingModel, predict
from bua.tasks.training import open_reader, start, train_head


def train_grounding(cfg: CfgNode, resume: bool = False) -> dict[str, float]:
    """Trains on ``DATA.TRAIN`` into ``OUTPUT_DIR``, and scores ``DATA.VAL`` after every epoch; the checkpoint with the
    best R@1 is ``model_best.pth``. Every checkpoint holds the vocabulary. ``bua.engine.launch`` runs it on several
    devices.

    Args:
        resume: goes on from the newest checkpoint in ``OUTPUT_DIR`` where there is one.

    Returns:
        what ``grounding_recall`` gives in the "any" protocol at the last evaluation, percentages.
    """
    run = start(cfg)
    reader = open_reader(cfg, PROGRAM)
    dataset = GroundingDataset.concatenate([GroundingDataset.load(cfg.DATA.FOLDER, split) for split in cfg.DATA.TRAIN])
    validation = GroundingDataset.load(cfg.DATA.FOLDER, cfg.DATA.VAL) if cfg.DATA.VAL else None
    model = build_model(cfg, len(dataset.vocabulary), reader.dim)
    if cfg.DATA.GLOVE:
        vectors, dim = load_word_vectors(cfg.DATA.FOLDER), cfg.MODEL.BAN.EMBEDDING_DIM
        if vectors.shape[1] != dim:
            raise InputError(f"MODEL.BAN.EMBEDDING_DIM is {dim}; {cfg.DATA.FOLDER} has vectors of {vectors.shape[1]}")
        model.embedding.initialize(vectors)
    model.to(run.device)
    progress = run.accelerator.is_main_process
    loader = GroundingLoader(
        dataset,
        reader,
        right_regions(dataset, region_boxes(dataset, reader, progress=progress), progress=progress),
        **run.loading,
    )
    grounding = GroundingModel(model, dataset.vocabulary, load_phrase_tags(cfg.DATA.FOLDER))

    def evaluate() -> dict[str, float]:
        predicted = predict(grounding, validation, reader, batch_size=cfg.TEST.IMS_PER_BATCH, progress=False)
        return predicted.recall("any")

    return train_head(
        cfg,
        model,
        loader,
        lambda model, batch: {"loss_regions": grounding_loss(model, batch.to(run.device))},
        accelerator=run.accelerator,
        ids=lambda batch: batch.image_ids.tolist(),
        unit="sentences",
        evaluate=evaluate if validation is not None else None,
        best="R@1",
        extra=grounding.describe(cfg),
        resume=resume,
    )


def grounding_loss(model: nn.Module, batch: GroundingBatch) -> Tensor:
    """Binary cross-entropy of all pairs of a phrase and a region, summed, over the number of sentences (ban-vqa,
    train_flickr.py)."""
    logits = model(batch.features, batch.mask, batch.words, batch.positions, batch.phrase_mask)
    # Padding adds nothing: its logits are such that the loss of a target 0 is 0.
    return F.binary_cross_entropy_with_logits(logits, batch.targets(), reduction="sum") / len(batch)
