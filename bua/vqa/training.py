"""Training of a question answering model from a configuration."""

import secrets

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from bua.data.vqa import VqaDataset
from bua.data.vqa_batches import RegionReader, VqaBatch, VqaLoader
from bua.data.vqa_word_vectors import load_word_vectors
from bua.engine import connect, seed_everything
from bua.engine.heads import micro_batch_size, train_head
from bua.errors import InputError
from bua.evaluation.vqa import soft_score, upper_bound
from bua.vqa.config import build_model
from bua.vqa.inference import VqaModel, predict
from bua.vqa.layers import Standardize

# Enough for mean and deviation of features.
SAMPLED_PICTURES = 500


def train_vqa(cfg: CfgNode, resume: bool = False) -> dict[str, float]:
    """Trains on ``DATA.TRAIN`` into ``OUTPUT_DIR``, and scores ``DATA.VAL`` after every epoch; the checkpoint with the
    best score is ``model_best.pth``. Every checkpoint holds the vocabularies. ``bua.engine.launch`` runs it on several
    devices.

    Args:
        resume: goes on from the newest checkpoint in ``OUTPUT_DIR`` where there is one.

    Returns:
        ``soft_score`` and ``upper_bound`` (what the answer vocabulary allows) of the last evaluation, in percent.
    """
    accelerator = connect(cfg.MODEL.DEVICE)
    device = torch.device(cfg.MODEL.DEVICE)
    seed = broadcast_object_list([cfg.SEED if cfg.SEED >= 0 else secrets.randbits(31)])[0]
    seed_everything(seed + accelerator.process_index)
    reader = open_reader(cfg)
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
    model.to(device)
    loader = VqaLoader(
        dataset,
        reader,
        micro_batch_size(cfg),
        seed=seed,
        word_padding=model.word_padding,
        threads=cfg.DATALOADER.NUM_WORKERS,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
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
        lambda model, batch: {"loss": vqa_loss(model, batch.to(device), look=cfg.DATA.LOOK)},
        accelerator=accelerator,
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
    """[N, D] float32, the features of ``SAMPLED_PICTURES`` pictures, or of all where there are fewer."""
    images = np.unique(dataset.image_ids)
    images = images[:: max(1, len(images) // SAMPLED_PICTURES)][:SAMPLED_PICTURES]
    stores = reader.locate(images, dataset.name)
    order = np.argsort(stores, kind="stable")
    features, _, mask = reader.read(images[order], stores[order])
    return features[mask].float()


def open_reader(cfg: CfgNode) -> RegionReader:
    """The features that ``cfg`` names.

    Raises:
        InputError: none are named, or they cannot be read.
    """
    if not cfg.DATA.FOLDER:
        raise InputError("DATA.FOLDER: empty; name a folder that datasets/prepare_vqa.py wrote")
    if not cfg.DATA.FEATURES:
        raise InputError("DATA.FEATURES: empty; name the files that tools/extract.py wrote")
    return RegionReader.open(cfg.DATA.FEATURES, pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda")
