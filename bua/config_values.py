"""Checks the values of configurations: their types beyond those that fvcore checks, and their ranges.

The keys are named by the last part of their name, since they mean the same in the configurations of all models and of
Detectron2.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bua.errors import InputError

# A value of the type of each key that may be None (of ON_DEVICE, any). No other value may be None.
_OPTIONAL: dict[str, object] = {"WEIGHT_DECAY_BIAS": 1.0, "PROJECTION_DIM": 1, "INITIAL_STD": 1.0, "ON_DEVICE": None}
# The elements of lists that are empty by default.
_ELEMENTS: dict[str, object] = {
    **dict.fromkeys(("STEPS", "EPOCH_FACTORS", "MIN_SIZE_TRAIN"), 1),
    "SIZES": [1],
    "ASPECT_RATIOS": [1],
    **dict.fromkeys(("TRAIN", "TEST", "FEATURES", "FREEZE"), ""),
}
_AT_LEAST_1 = {
    *("MAX_ITER", "CHECKPOINT_PERIOD", "IMS_PER_BATCH", "EPOCHS", "ACCUMULATE", "BATCH_SIZE_PER_IMAGE"),
    *("MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST", "NUM_CLASSES", "POOLER_RESOLUTION", "DETECTIONS_PER_IMAGE"),
    *("PRE_NMS_TOPK_TRAIN", "PRE_NMS_TOPK_TEST", "POST_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TEST", "MAX_PER_BOX"),
    *("NUM_GROUPS", "WIDTH_PER_GROUP", "RES5_DILATION", "RES2_OUT_CHANNELS", "STEM_OUT_CHANNELS", "FC_DIM"),
    *("EMBEDDING_DIM", "HIDDEN_DIM", "ATTENTION_DIM", "PROJECTION_DIM", "GLIMPSES", "RANK", "IMAGE_SIZE"),
    *("MAX_NUM_ATTR_PER_OBJ", "MIN_SIZE_TRAIN"),
}
# Sizes of layers and numbers of them, far beyond those of any model, and sizes of images. A configuration can come with
# a checkpoint, and must not take all memory.
_LIMITS = {
    **dict.fromkeys(("RES2_OUT_CHANNELS", "STEM_OUT_CHANNELS", "WIDTH_PER_GROUP", "NUM_GROUPS", "CONV_DIMS"), 16384),
    **dict.fromkeys(("FC_DIM", "EMBEDDING_DIM", "HIDDEN_DIM", "ATTENTION_DIM", "PROJECTION_DIM"), 16384),
    **dict.fromkeys(("FPN_CHANNELS", "OUT_CHANNELS", "POOLER_RESOLUTION", "IMAGE_SIZE", "MAX_PER_BOX"), 16384),
    **dict.fromkeys(("NUM_CLASSES", "MIN_SIZE_TEST", "MAX_SIZE_TEST"), 65536),
    **dict.fromkeys(("NUM_FC", "GLIMPSES", "MAX_LEVEL", "FPN_REPEATS", "HEAD_REPEATS"), 100),
}
_AT_LEAST_0 = {
    *("PERIOD", "MIN_BOXES"),
    *("NUM_WORKERS", "EVAL_PERIOD", "FREEZE_AT", "WARMUP_ITERS", "POOLER_SAMPLING_RATIO", "NUM_FC", "COUNTED_OBJECTS"),
    *("BASE_LR", "BASE_LR_END", "MOMENTUM", "WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"),
    *("BIAS_LR_FACTOR", "GAMMA", "WARMUP_FACTOR", "CLIP_VALUE", "SMOOTH_L1_BETA", "INITIAL_STD"),
    *("MAX_LEVEL", "FPN_CHANNELS", "FPN_REPEATS", "HEAD_REPEATS", "ANCHOR_SCALE"),
}
_FRACTIONS = {
    *("NMS_THRESH", "NMS_THRESH_TEST", "POSITIVE_FRACTION", "IOU_THRESHOLDS"),
    *("DROPOUT", "ATTENTION_DROPOUT", "CLASSIFIER_DROPOUT"),
}
_NOT_EMPTY = {"MIN_SIZE_TRAIN", "SIZES", "ASPECT_RATIOS", "CONV_DIMS", "IOU_THRESHOLDS"}
# Lists of numbers above 0.
_ABOVE_0 = {"SIZES", "ASPECT_RATIOS", "PIXEL_STD", "BBOX_REG_WEIGHTS"}
_LENGTHS = {
    **{"MODEL.PIXEL_MEAN": 3, "MODEL.PIXEL_STD": 3},
    **{"MODEL.RPN.BBOX_REG_WEIGHTS": 4, "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": 4},
    "MODEL.BUA.EFFICIENTDET.IMAGE_SIZE": 2,
}
# The nodes under MODEL.BUA that only one MODEL.META_ARCHITECTURE reads.
_OF_ARCHITECTURES = {"VINVL": "AttrRCNN", "EFFICIENTDET": "EfficientDet"}


def as_list(key: str, value: object) -> object:
    """Returns a value of the command line: for a key whose value is a list of texts, a single text as a list of one."""
    of_texts = _ELEMENTS.get(key.rpartition(".")[2]) == ""
    return (value,) if of_texts and isinstance(value, str) and value else value


def check_type(key: str, value: object, current: object, source: str) -> None:
    """Checks a value that is going to replace another one, where fvcore does not: None, and the elements of lists.

    Args:
        source: Where the value comes from, for the message.

    Raises:
        InputError: The value, or an element of it, is None, NaN or of another type.
    """
    name = key.rpartition(".")[2]
    if name in _OPTIONAL:
        wanted = _OPTIONAL[name]
        fits = value is None or wanted is None or _same_kind(wanted, value)
    elif isinstance(value, list | tuple):
        sample = current[0] if isinstance(current, list | tuple) and current else _ELEMENTS.get(name)
        fits = sample is None or all(_same_kind(sample, element) for element in value)
    else:
        fits = value is not None or current is None
    if not fits or any(number != number for number in _numbers(value)):
        raise InputError(f"{source}: {key} is {str(value)[:80]!r}, which is not of its kind; see configs/ for examples")


def check_ranges(leaves: Iterable[tuple[str, object]], source: str) -> None:
    """Checks that numbers and lists of a configuration are not out of their range.

    Args:
        leaves: The dotted key and the value of every leaf.
        source: The file, for the message.

    Raises:
        InputError: A value is out of its range. The message names the key.
    """
    for key, value in leaves:
        name = key.rpartition(".")[2]
        numbers = list(_numbers(value))
        wanted = None
        if name in _AT_LEAST_1 and any(number < 1 for number in numbers):
            wanted = "must be 1 or more"
        elif name in _LIMITS and any(number > _LIMITS[name] for number in numbers):
            wanted = f"must be {_LIMITS[name]} or less"
        elif name in _AT_LEAST_0 and any(number < 0 for number in numbers):
            wanted = "must be 0 or more"
        elif name in _FRACTIONS and not all(0 <= number <= 1 for number in numbers):
            wanted = "must be from 0 to 1"
        elif name in _NOT_EMPTY and isinstance(value, list | tuple) and (not value or [] in list(value)):
            wanted = "must not be empty"
        elif name in _ABOVE_0 and any(number <= 0 for number in numbers):
            wanted = "must be numbers above 0"
        elif name == "CONV_DIMS" and any(number != -1 and (number < 1 or number % 1) for number in numbers):
            wanted = "must be whole numbers of channels of 1 or more, or -1 for that of the input"
        elif name == "MAX_LEVEL" and any(0 < number < 5 for number in numbers):
            # The backbone has the levels up to 5.
            wanted = "must be 5 or more, or 0 for the model's own"
        elif name == "IOU_THRESHOLDS" and numbers != sorted(numbers):
            wanted = "must be in ascending order"
        elif key in _LENGTHS and len(numbers) != _LENGTHS[key]:
            wanted = f"must be {_LENGTHS[key]} numbers"
        if wanted:
            raise InputError(f"{source}: {key} is {str(value)[:80]}; it {wanted}")


def check_architecture(cfg, defaults, source: str) -> None:
    """Checks that a detector's configuration sets no key that only other architectures read.

    Args:
        defaults: The configuration with the default values.
        source: The file, for the message.

    Raises:
        InputError: It sets one, to another value than its default.
    """
    for node, architecture in _OF_ARCHITECTURES.items():
        for key, value in cfg.MODEL.BUA[node].items():
            if architecture != cfg.MODEL.META_ARCHITECTURE and value != defaults.MODEL.BUA[node][key]:
                raise InputError(
                    f"{source}: MODEL.BUA.{node}.{key} is {value!r}, which has an effect only where "
                    f"MODEL.META_ARCHITECTURE is {architecture}; leave it out"
                )


def _same_kind(sample: object, value: object) -> bool:
    if isinstance(sample, list | tuple) and sample:
        return isinstance(value, list | tuple) and all(_same_kind(sample[0], element) for element in value)
    if isinstance(sample, bool) or not isinstance(sample, int | float):
        return type(value) is type(sample)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(value: object) -> Iterable[float]:
    """Yields the numbers in a value and in lists in it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        for element in value:
            yield from _numbers(element)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def check_choices(cfg, source: str, choices: Mapping[str, Sequence[object]], wanted: str = "use one of") -> None:
    """Checks values that must be one of a few.

    Args:
        source: Where the values come from, for the message.
        choices: The allowed values of each key, such as "SOLVER.LOSS".
        wanted: The words before the allowed values in the message.

    Raises:
        InputError: A key has another value.
    """
    for key, allowed in choices.items():
        value = value_of(cfg, key)
        if value not in allowed:
            raise InputError(f"{source}: {key} is {value!r}; {wanted} {', '.join(map(repr, allowed))}")


def value_of(cfg, key: str) -> Any:
    """Returns the value of a key in dotted form."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg
