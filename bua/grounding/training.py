"""Training of phrase grounding from a configuration."""

import secrets

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from bua.data.flickr30k import GroundingDataset, load_phrase_tags, load_word_vectors
from bua.data.flickr30k_batches import GroundingBatch, GroundingLoader, region_boxes, right_regions
from bua.data.vqa_batches import RegionReader
from bua.engine import connect, seed_everything
from bua.engine.heads import micro_batch_size, train_head
from bua.errors import InputError
from bua.grounding.config import build_model
from bua.grounding.inference import GroundingModel, predict


def train_grounding(cfg: CfgNode, resume: bool = False) -> dict[str, float]:
    """Trains on ``DATA.TRAIN`` into ``OUTPUT_DIR``, and scores ``DATA.VAL`` after every epoch; the checkpoint with the
    best R@1 is ``model_best.pth``. Every checkpoint holds the vocabulary. ``bua.engine.launch`` runs it on several
    devices.

    Args:
        resume: goes on from the newest checkpoint in ``OUTPUT_DIR`` where there is one.

    Returns:
        what ``grounding_recall`` gives in the "any" protocol at the last evaluation, percentages.
    """
    accelerator = connect(cfg.MODEL.DEVICE)
    device = torch.device(cfg.MODEL.DEVICE)
    seed = broadcast_object_list([cfg.SEED if cfg.SEED >= 0 else secrets.randbits(31)])[0]
    seed_everything(seed + accelerator.process_index)
    reader = open_reader(cfg)
    dataset = GroundingDataset.concatenate([GroundingDataset.load(cfg.DATA.FOLDER, split) for split in cfg.DATA.TRAIN])
    validation = GroundingDataset.load(cfg.DATA.FOLDER, cfg.DATA.VAL) if cfg.DATA.VAL else None
    model = build_model(cfg, len(dataset.vocabulary), reader.dim)
    if cfg.DATA.GLOVE:
        vectors, dim = load_word_vectors(cfg.DATA.FOLDER), cfg.MODEL.BAN.EMBEDDING_DIM
        if vectors.shape[1] != dim:
            raise InputError(f"MODEL.BAN.EMBEDDING_DIM is {dim}; {cfg.DATA.FOLDER} has vectors of {vectors.shape[1]}")
        model.embedding.initialize(vectors)
    model.to(device)
    progress = accelerator.is_main_process
    loader = GroundingLoader(
        dataset,
        reader,
        right_regions(dataset, region_boxes(dataset, reader, progress=progress), progress=progress),
        micro_batch_size(cfg),
        seed=seed,
        threads=cfg.DATALOADER.NUM_WORKERS,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    grounding = GroundingModel(model, dataset.vocabulary, load_phrase_tags(cfg.DATA.FOLDER))

    def evaluate() -> dict[str, float]:
        predicted = predict(grounding, validation, reader, batch_size=cfg.TEST.IMS_PER_BATCH, progress=False)
        return predicted.recall("any")

    return train_head(
        cfg,
        model,
        loader,
        lambda model, batch: {"loss": grounding_loss(model, batch.to(device))},
        accelerator=accelerator,
        ids=lambda batch: dataset.image_ids[batch.sentences].tolist(),
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


def open_reader(cfg: CfgNode) -> RegionReader:
    """The features that ``cfg`` names.

    Raises:
        InputError: none are named, or they cannot be read.
    """
    if not cfg.DATA.FOLDER:
        raise InputError("DATA.FOLDER: empty; name a folder that datasets/prepare_flickr30k.py wrote")
    if not cfg.DATA.FEATURES:
        raise InputError("DATA.FEATURES: empty; name the files that tools/extract.py wrote")
    return RegionReader.open(cfg.DATA.FEATURES, pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda")
