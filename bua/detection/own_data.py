"""Lets a configuration follow a data set of the user's own."""

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from bua.detection.annotations import DetectionDataset
from bua.detection.catalog import get_dataset
from bua.errors import InputError


def follow_own_data(cfg: CfgNode, given: Sequence[str] = ()) -> list[str]:
    """Sets the numbers of classes in ``cfg`` to those of the first of DATASETS.TRAIN and DATASETS.TEST, if it is a data
    set of the user's own, and turns the attribute head off if that has no attributes.

    Args:
        given: Keys that keep their values, such as those that the user gave on the command line.

    Returns:
        A line for each key that was changed.

    Raises:
        InputError: A data set cannot be read, or two of them have the same number of classes, but not the same ones.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names or not (names[0] in cfg.DATASETS.FILES or names[0].endswith(".json")):
        return []
    dataset = get_dataset(names[0], cfg.DATASETS.FILES)
    for name in dict.fromkeys(names[1:]):
        if name != names[0]:
            _check_same_classes(dataset, get_dataset(name, cfg.DATASETS.FILES))
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


def _check_same_classes(dataset: DetectionDataset, other: DetectionDataset) -> None:
    """Raises an InputError if a class has another name in ``other``. Other numbers of classes are found elsewhere."""
    for what, ours, theirs in (
        ("categories", dataset.objects.names, other.objects.names),
        ("attributes", dataset.attribute_names.names, other.attribute_names.names),
    ):
        if len(ours) == len(theirs) and ours != theirs:
            first, found = next(pair for pair in zip(ours, theirs) if pair[0] != pair[1])
            raise InputError(
                f"{other.name}: its {what} are not those of {dataset.name}, or their ids have another order ({found!r} "
                f"in place of {first!r}); give both files the same {what}"
            )
