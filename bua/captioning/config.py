"""Configuration of the captioners: the keys beyond those of every head."""

from pathlib import Path

from fvcore.common.config import CfgNode

from bua.captioning.decoding import BAD_ENDINGS, REPEATABLE, Constraints
from bua.captioning.self_critical import METHODS
from bua.captioning.updown import SpecialWords, UpDownCaptioner
from bua.captioning.vocabulary import CaptionVocabulary
from bua.config import check_device, merge
from bua.errors import InputError
from bua.tasks.training import constructor_keys, head_cfg

LOSSES = ("cross_entropy", "self_critical")
LENGTH_PENALTIES = ("", "avg", "wu")


def get_cfg() -> CfgNode:
    """A new configuration: the arguments of ``UpDownCaptioner`` in ``MODEL.UPDOWN``, what of the data it reads, which
    loss, and how captions are made of what the model says."""
    cfg = head_cfg()
    cfg.MODEL.UPDOWN = constructor_keys(UpDownCaptioner, without=("feature_dim", "special"))

    # Regions of an image, its first ones; 0 takes all.
    cfg.DATA.MAX_BOXES = 0
    # Whether a region's features are divided by their length (ruotianluo's norm_att_feat). Anderson's are not.
    cfg.DATA.NORMALIZE = False
    # Whether the model reads where a region is, its box and area in fractions of the image, with its features
    # (ruotianluo's use_box). Anderson's does not.
    cfg.DATA.BOXES = False
    # False trains and captions without looking: the baseline that says what is true of any image.
    cfg.DATA.LOOK = True
    # Captions of an image, drawn anew each time that it is read; 0 takes all.
    cfg.DATA.CAPTIONS_PER_IMAGE = 1
    # Most steps of a caption, the end included, in training and decoding.
    cfg.DATA.MAX_LENGTH = 20

    # "cross_entropy" of people's captions, or "self_critical": the CIDEr-D of the model's own, from MODEL.WEIGHTS on.
    cfg.SOLVER.LOSS = "cross_entropy"
    cfg.SOLVER.LOSS_SCALE = 20.0
    # Cross-entropy reads the model's own words with a probability that grows by STEP every EPOCHS, up to MOST.
    cfg.SOLVER.SCHEDULED_SAMPLING = CfgNode({"STEP": 0.05, "EPOCHS": 5, "MOST": 0.0})
    # As for ``self_critical_loss``. FREQUENCIES is a file that datasets/count_caption_ngrams.py wrote; "" counts those
    # of DATA.TRAIN.
    cfg.SOLVER.SELF_CRITICAL = CfgNode({"METHOD": "beam", "SAMPLES": 5, "END_IN_REWARD": False, "FREQUENCIES": ""})

    # As for ``beam_search`` and ``Constraints``; in evaluation and, but for BEAM, in self-critical training.
    cfg.DECODING = CfgNode()
    cfg.DECODING.BEAM = 5
    cfg.DECODING.LENGTH_PENALTY = ""
    cfg.DECODING.ALPHA = 1.0
    cfg.DECODING.NO_WORD_TWICE_IN_A_ROW = True
    # Words outside of ``REPEATABLE`` are said once a caption. Not for word pieces.
    cfg.DECODING.WORDS_ONCE = True
    cfg.DECODING.NO_TRIGRAM_TWICE = False
    # The end does not follow words of ``BAD_ENDINGS``.
    cfg.DECODING.NO_BAD_ENDINGS = False
    cfg.DECODING.NO_UNKNOWN_WORDS = True
    cfg.TEST.IMS_PER_BATCH = 100
    return cfg


def load_cfg(config_file: str | Path, overrides: list[str] = ()) -> CfgNode:
    """Reads a YAML file over the defaults, then ``KEY VALUE`` pairs.

    Raises:
        InputError: as ``bua.config.load_cfg``, and values that do not fit.
    """
    cfg = get_cfg()
    merge(cfg, config_file, list(overrides))
    check_device(cfg.MODEL.DEVICE)
    check_values(cfg, str(config_file))
    return cfg


def check_values(cfg: CfgNode, source: str) -> None:
    """
    Raises:
        InputError: a value that does not fit; ``source`` is where it comes from.
    """
    for key, value, known in (
        ("SOLVER.LOSS", cfg.SOLVER.LOSS, LOSSES),
        ("SOLVER.SELF_CRITICAL.METHOD", cfg.SOLVER.SELF_CRITICAL.METHOD, METHODS),
        ("DECODING.LENGTH_PENALTY", cfg.DECODING.LENGTH_PENALTY, LENGTH_PENALTIES),
        ("MODEL.UPDOWN.CELL", cfg.MODEL.UPDOWN.CELL, ("lstm", "gru")),
        ("MODEL.UPDOWN.ATTENTION_ACTIVATION", cfg.MODEL.UPDOWN.ATTENTION_ACTIVATION, ("tanh", "relu")),
    ):
        if value not in known:
            raise InputError(f"{source}: {key} is {value!r}; use one of {', '.join(map(repr, known))}")
    self_critical = cfg.SOLVER.SELF_CRITICAL
    for key, value, least in (
        ("DATA.MAX_LENGTH", cfg.DATA.MAX_LENGTH, 1),
        ("DATA.MAX_BOXES", cfg.DATA.MAX_BOXES, 0),
        ("DATA.CAPTIONS_PER_IMAGE", cfg.DATA.CAPTIONS_PER_IMAGE, 0),
        ("DECODING.BEAM", cfg.DECODING.BEAM, 1),
        ("TEST.IMS_PER_BATCH", cfg.TEST.IMS_PER_BATCH, 1),
        ("SOLVER.SCHEDULED_SAMPLING.EPOCHS", cfg.SOLVER.SCHEDULED_SAMPLING.EPOCHS, 1),
        ("SOLVER.SELF_CRITICAL.SAMPLES", self_critical.SAMPLES, 1 if self_critical.METHOD == "greedy" else 2),
    ):
        if value < least:
            raise InputError(f"{source}: {key} is {value}; it must be {least} or more")


def build_model(cfg: CfgNode, vocabulary: CaptionVocabulary, feature_dim: int) -> UpDownCaptioner:
    """The model that ``cfg`` describes, with random weights, on the CPU.

    Args:
        feature_dim: of the features, without what ``DATA.BOXES`` adds.
    """
    arguments = {key.lower(): value for key, value in cfg.MODEL.UPDOWN.items()}
    special = SpecialWords(vocabulary.begin, vocabulary.end, vocabulary.unk, vocabulary.pad)
    dim = feature_dim + (5 if cfg.DATA.BOXES else 0)
    return UpDownCaptioner(len(vocabulary), feature_dim=dim, special=special, **arguments)


def constraints(cfg: CfgNode, vocabulary: CaptionVocabulary) -> Constraints:
    """What ``cfg.DECODING`` forbids."""
    decoding = cfg.DECODING
    ids = {word: number for number, word in enumerate(vocabulary.words)}

    def known(words: tuple[str, ...]) -> list[int]:
        return [ids[word] for word in words if word in ids]

    return Constraints(
        no_word_twice_in_a_row=decoding.NO_WORD_TWICE_IN_A_ROW,
        repeatable=known(REPEATABLE) if decoding.WORDS_ONCE else None,
        no_trigram_twice=decoding.NO_TRIGRAM_TWICE,
        bad_endings=known(BAD_ENDINGS) if decoding.NO_BAD_ENDINGS else (),
        suppress=[vocabulary.unk] if decoding.NO_UNKNOWN_WORDS else (),
    )
