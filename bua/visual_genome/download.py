"""The vocabularies and splits that the original published: where they are, and whether a copy is the same."""

import gzip
import hashlib
import http.client
import logging
import urllib.request
from pathlib import Path

from bua.errors import InputError
from bua.io.files import whole_file

URL = "https://raw.githubusercontent.com/peteanderson80/bottom-up-attention/master/data/genome/"
TIMEOUT_SECONDS = 60

# Place beneath the data set's folder: (place beneath URL, MD5). The relations, which the original published too, are
# in no file here, since no model reads them.
VOCABULARIES = {
    "vocab/objects_vocab.txt": ("1600-400-20/objects_vocab.txt", "b0fe0368e4023de7b43f94566dbd8fae"),
    "vocab/attributes_vocab.txt": ("1600-400-20/attributes_vocab.txt", "ed5db248c4bc585d26af2b9b9a012304"),
}
SPLITS = {
    "splits/train.txt": ("train.txt", "68214ddf7a7ce485beb649508903bb88"),
    "splits/val.txt": ("val.txt", "df79508d0eff2f818db98a028680a296"),
    "splits/test.txt": ("test.txt", "50c104a7d7f264c14bc0f77c3cb1c1b7"),
}

logger = logging.getLogger(__name__)


def fetch_published(root: str | Path, files: dict[str, tuple[str, str]]) -> None:
    """Downloads those of ``files`` (``VOCABULARIES``, ``SPLITS``) that ``root`` lacks.

    A file that is there, plain or with .gz, stays as it is; that it is not the published one is logged as a warning,
    for weights that others released do not fit other vocabularies.

    Raises:
        InputError: a file cannot be fetched, or is another one than was published.
    """
    for place, (remote, md5) in files.items():
        target = Path(root) / place
        packed = target.with_name(target.name + ".gz")
        if target.is_file() or packed.is_file():
            path = target if target.is_file() else packed
            if _md5(path) != md5:
                logger.warning("%s: not the file that was published (MD5 %s); used as it is", path, md5)
        else:
            _fetch(URL + remote, target, md5)


def _fetch(url: str, target: Path, md5: str) -> None:
    logger.info("fetching %s", url)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"{target}: missing, and fetching it failed ({error}); put {url} there by hand") from error
    if hashlib.md5(data).hexdigest() != md5:
        raise InputError(f"{target}: {url} is not the file that was published (MD5 {md5}); put that one there by hand")
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as file:
        file.write(data)


def _md5(path: Path) -> str:
    data = path.read_bytes()
    try:
        return hashlib.md5(gzip.decompress(data) if path.suffix == ".gz" else data).hexdigest()
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}); get it again") from error
