"""Configuration of the captioners: the keys besides those of every task."""

from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from bua.captioning.decoding import BAD_ENDINGS, REPEATABLE, Constraints
from bua.captioning.self_critical import METHODS
from bua.captioning.updown import SpecialWords, UpDownCaptioner
from bua.captioning.vocabulary import CaptionVocabulary
from bua.config_values import check_choices
from bua.tasks.box_features import BOX_NUMBERS
from bua.tasks.config import check_minimums, constructor_keys, keyword_arguments, load_task_cfg, task_cfg

LOSSES = ("cross_entropy", "self_critical")
LENGTH_PENALTIES = ("", "avg", "wu")


def get_cfg() -> CfgNode:
    """Returns a new configuration.

    ``MODEL.UPDOWN`` has the arguments of ``UpDownCaptioner``; ``DATA`` says what the captioner reads of an image,
    ``SOLVER`` which loss trains it, and ``DECODING`` how captions are made of its probabilities.
    """
    cfg = task_cfg()
    cfg.MODEL.UPDOWN = constructor_keys(UpDownCaptioner, without=("feature_dim", "special"))

    # Number of regions of an image that the captioner reads, the most confident ones; 0 takes all. Where the features
    # have no scores, they are the first ones.
    cfg.DATA.MAX_BOXES = 0
    # Whether a region's features are divided by their norm (ruotianluo's norm_att_feat). Anderson's are not.
    cfg.DATA.NORMALIZE = False
    # Whether the model also reads a region's box and area, in fractions of the image (ruotianluo's use_box).
    # Anderson's does not.
    cfg.DATA.BOXES = False
    # False trains and captions without the images. This baseline shows the score of a caption that is the same for
    # all images.
    cfg.DATA.LOOK = True
    # Number of captions of an image, drawn again each time that the image is read; 0 takes all.
    cfg.DATA.CAPTIONS_PER_IMAGE = 1
    # Largest number of steps of a caption, the end included, in training and decoding.
    cfg.DATA.MAX_LENGTH = 20

    # "cross_entropy" with people's captions, or "self_critical", which optimises the CIDEr-D of the model's own
    # captions and starts from MODEL.WEIGHTS.
    cfg.SOLVER.LOSS = "cross_entropy"
    cfg.SOLVER.LOSS_SCALE = 20.0
    # With cross-entropy, the model reads its own words instead of people's with a probability that grows by STEP every
    # EPOCHS epochs, up to MOST.
    cfg.SOLVER.SCHEDULED_SAMPLING = CfgNode({"STEP": 0.05, "EPOCHS": 5, "MOST": 0.0})
    # Arguments of ``self_critical_loss``. FREQUENCIES is a file that bua count-caption-ngrams wrote; "" counts
    # the n-grams of DATA.TRAIN.
    cfg.SOLVER.SELF_CRITICAL = CfgNode({"METHOD": "beam", "SAMPLES": 5, "END_IN_REWARD": False, "FREQUENCIES": ""})

    # Arguments of ``beam_search`` and ``Constraints``, in evaluation and, except for BEAM, in self-critical training.
    cfg.DECODING = CfgNode()
    cfg.DECODING.BEAM = 5
    cfg.DECODING.LENGTH_PENALTY = ""
    cfg.DECODING.ALPHA = 1.0
    cfg.DECODING.NO_WORD_TWICE_IN_A_ROW = True
    # Words that are not in ``REPEATABLE`` occur at most once in a caption. Not for word pieces.
    cfg.DECODING.WORDS_ONCE = True
    cfg.DECODING.NO_TRIGRAM_TWICE = False
    # A caption does not end after a word of ``BAD_ENDINGS``.
    cfg.DECODING.NO_BAD_ENDINGS = False
    cfg.DECODING.NO_UNKNOWN_WORDS = True
    cfg.TEST.IMS_PER_BATCH = 100
    return cfg


def load_cfg(config_file: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads a YAML file over the defaults, then ``KEY VALUE`` pairs; errors as for ``load_task_cfg``."""
    return load_task_cfg(get_cfg(), config_file, overrides, check_values)


def check_values(cfg: CfgNode, source: str) -> None:
    """Checks the values of a configuration; arguments and errors as for ``check_choices`` and ``check_minimums``."""
    check_choices(
        cfg,
        source,
        {
            "SOLVER.LOSS": LOSSES,
            "SOLVER.SELF_CRITICAL.METHOD": METHODS,
            "DECODING.LENGTH_PENALTY": LENGTH_PENALTIES,
            "MODEL.UPDOWN.CELL": ("lstm", "gru"),
            "MODEL.UPDOWN.ATTENTION_ACTIVATION": ("tanh", "relu"),
        },
    )
    check_minimums(
        cfg,
        source,
        {
            "DATA.MAX_LENGTH": 1,
            "DATA.MAX_BOXES": 0,
            "DATA.CAPTIONS_PER_IMAGE": 0,
            "DECODING.BEAM": 1,
            "TEST.IMS_PER_BATCH": 1,
            "SOLVER.SCHEDULED_SAMPLING.EPOCHS": 1,
            # The other methods compare several captions of an image.
            "SOLVER.SELF_CRITICAL.SAMPLES": 1 if cfg.SOLVER.SELF_CRITICAL.METHOD == "greedy" else 2,
        },
    )


def build_model(cfg: CfgNode, vocabulary: CaptionVocabulary, feature_dim: int) -> UpDownCaptioner:
    """Returns the model that ``cfg`` describes, with random weights, on the CPU.

    Args:
        feature_dim: Dimension of the region features, without what ``DATA.BOXES`` adds.
    """
    special = SpecialWords(vocabulary.begin, vocabulary.end, vocabulary.unk, vocabulary.pad)
    dim = feature_dim + (BOX_NUMBERS[False] if cfg.DATA.BOXES else 0)
    return UpDownCaptioner(len(vocabulary), feature_dim=dim, special=special, **keyword_arguments(cfg.MODEL.UPDOWN))


def constraints(cfg: CfgNode, vocabulary: CaptionVocabulary) -> Constraints:
    """Returns the constraints on captions that ``cfg.DECODING`` sets."""
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
