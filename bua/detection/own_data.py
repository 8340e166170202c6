"""Lets a configuration follow a data set of the user's own."""

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from bua.detection.catalog import get_dataset


def follow_own_data(cfg: CfgNode, given: Sequence[str] = ()) -> list[str]:
    """Sets the numbers of classes in ``cfg`` to those of the first of DATASETS.TRAIN and DATASETS.TEST, if it is a data
    set of the user's own, and turns the attribute head off if that has no attributes.

    Args:
        given: Keys that keep their values, such as those that the user gave on the command line.

    Returns:
        A line for each key that was changed.

    Raises:
        InputError: The data set cannot be read.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names or not (names[0] in cfg.DATASETS.FILES or names[0].endswith(".json")):
        return []
    dataset = get_dataset(names[0], cfg.DATASETS.FILES)
    wanted: dict[str, int | bool] = {"MODEL.ROI_HEADS.NUM_CLASSES": len(dataset.objects)}
    if len(dataset.attribute_names):
        wanted["MODEL.BUA.ATTRIBUTES.NUM_CLASSES"] = len(dataset.attribute_names)
    else:
        wanted["MODEL.BUA.ATTRIBUTES.ENABLED"] = False
    lines = []
    for key, value in wanted.items():
        node = cfg
        *path, name = key.split(".")
        for part in path:
            node = node[part]
        if key not in given and node[name] != value:
            node[name] = value
            lines.append(f"{key} is set to {value}, as in {dataset.name}")
    return lines
