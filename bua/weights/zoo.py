"""Downloads released weights, by short names or by addresses, into a cache."""

import difflib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from huggingface_hub import hf_hub_download
from huggingface_hub.utils import LocalEntryNotFoundError

from bua.download.catalog import GENOME_LISTS, GENOME_VOCABULARIES
from bua.download.space import NoSpace
from bua.errors import InputError
from bua.vocabulary import Vocabulary
from bua.weights.cache import cache_folder, checked, download, is_cached, place_of

_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"
_GRID_FEATS = "https://dl.fbaipublicfiles.com/grid-feats-vqa/"
_EFFDET = "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1/"
_GOOGLE = "https://storage.googleapis.com/"
_UNC = "://nlp.cs.unc.edu/models/"  # published with http; whether the server knows https was not tried
# VinVL's authors offer the files on Google Drive, which is no address for programs. This is a copy by another user.
_VINVL_COPY = "hf://michelecafagna26/vinvl_vg_x152c4/"
# Name of the file of its classes.
VINVL_LABELS = "VG-SGG-dicts-vgoi6-clipped.json"
_MILVLG = "https://awma1-my.sharepoint.com/:u:/g/personal/yuz_l0_tn/"
# PyTorch ends the names of its files with the first digits of their SHA-256 (torch.hub.load_state_dict_from_url).
_PYTORCH_FILE = re.compile(r"https://download\.pytorch\.org/models/.*-([0-9a-f]{8,64})\.pth")
# A part of a path that names a file below a folder.
_PART = re.compile(r"(?!\.{1,2}$)[^\\/\x00-\x1f]+")


class Release(NamedTuple):
    """Released weights.

    Attributes:
        file: Name of the file.
        addresses: Addresses from which it can be downloaded, which are tried in this order.
        gone: Addresses from which it could be downloaded in the past.
        config: The configuration in ``configs/`` that belongs to the weights.
        description: Which detector this is.
        labels: Address of a file of the names of its classes, in the layout of VinVL's dictionaries; "" for the
            vocabularies of the original.
    """

    file: str
    addresses: tuple[str, ...]
    gone: tuple[str, ...]
    config: str
    description: str
    labels: str = ""


