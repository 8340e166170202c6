"""What is extracted, and to where, if the user does not say so: the images of DATASETS.TEST, to a file named after the
configuration and the data set."""

from collections.abc import Callable
from pathlib import Path

from fvcore.common.config import CfgNode

from bua.detection.catalog import get_dataset
from bua.errors import InputError
from bua.extraction.extractor_config import RANDOM_WEIGHTS
from bua.extraction.sources import ImageFile
from bua.weights.zoo import ZOO

CONFIG_FILE = "vg_r101.yaml"
FOLDER = Path("output", "features")
# Formats whose output is a file, with the extension that its name gets. The others are folders.
EXTENSIONS = {
    "tsv": ".tsv",
    "lxmert-tsv": ".tsv",
    "vinvl-tsv": ".tsv",
    "oscar-tsv": ".tsv",
    "hdf5": ".hdf5",
    "ban-hdf5": ".hdf5",
}


def default_config(weights: str | Path | None) -> str | None:
    """Returns the configuration file for weights, if the user names none; None if the checkpoint holds it.

    Args:
        weights: What the user named: a file, a name in ``bua.weights.zoo``, an address, "random", or nothing.
    """
    if weights is None or weights == RANDOM_WEIGHTS:
        return CONFIG_FILE
    return ZOO[str(weights)].config if str(weights) in ZOO else None


def default_output(cfg: CfgNode, config_file: str | Path, format: str) -> Path:
    """Returns the output that is named after the configuration and the data sets of ``DATASETS.TEST``.

    Raises:
        InputError: ``DATASETS.TEST`` is empty.
    """
    data_sets = "_".join(Path(name).stem for name in _data_sets(cfg))
    return FOLDER / f"{Path(config_file).stem}_{data_sets}{EXTENSIONS.get(format, '')}"


def images_of_data_sets(cfg: CfgNode, id_of: Callable[[str], int | str] | None = None) -> list[ImageFile]:
    """Returns the images of ``DATASETS.TEST`` with their ids in the data set.

    Args:
        id_of: Returns the id of an image's path instead, for formats that need another kind of id.

    Raises:
        InputError: ``DATASETS.TEST`` is empty, a data set is not prepared, or two images have the same id.
    """
    images: dict[int | str, ImageFile] = {}
    for name in _data_sets(cfg):
        dataset = get_dataset(name, cfg.DATASETS.FILES)
        for index, image_id in enumerate(dataset.image_ids.tolist()):
            path = dataset.file_name(index)
            image = ImageFile(path, id_of(path) if id_of else image_id)
            if image.image_id in images:
                raise InputError(
                    f"DATASETS.TEST: {path} and {images[image.image_id].path} have the same id, {image.image_id}; name "
                    "one data set"
                )
            images[image.image_id] = image
    return list(images.values())


def _data_sets(cfg: CfgNode) -> list[str]:
    names = list(cfg.DATASETS.TEST)
    if not names:
        raise InputError("images: none given, and DATASETS.TEST is empty; name images (--images) or a data set")
    return names
