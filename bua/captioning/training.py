"""Training of a captioner from a configuration: with cross-entropy, then for CIDEr-D."""

from collections.abc import Callable

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
from bua.tasks.region_batches import RegionReader
from bua.tasks.training import open_reader, start, train_head

# So many images' n-grams tell whether a file of document frequencies was made of the same captions.
_CHECKED = 1000


def train_caption(cfg: CfgNode, resume: bool = False) -> dict[str, float]:
    """Trains on ``DATA.TRAIN`` into ``OUTPUT_DIR``, and scores ``DATA.VAL`` after every epoch; the checkpoint with the
    best score is ``model_best.pth``. Every checkpoint holds the vocabulary. ``bua.engine.launch`` runs it on several
    devices.

    Args:
        resume: goes on from the newest checkpoint in ``OUTPUT_DIR`` where there is one.

    Returns:
        ``CIDEr-D`` of the last evaluation, in percent, on the vocabulary's words; ``tools/eval_caption.py`` has what
        papers print.
    """
    run = start(cfg)
    reader = open_reader(cfg, PROGRAM)
    dataset = CaptionDataset.load(cfg.DATA.FOLDER, *cfg.DATA.TRAIN)
    model = build_model(cfg, dataset.vocabulary, reader.dim)
    if cfg.MODEL.WEIGHTS:
        _start_from(cfg.MODEL.WEIGHTS, model, dataset)
    captioner = Captioner(model.to(run.device), dataset.vocabulary, cfg, reader.dim)
    loader = CaptionLoader(
        dataset,
        reader,
        captions_per_image=cfg.DATA.CAPTIONS_PER_IMAGE or None,
        max_length=cfg.DATA.MAX_LENGTH,
        max_boxes=captioner.max_boxes,
        **run.loading,
    )
    losses = _self_critical(captioner) if cfg.SOLVER.LOSS == "self_critical" else _cross_entropy(captioner, loader)
    validation = CaptionDataset.load(cfg.DATA.FOLDER, cfg.DATA.VAL) if cfg.DATA.VAL else None
    return train_head(
        cfg,
        model,
        loader,
        lambda model, batch: losses(model, batch.to(run.device)),
        accelerator=run.accelerator,
        ids=lambda batch: batch.image_ids.tolist(),
        unit="images",
        evaluate=_evaluation(captioner, validation, reader) if validation is not None else None,
        best="CIDEr-D",
        extra=captioner.describe(),
        resume=resume,
    )


def _start_from(weights: str, model: nn.Module, dataset: CaptionDataset) -> None:
    other = load_captioner(weights)
    if other.vocabulary != dataset.vocabulary:
        raise InputError(
            f"{weights}: has another vocabulary than {dataset.name}; start from a captioner that learned from it"
        )
    try:
        model.load_state_dict(other.model.state_dict())
    except RuntimeError as error:
        raise InputError(
            f"{weights}: does not fit MODEL.UPDOWN and the features: {' '.join(str(error).split())}"
        ) from error


Losses = Callable[[nn.Module, CaptionBatch], dict[str, Tensor]]


def _cross_entropy(captioner: Captioner, loader: CaptionLoader) -> Losses:
    solver, unk = captioner.cfg.SOLVER, captioner.vocabulary.unk
    growth = solver.SCHEDULED_SAMPLING

    def losses(model: nn.Module, batch: CaptionBatch) -> dict[str, Tensor]:
        # The loader counts batches taken, this one included.
        epoch = (loader.epoch * loader.batches_per_epoch + loader.position - 1) // loader.batches_per_epoch
        probability = min(growth.MOST, growth.STEP * (epoch // growth.EPOCHS))
        logits = model(*captioner.inputs(batch), batch.tokens, sampling_probability=probability)
        return {"loss_words": caption_loss(logits, batch.targets, batch.target_mask, unk=unk, scale=solver.LOSS_SCALE)}

    return losses


def _self_critical(captioner: Captioner) -> Losses:
    cfg = captioner.cfg
    settings = cfg.SOLVER.SELF_CRITICAL
    if not cfg.MODEL.WEIGHTS:
        raise InputError(
            "MODEL.WEIGHTS: empty; self-critical training starts from a captioner that cross-entropy trained"
        )
    dataset = CaptionDataset.load(cfg.DATA.FOLDER, *cfg.DATA.TRAIN)
    reward = build_reward(dataset, end=settings.END_IN_REWARD, frequencies=settings.FREQUENCIES or None)
    forbidden = constraints(cfg, captioner.vocabulary)
    if settings.METHOD != "beam":
        # With words forbidden, captions are drawn from another distribution than the one whose likelihood the loss
        # is: its gradient would not be the mean reward's.
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
    """CIDEr-D against all captions of a data set, on ids of words, as ``self_critical_loss`` takes it.

    Args:
        end: the end of a caption is a word of it.
        frequencies: a file that ``datasets/count_caption_ngrams.py`` wrote; None counts those of ``dataset``.

    Raises:
        InputError: a file that was made of other captions.
    """
    references = dataset.references(end=end)
    if frequencies is None:
        return CiderD(references).score
    counted = DocumentFrequencies.load(frequencies)
    some = [caption for captions in list(references.values())[:_CHECKED] for caption in captions]
    if not counted.has_all(some):
        raise InputError(
            f"{frequencies}: lacks words of {dataset.name}; count them again with datasets/count_caption_ngrams.py"
        )
    return CiderD(references, counted).score


def _evaluation(
    captioner: Captioner, validation: CaptionDataset, reader: RegionReader
) -> Callable[[], dict[str, float]]:
    cider = CiderD(validation.references())
    batch_size = captioner.cfg.TEST.IMS_PER_BATCH

    def evaluate() -> dict[str, float]:
        found = predict(
            [captioner], validation.image_ids, reader, name=validation.name, batch_size=batch_size, progress=False
        )
        return {"CIDEr-D": 100 * float(cider.score(list(found.values()), list(found)).mean())}

    # So that images without features are found before the training.
    reader.locate(validation.image_ids, validation.name)
    return evaluate