ZOO = {
    "caffe-r101-10-100": Release(
        "resnet101_faster_rcnn_final.caffemodel",
        ("https://www.dropbox.com/s/5xethd2nxa8qrnq/resnet101_faster_rcnn_final.caffemodel?dl=1",),
        (
            f"{_GOOGLE}up-down-attention/resnet101_faster_rcnn_final.caffemodel",
            f"{_GOOGLE}bottom-up-attention/resnet101_faster_rcnn_final.caffemodel",
        ),
        "vg_r101_caffe.yaml",
        "the original, for 10 to 100 regions per image",
    ),
    "caffe-r101-36": Release(
        "resnet101_faster_rcnn_final_iter_320000.caffemodel",
        ("https://www.dropbox.com/s/2h4hmgcvpaewizu/resnet101_faster_rcnn_final_iter_320000.caffemodel?dl=1",),
        (f"{_GOOGLE}bottom-up-attention/resnet101_faster_rcnn_final_iter_320000.caffemodel",),
        "vg_r101_caffe_36.yaml",
        "the original, for 36 regions per image",
    ),
    "huggingface-r101-10-100": Release(
        "pytorch_model.bin",
        ("hf://unc-nlp/frcnn-vg-finetuned",),
        (),
        "vg_r101_frcnn.yaml",
        "caffe-r101-10-100, converted for Detectron2's boxes and then for plain PyTorch",
    ),
    "airsplay-r101-36": Release(
        "faster_rcnn_from_caffe_attr.pkl",
        (),
        (f"http{_UNC}faster_rcnn_from_caffe_attr.pkl",),
        "vg_r101_frcnn.yaml",
        "caffe-r101-36, converted for Detectron2's boxes",
    ),
    "airsplay-r101-36-objects": Release(
        "faster_rcnn_from_caffe.pkl",
        (),
        (f"http{_UNC}faster_rcnn_from_caffe.pkl",),
        "vg_r101_frcnn.yaml",
        "airsplay-r101-36 without attributes: set MODEL.BUA.ATTRIBUTES.ENABLED False",
    ),
    "airsplay-r101-10-100": Release(
        "faster_rcnn_from_caffe_attr_original.pkl",
        tuple(f"{scheme}{_UNC}faster_rcnn_from_caffe_attr_original.pkl" for scheme in ("https", "http")),
        (),
        "vg_r101_frcnn.yaml",
        "caffe-r101-10-100, converted for Detectron2's boxes",
    ),
    "milvlg-r101-10-100": Release(
        "bua-caffe-frcn-r101-k10-100.pth",
        (f"{_MILVLG}EaXvCC3WjtlLvvEfLr3oa8UBLA21tcLh4L8YLbYXl6jgjg?download=1",),
        (),
        "vg_r101_caffe.yaml",
        "caffe-r101-10-100, converted for PyTorch",
    ),
    "milvlg-r101-36": Release(
        "bua-caffe-frcn-r101-k36.pth",
        (f"{_MILVLG}EUKhQ3hSRv9JrrW64qpNLSIBGoOjEGCkF8zvgBP9gKax-w?download=1",),
        (),
        "vg_r101_caffe_36.yaml",
        "caffe-r101-36, converted for PyTorch",
    ),
    "milvlg-r152": Release(
        "bua-caffe-frcn-r152.pth",
        (f"{_MILVLG}ETDgy4bY0xpGgsu5tEMzgLcBQjAwpnkKkltNTtPVuMj4GQ?download=1",),
        (),
        "vg_r152_milvlg.yaml",
        "MILVLG's ResNet-152 with pre-activation blocks, trained by the original's recipe",
    ),
    "milvlg-d2-r50": Release(
        "bua-d2-frcn-r50.pth",
        (f"{_MILVLG}EfYoinBHrFlKmKonocse8yEBXN-hyCHNygYqjxGpIBsPvQ?download=1",),
        (),
        "vg_r50_grid_feats.yaml",
        "MILVLG's ResNet-50, trained by the recipe of grid-feats-vqa on train and val",
    ),
    "milvlg-d2-r101": Release(
        "bua-d2-frcn-r101.pth",
        (f"{_MILVLG}EXXItFlOpHlNq81O1H_cPyoBXUPyXoHmIwPEudnTWKX4rQ?download=1",),
        (),
        "vg_r101_grid_feats.yaml",
        "MILVLG's ResNet-101, trained by the recipe of grid-feats-vqa on train and val",
    ),
    "milvlg-d2-x152": Release(
        "bua-d2-frcn-x152.pth",
        (f"{_MILVLG}EdLhYc39P8tBkEDVCDOrNV4BgPhz9M4iBq8oPw1iyVSlmg?download=1",),
        (),
        "vg_x152_grid_feats.yaml",
        "MILVLG's ResNeXt-152 32x8d, trained by the recipe of grid-feats-vqa on train and val",
    ),
    "vinvl-x152c4": Release(
        "vinvl_vg_x152c4.pth",
        (f"{_VINVL_COPY}vinvl_vg_x152c4.pth",),
        ("https://penzhanwu2.blob.core.windows.net/sgg/sgg_benchmark/vinvl_model_zoo/vinvl_vg_x152c4.pth",),
        "vinvl_x152c4.yaml",
        "VinVL's ResNeXt-152 32x8d, which chooses regions by VinVL's rules",
        f"{_VINVL_COPY}{VINVL_LABELS}",
    ),
    "grid-feats-r50": Release(
        "R-50.pth",
        (f"{_GRID_FEATS}R-50/R-50.pth",),
        (),
        "grid_feats/r50.yaml",
        "grid-feats-vqa's grid model R-50",
    ),
    "grid-feats-x101": Release(
        "X-101.pth",
        (f"{_GRID_FEATS}X-101/X-101.pth",),
        (),
        "grid_feats/x101.yaml",
        "grid-feats-vqa's grid model X-101",
    ),
    "grid-feats-x152": Release(
        "X-152.pth",
        (f"{_GRID_FEATS}X-152/X-152.pth",),
        (),
        "grid_feats/x152.yaml",
        "grid-feats-vqa's grid model X-152",
    ),
    "grid-feats-x152pp": Release(
        "X-152pp.pth",
        (
            f"{_GRID_FEATS}X-152pp/X-152pp.pth",
            "https://dl.fbaipublicfiles.com/mmf/data/models/detectron2/X-152pp.pth",
        ),
        (),
        "grid_feats/x152pp.yaml",
        "grid-feats-vqa's grid model X-152++, with deformable convolutions",
    ),
    "coco-efficientdet-d1": Release(
        "tf_efficientdet_d1_40-a30f94af.pth",
        (f"{_EFFDET}tf_efficientdet_d1_40-a30f94af.pth",),
        (),
        "vg_efficientdet_d1.yaml",
        "effdet's EfficientDet-D1 trained on COCO, as the start of training",
    ),
    "imagenet-r50": Release(
        "R-50.pkl",
        (f"{_DETECTRON2}ImageNetPretrained/MSRA/R-50.pkl",),
        (),
        "vg_r50_grid_feats.yaml",
        "MSRA's ResNet-50 trained on ImageNet, as the start of training",
    ),
    "imagenet-r101": Release(
        "R-101.pkl",
        (f"{_DETECTRON2}ImageNetPretrained/MSRA/R-101.pkl",),
        (),
        "vg_r101.yaml",
        "MSRA's ResNet-101 trained on ImageNet, as the start of training",
    ),
}

