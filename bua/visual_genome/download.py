"""Downloads the vocabularies and splits that the original published, and checks them."""

import hashlib
import logging
from pathlib import Path

from bua.download import fetch
from bua.download.catalog import GENOME_LISTS, GENOME_SPLITS, GENOME_VOCABULARIES
from bua.errors import InputError
from bua.vocabulary import find_lines, read_list

URL = GENOME_LISTS
SPLITS = GENOME_SPLITS
RELATIONS = {name: file for name, file in GENOME_VOCABULARIES.items() if "relations" in name}
VOCABULARIES = {name: file for name, file in GENOME_VOCABULARIES.items() if name not in RELATIONS}
ATTEMPTS = 2
MAX_SIZE = 100_000_000

logger = logging.getLogger(__name__)


def download_missing(root: str | Path, files: dict[str, tuple[str, str]]) -> None:
    """Downloads those of ``files`` that are missing in ``root``.

    A file that exists, with or without the suffix .gz, stays as it is. If it differs from the published file, a warning
    is logged, since released weights do not fit other vocabularies.

    Args:
        root: The data set's folder.
        files: ``VOCABULARIES``, ``RELATIONS`` or ``SPLITS``, or several of them.

    Raises:
        InputError: A file cannot be downloaded or read, or the downloaded file differs from the published one.
    """
    for name, (remote, md5) in files.items():
        target = Path(root) / name
        found = find_lines(target)
        if found is None:
            _download(URL + remote, target, md5)
        elif hashlib.md5(read_list(found), usedforsecurity=False).hexdigest() != md5:
            logger.warning("%s: this is not the published file (MD5 %s); it is used as it is", found, md5)


def download_optional(root: str | Path, files: dict[str, tuple[str, str]]) -> None:
    """Downloads missing files as ``download_missing`` does, but a failure is only a warning.

    Without the vocabulary of relations, the annotations get no relations, which no model of bua needs.
    """
    try:
        download_missing(root, files)
    except InputError as error:
        logger.warning("%s. This file is optional.", error)


def _download(url: str, target: Path, md5: str) -> None:
    logger.info("downloading %s", url)
    try:
        fetch(url, target, checksum=f"md5:{md5}", attempts=ATTEMPTS, max_size=MAX_SIZE)
    except InputError as error:
        raise InputError(
            f"{target}: the file is missing, and downloading it failed: {error}; or download {url} by hand"
        ) from error
