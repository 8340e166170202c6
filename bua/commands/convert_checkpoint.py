"""Converts weights from any released layout to that of bua, Detectron2 or Hugging Face.

    bua convert-checkpoint resnet101_faster_rcnn_final.caffemodel caffe_10_100.pth --to bua
    bua convert-checkpoint output/mine/model_final.pth pytorch_model.bin --to huggingface
    bua convert-checkpoint model_epoch12.pth ban.pth --to bua --vqa-folder datasets/vqa/prepared
    bua convert-checkpoint model.pth updown.pth --to bua --vocabulary bottom-up-attention-vqa/data

bua reads detectors in every released layout without conversion, and its plug-in for Detectron2 reads bua's layout.
Models for question answering and grounding of hengyuan-hu/bottom-up-attention-vqa and jnhwkim/ban-vqa can be converted
to bua's layout. Their files do not contain the vocabularies. With --vqa-folder or --vocabulary, these are added, so
that bua answer and bua predict-vqa can use the models.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bua.errors import InputError

if TYPE_CHECKING:
    from bua.weights.export import AnchorGeometry
    from bua.weights.layouts import Layout, Weights


# First parts of the names of a detector's weights in bua's layout.
DETECTOR_PARTS = ("backbone.", "proposal_generator.", "roi_heads.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a file, the name of a released checkpoint, or an address")
    parser.add_argument("target", type=Path, help="file to write; if its name ends with .pkl, it holds numpy arrays")
    parser.add_argument(
        "--to", required=True, choices=("bua", "detectron2", "huggingface"), help="layout of the file to write"
    )
    parser.add_argument(
        "--config-file", help="configuration of the detector; default: the one that a checkpoint of bua holds"
    )
    parser.add_argument(
        "--vqa-folder",
        type=Path,
        help="folder that prepare-vqa wrote, with the vocabularies of a VQA model in the same order",
    )
    parser.add_argument(
        "--vocabulary",
        type=Path,
        nargs="+",
        help="the authors' dictionary.pkl and trainval_label2ans.pkl, or their folder `data` with them, in place of "
        "--vqa-folder; no code in them is executed",
    )


def run(args: argparse.Namespace) -> None:
    from bua.io.files import exclusive

    if not args.target.parent.is_dir():
        raise InputError(f"{args.target}: its folder does not exist; create it first")
    with exclusive(args.target):
        if args.target.exists():
            raise InputError(f"{args.target}: exists already; remove it, or name another file")
        convert(args)


def convert(args: argparse.Namespace) -> None:
    from bua.checkpoint import identify, load_checkpoint
    from bua.config import load_cfg
    from bua.detection.description import cfg_of_weights, description_of
    from bua.grounding.released import RELEASED_MODELS as GROUNDING_MODELS
    from bua.tasks.released import read_released_checkpoint
    from bua.vqa.released import RELEASED_MODELS as VQA_MODELS
    from bua.weights.export import released_geometry, to_detectron2, to_huggingface, write_weights
    from bua.weights.layouts import LayoutError
    from bua.weights.zoo import fetch

    cfg = load_cfg(args.config_file) if args.config_file else None
    path = fetch(args.source)
    if released := read_released_checkpoint(path, (*VQA_MODELS, *GROUNDING_MODELS)):
        convert_task_model(args, *released)
        return
    layout = identify(args.source)
    weights = load_checkpoint(args.source)
    if layout.name == "bua" and not any(name.startswith(DETECTOR_PARTS) for name in weights):
        raise InputError(f"{args.source}: is not a detector; a task's model that bua trained needs no conversion")
    print(f"{args.source}: {len(weights)} tensors in the layout `{layout.name}` ({layout.origin})")
    print(f"configuration: {layout.config}")
    if args.to == "bua":
        write_weights(args.target, weights)
    else:
        if cfg is None and description_of(path) is not None:
            cfg = cfg_of_weights(path)
        has_no_attribute = cfg.MODEL.BUA.ATTRIBUTES.NO_ATTRIBUTE_CLASS if cfg else layout.name != "grid-feats"
        if args.to == "huggingface" and not has_no_attribute:
            raise InputError(
                f"{args.source}: has no class for `no attribute`, but Hugging Face's layout needs it; use detectron2"
            )
        geometry = configured_geometry(cfg) if cfg else released_geometry(weights)
        to_layout = {"detectron2": to_detectron2, "huggingface": to_huggingface}[args.to]
        try:
            converted = to_layout(weights, geometry)
        except LayoutError as error:
            raise InputError(f"{args.source}: {error}; see --config-file and --to") from error
        write_weights(args.target, converted, bare=args.to == "huggingface")
        if geometry and geometry.convention == "caffe":
            print("note: the box convention changes from `caffe` to `detectron2`, with which regions differ slightly")
    print(f"{args.target}: written in the layout of {args.to}")


def convert_task_model(args: argparse.Namespace, layout: "Layout", weights: "Weights") -> None:
    from bua.checkpoint import save_checkpoint
    from bua.tasks.released import constructor_arguments
    from bua.vqa.authors_vocabularies import read_both_vocabularies
    from bua.vqa.dataset import load_vocabularies
    from bua.vqa.inference import add_vocabularies
    from bua.weights.export import write_weights

    if args.to != "bua":
        raise InputError(
            f"--to {args.to}: is only for detectors, and {args.source} is a model of {layout.origin}; use bua"
        )
    sizes = ", ".join(f"{name}={value}" for name, value in constructor_arguments(weights).items())
    option = "--vqa-folder" if args.vqa_folder else "--vocabulary"
    if args.vqa_folder and args.vocabulary:
        raise InputError("--vqa-folder and --vocabulary: both name vocabularies; use one of them")
    if not args.vqa_folder and not args.vocabulary:
        write_weights(args.target, weights)
    elif layout.name == "ban-flickr":
        raise InputError(
            f"{option}: is only for question answering, and {args.source} is a model for grounding; omit it"
        )
    elif args.vqa_folder:
        words, answers = load_vocabularies(args.vqa_folder)
        save_checkpoint(args.target, **add_vocabularies(weights, words, answers, args.vqa_folder))
    else:
        words, answers = read_both_vocabularies(args.vocabulary)
        source = ", ".join(map(str, args.vocabulary))
        save_checkpoint(args.target, **add_vocabularies(weights, words, answers, source))
    print(f"{args.source}: {len(weights)} tensors in the layout `{layout.name}` ({layout.origin})")
    print(f"configuration: {layout.config}, with {sizes}")
    print(f"{args.target}: written in the layout of bua")


def configured_geometry(cfg) -> "AnchorGeometry":
    from bua.weights.export import AnchorGeometry

    generator = cfg.MODEL.ANCHOR_GENERATOR
    return AnchorGeometry(generator.SIZES[0], generator.ASPECT_RATIOS[0], cfg.MODEL.BUA.BOX_CONVENTION)