# Models that come with the package: a detector, and models for the three tasks on its features. They were trained on
# the drawn images of Shapes, by `make demo-train`; `bua pack-weights` made the files of its output.
PACKAGED_FOLDER = Path(__file__).parent / "shapes"
PACKAGED = {
    "shapes": "detector.pth",
    "shapes-vqa": "vqa.pth",
    "shapes-vqa-blind": "vqa_blind.pth",
    "shapes-captioning": "captioning.pth",
    "shapes-captioning-blind": "captioning_blind.pth",
    "shapes-grounding": "grounding.pth",
}


def fetch(path_or_uri: str | Path) -> Path:
    """Returns the local file of weights, which is downloaded if it is not in the cache.

    Files from http(s) addresses are in the cache of bua (below $FVCORE_CACHE, or ~/.torch/iopath_cache), each under its
    whole address; files from Hugging Face in that of huggingface_hub. A file that changed after its download is
    refused.

    Args:
        path_or_uri: A name in ``ZOO`` or ``PACKAGED``; a path, which is returned unchanged; or an address:
            http(s)://..., detectron2://..., or hf://<owner>/<repository>[/<file>].

    Raises:
        InputError: The download failed, or the file has changed since. The message names the addresses, and where to
            put a file that was obtained in another way.
    """
    text = str(path_or_uri)
    # A folder can have the name of released weights, such as a data set "shapes".
    if os.path.exists(text) and not os.path.isdir(text):
        return Path(text)
    if text in PACKAGED:
        return PACKAGED_FOLDER / PACKAGED[text]
    if text in ZOO:
        return _fetch_release(text, ZOO[text])
    if "://" in text:
        return _fetch_address(text)
    if "/" not in text and "." not in text:
        names = [*ZOO, *PACKAGED]
        close = difflib.get_close_matches(text, names, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"use one of {', '.join(names)}"
        raise InputError(f"{text}: is neither a file nor the name of released weights; {hint}")
    return Path(text)


def is_backbone(weights: str) -> bool:
    """Returns whether a name or an address is that of weights that a training of a detector starts from: a backbone
    that was trained on ImageNet, or an EfficientDet that was trained on COCO."""
    return weights.startswith(("imagenet-", "coco-")) or _EFFDET in weights or "ImageNetPretrained" in weights


def fetch_vocabularies() -> dict[str, list[str]]:
    """Returns the class names of the detectors in ``ZOO`` that were trained on Visual Genome: "objects", 1600 names,
    and "attributes", 400 names. They are downloaded if they are not in the cache.

    Raises:
        InputError: A download failed, or it is not the published file.
    """
    names = {}
    for kind, (remote, md5) in {
        "objects": GENOME_VOCABULARIES["vocab/objects_vocab.txt"],
        "attributes": GENOME_VOCABULARIES["vocab/attributes_vocab.txt"],
    }.items():
        names[kind] = Vocabulary.read(_fetch_address(GENOME_LISTS + remote, f"md5:{md5}")).names
    return names


def _fetch_release(name: str, release: Release) -> Path:
    path = cache_folder() / "bua" / name / release.file
    if is_cached(path):
        return checked(path)
    reasons = [f"{address} is gone" for address in release.gone]
    for address in release.addresses:
        try:
            if address.startswith("hf://"):
                return _fetch_hugging_face(address, "try again later")
            return download(address, path)
        except NoSpace:
            raise
        except InputError as error:
            reasons.append(str(error))
    raise InputError(f"{name}: {'; '.join(reasons)}; get {release.file} in another way and put it at {path}")


def _fetch_address(address: str, checksum: str | None = None) -> Path:
    if address.startswith("detectron2://"):
        address = _DETECTRON2 + address.removeprefix("detectron2://")
    if address.startswith("hf://"):
        return _fetch_hugging_face(address, "try again, or get the file in another way and give its path")
    if not address.startswith(("http://", "https://")):
        raise InputError(
            f"{address[:200]!r}: bua cannot download from this address; use http(s)://, hf:// or detectron2://"
        )
    path = place_of(address)
    if found := _PYTORCH_FILE.fullmatch(address):
        checksum = f"sha256:{found[1]}"
    if is_cached(path):
        return checked(path, checksum)
    try:
        return download(address, path, checksum)
    except NoSpace:
        raise
    except InputError as error:
        raise InputError(f"{error}; or put the file at {path}{_earlier_copy(address)}") from error


def _earlier_copy(address: str) -> str:
    """Returns a hint at a file that Detectron2 or bua 0.1.0 kept under the path of the address.

    It is not used, since it may be from another server.
    """
    copy = cache_folder() / urlsplit(address).path.lstrip("/")
    is_below = copy.resolve().is_relative_to(cache_folder().resolve())
    return f" ({copy} is a file of this name, but may be from another server)" if is_below and is_cached(copy) else ""


def _fetch_hugging_face(address: str, advice: str) -> Path:
    owner, _, rest = address.removeprefix("hf://").partition("/")
    repository, _, file = rest.partition("/")
    file = file or "pytorch_model.bin"
    if not all(_PART.fullmatch(part) for part in (owner, repository, *file.split("/"))):
        raise InputError(f"{address[:200]!r}: is not hf://<owner>/<repository>[/<file>]; correct it")
    try:
        with _retries_in_one_line():
            return Path(hf_hub_download(f"{owner}/{repository}", file))
    # The exceptions of huggingface_hub are open: from release to release it goes over to another HTTP client, whose
    # exceptions it lets pass.
    except Exception as error:
        # Where there is no network, the cause says why, and the error itself only gives advice.
        told = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
        reason = (str(told).strip() or type(told).__name__).splitlines()[0]
        raise InputError(f"{address}: cannot be downloaded ({reason}); {advice}") from error


@contextmanager
def _retries_in_one_line() -> Iterator[None]:
    """For the duration of the block, huggingface_hub says once, and in one line, why it tries again.

    It has a handler of its own, beside which its messages would also go to that of a program's root logger. For each
    try, it has a message with the reason and one with the wait that follows.
    """
    hub = logging.getLogger("huggingface_hub")
    propagates, handlers = hub.propagate, list(hub.handlers)
    hub.propagate = propagates and not handlers
    for handler in handlers:
        handler.addFilter(_is_no_wait)
    try:
        yield
    finally:
        hub.propagate = propagates
        for handler in handlers:
            handler.removeFilter(_is_no_wait)


def _is_no_wait(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Retrying in ")
