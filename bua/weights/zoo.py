"""Downloads released weights, by short names or by addresses, into a cache."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

from huggingface_hub import hf_hub_download
from iopath.common.download import download
from iopath.common.file_io import file_lock, get_cache_dir

from bua.download.catalog import GENOME_LISTS, GENOME_VOCABULARIES
from bua.errors import InputError
from bua.vocabulary import Vocabulary

_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"
_GOOGLE = "https://storage.googleapis.com/"
_UNC = "http://nlp.cs.unc.edu/models/"
# VinVL's authors offer the files on Google Drive, which is no address for programs. This is a copy by another user.
_VINVL_COPY = "hf://michelecafagna26/vinvl_vg_x152c4/"
# Name of the file of its classes.
VINVL_LABELS = "VG-SGG-dicts-vgoi6-clipped.json"
_MILVLG = "https://awma1-my.sharepoint.com/:u:/g/personal/yuz_l0_tn/"


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
        (f"{_UNC}faster_rcnn_from_caffe_attr.pkl",),
        "vg_r101_frcnn.yaml",
        "caffe-r101-36, converted for Detectron2's boxes",
    ),
    "airsplay-r101-36-objects": Release(
        "faster_rcnn_from_caffe.pkl",
        (),
        (f"{_UNC}faster_rcnn_from_caffe.pkl",),
        "vg_r101_frcnn.yaml",
        "airsplay-r101-36 without attributes: set MODEL.BUA.ATTRIBUTES.ENABLED False",
    ),
    "airsplay-r101-10-100": Release(
        "faster_rcnn_from_caffe_attr_original.pkl",
        (f"{_UNC}faster_rcnn_from_caffe_attr_original.pkl",),
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

    Files from http(s) addresses are in the cache of iopath and fvcore ($FVCORE_CACHE, or ~/.torch/iopath_cache), files
    from Hugging Face in that of huggingface_hub.

    Args:
        path_or_uri: A name in ``ZOO`` or ``PACKAGED``; a path, which is returned unchanged; or an address:
            http(s)://..., detectron2://..., or hf://<owner>/<repository>[/<file>].

    Raises:
        InputError: The download failed. The message names the addresses, and where to put a file that was obtained in
            another way.
    """
    text = str(path_or_uri)
    if os.path.exists(text):
        return Path(text)
    if text in PACKAGED:
        return PACKAGED_FOLDER / PACKAGED[text]
    if text in ZOO:
        return _fetch_release(text, ZOO[text])
    if "://" in text:
        return _fetch_address(text)
    if "/" not in text and "." not in text:
        raise InputError(
            f"{text}: is neither a file nor the name of released weights; use one of {', '.join([*ZOO, *PACKAGED])}"
        )
    return Path(text)


def is_backbone(weights: str) -> bool:
    """Returns whether a name or an address is that of a backbone that was trained on ImageNet, without a detector."""
    return weights.startswith("imagenet-") or "ImageNetPretrained" in weights


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
        path = _fetch_address(GENOME_LISTS + remote)
        if hashlib.md5(path.read_bytes()).hexdigest() != md5:
            raise InputError(f"{path}: is not the published file (MD5 {md5}); remove it, and it is downloaded again")
        names[kind] = Vocabulary.read(path).names
    return names


def _fetch_release(name: str, release: Release) -> Path:
    cached = Path(get_cache_dir()) / "bua" / name / release.file
    if cached.is_file():
        return cached
    reasons = [f"{address} is gone" for address in release.gone]
    for address in release.addresses:
        try:
            return _fetch(address, cached)
        except _DownloadError as error:
            reasons.append(str(error))
    raise InputError(f"{name}: {'; '.join(reasons)}; get {release.file} in another way and put it at {cached}")


def _fetch_address(address: str) -> Path:
    if address.startswith("detectron2://"):
        address = _DETECTRON2 + address.removeprefix("detectron2://")
    if not address.startswith(("hf://", "http://", "https://")):
        raise InputError(f"{address}: bua cannot download from this address; use http(s)://, hf:// or detectron2://")
    # This is where iopath's PathManager keeps its files, so that Detectron2 finds them too.
    cached = Path(get_cache_dir()) / urlparse(address).path.lstrip("/")
    try:
        return _fetch(address, cached)
    except _DownloadError as error:
        advice = (
            "get the file in another way and give its path" if address.startswith("hf://") else f"put it at {cached}"
        )
        raise InputError(f"{error}; try again, or {advice}") from error


class _DownloadError(Exception):
    """Raised when a download fails. The message is one line with the address and the reason."""


def _fetch(address: str, cached: Path) -> Path:
    """Downloads a file. Returns ``cached`` for an http(s) address, or a path in huggingface_hub's cache for hf://."""
    try:
        if address.startswith("hf://"):
            owner, repository, *file = address.removeprefix("hf://").split("/", 2)
            return Path(hf_hub_download(f"{owner}/{repository}", *(file or ["pytorch_model.bin"])))
        cached.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(cached)):
            return Path(download(address, str(cached.parent), filename=cached.name))
    except (OSError, ValueError) as error:  # the exceptions of urllib and huggingface_hub derive from these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _DownloadError(f"{address}: cannot be downloaded ({reason})") from error
