"""Released weights by short names, and files by their addresses, fetched once into a cache."""

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

from huggingface_hub import hf_hub_download
from iopath.common.download import download
from iopath.common.file_io import file_lock, get_cache_dir

from bua.errors import InputError

_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"
_GOOGLE = "https://storage.googleapis.com/"
_UNC = "http://nlp.cs.unc.edu/models/"
_MILVLG = "https://awma1-my.sharepoint.com/:u:/g/personal/yuz_l0_tn/"


class Release(NamedTuple):
    """Released weights.

    Attributes:
        file: the name of the file.
        places: addresses at which its authors, or others, publish it; tried in this order.
        gone: addresses at which it was, and is no longer.
        config: the configuration to run it with, in ``configs/``.
        about: what it is.
    """

    file: str
    places: tuple[str, ...]
    gone: tuple[str, ...]
    config: str
    about: str


ZOO = {
    "caffe-r101-10-100": Release(
        "resnet101_faster_rcnn_final.caffemodel",
        ("https://www.dropbox.com/s/5xethd2nxa8qrnq/resnet101_faster_rcnn_final.caffemodel?dl=1",),
        (
            f"{_GOOGLE}up-down-attention/resnet101_faster_rcnn_final.caffemodel",
            f"{_GOOGLE}bottom-up-attention/resnet101_faster_rcnn_final.caffemodel",
        ),
        "vg_r101_caffe.yaml",
        "the original, for 10 to 100 regions an image",
    ),
    "caffe-r101-36": Release(
        "resnet101_faster_rcnn_final_iter_320000.caffemodel",
        ("https://www.dropbox.com/s/2h4hmgcvpaewizu/resnet101_faster_rcnn_final_iter_320000.caffemodel?dl=1",),
        (f"{_GOOGLE}bottom-up-attention/resnet101_faster_rcnn_final_iter_320000.caffemodel",),
        "vg_r101_caffe_36.yaml",
        "the original, for 36 regions an image",
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
        "MILVLG's ResNet-152 with pre-activation blocks, by the original's recipe",
    ),
    "milvlg-d2-r50": Release(
        "bua-d2-frcn-r50.pth",
        (f"{_MILVLG}EfYoinBHrFlKmKonocse8yEBXN-hyCHNygYqjxGpIBsPvQ?download=1",),
        (),
        "vg_r50_grid_feats.yaml",
        "MILVLG's ResNet-50 by the recipe of grid-feats-vqa, on train and val",
    ),
    "milvlg-d2-r101": Release(
        "bua-d2-frcn-r101.pth",
        (f"{_MILVLG}EXXItFlOpHlNq81O1H_cPyoBXUPyXoHmIwPEudnTWKX4rQ?download=1",),
        (),
        "vg_r101_grid_feats.yaml",
        "MILVLG's ResNet-101, likewise",
    ),
    "milvlg-d2-x152": Release(
        "bua-d2-frcn-x152.pth",
        (f"{_MILVLG}EdLhYc39P8tBkEDVCDOrNV4BgPhz9M4iBq8oPw1iyVSlmg?download=1",),
        (),
        "vg_x152_grid_feats.yaml",
        "MILVLG's ResNeXt-152 32x8d, likewise",
    ),
    "imagenet-r50": Release(
        "R-50.pkl",
        (f"{_DETECTRON2}ImageNetPretrained/MSRA/R-50.pkl",),
        (),
        "vg_r50_grid_feats.yaml",
        "MSRA's ResNet-50 on ImageNet, to start training from",
    ),
    "imagenet-r101": Release(
        "R-101.pkl",
        (f"{_DETECTRON2}ImageNetPretrained/MSRA/R-101.pkl",),
        (),
        "vg_r101.yaml",
        "MSRA's ResNet-101 on ImageNet, to start training from",
    ),
}


def fetch(weights: str | Path) -> Path:
    """The local file of weights, downloaded where it is not in the cache yet.

    The cache is that of iopath and fvcore ($FVCORE_CACHE, or ~/.torch/iopath_cache), and huggingface_hub's own.

    Args:
        weights: a name in ``ZOO``, a path, which is returned as it is, or an address: http(s)://...,
            detectron2://..., or hf://<owner>/<repository>[/<file>].

    Raises:
        InputError: says which addresses failed and where to put a file that was got in another way.
    """
    text = str(weights)
    if os.path.exists(text):
        return Path(text)
    if text in ZOO:
        return _fetch_release(text, ZOO[text])
    if "://" in text:
        return _fetch_address(text)
    if "/" not in text and "." not in text:
        raise InputError(f"{text}: neither a file nor released weights; the names are {', '.join(ZOO)}")
    return Path(text)


def _fetch_release(name: str, release: Release) -> Path:
    cached = Path(get_cache_dir()) / "bua" / name / release.file
    if cached.is_file():
        return cached
    reasons = [f"{address} is gone" for address in release.gone]
    for address in release.places:
        try:
            return _fetch(address, cached)
        except _NotFetched as error:
            reasons.append(str(error))
    raise InputError(f"{name}: {'; '.join(reasons)}; get {release.file} elsewhere and put it at {cached}")


def _fetch_address(address: str) -> Path:
    if address.startswith("detectron2://"):
        address = _DETECTRON2 + address.removeprefix("detectron2://")
    if not address.startswith(("hf://", "http://", "https://")):
        raise InputError(f"{address}: not an address that bua can fetch; use http(s)://, hf:// or detectron2://")
    # iopath's PathManager keeps its files in the same places, so that Detectron2 finds them too.
    cached = Path(get_cache_dir()) / urlparse(address).path.lstrip("/")
    try:
        return _fetch(address, cached)
    except _NotFetched as error:
        advice = "get the file elsewhere and name it" if address.startswith("hf://") else f"or put the file at {cached}"
        raise InputError(f"{error}; try again, {advice}") from error


class _NotFetched(Exception):
    """One line: the address, and why."""


def _fetch(address: str, cached: Path) -> Path:
    """The local file of an address: ``cached`` for http(s), one in huggingface_hub's cache for hf."""
    try:
        if address.startswith("hf://"):
            owner, repository, *file = address.removeprefix("hf://").split("/", 2)
            return Path(hf_hub_download(f"{owner}/{repository}", *(file or ["pytorch_model.bin"])))
        cached.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(cached)):
            return Path(download(address, str(cached.parent), filename=cached.name))
    except (OSError, ValueError) as error:  # what urllib and huggingface_hub raise derives from these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _NotFetched(f"{address}: cannot be downloaded ({reason})") from error
