#!/usr/bin/env python3
"""Writes weights in any released layout as bua's, Detectron2's or Hugging Face's.

    tools/convert_checkpoint.py resnet101_faster_rcnn_final.caffemodel caffe_10_100.pth --to bua
    tools/convert_checkpoint.py output/mine/model_final.pth pytorch_model.bin --to huggingface --config-file mine.yaml
    tools/convert_checkpoint.py model_epoch12.pth ban.pth --to bua --vqa-folder datasets/vqa/prepared

bua reads every released layout of a detector as it is, and its plug-in for Detectron2 reads bua's; nothing needs
converting for them. Of models for question answering and grounding, those of hengyuan-hu/bottom-up-attention-vqa and
jnhwkim/ban-vqa become bua's. They come without their vocabularies, which --vqa-folder adds, so that tools/answer.py and
tools/predict_vqa.py can use them.
"""

import argparse
import sys
from pathlib import Path

from bua.checkpoint import identify, load_checkpoint, save_checkpoint
from bua.config import load_cfg
from bua.errors import InputError, command
from bua.vqa.inference import add_vocabularies
from bua.vqa.released import constructor_arguments, read_seed_checkpoint
from bua.weights.export import AnchorGeometry, released_geometry, to_detectron2, to_huggingface, write_weights
from bua.weights.layouts import Layout, LayoutError, Weights
from bua.weights.zoo import fetch


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.target.exists():
        raise InputError(f"{args.target}: exists; remove it, or name another file")
    if not args.target.parent.is_dir():
        raise InputError(f"{args.target}: no such folder; make it first")
    cfg = load_cfg(args.config_file) if args.config_file else None
    if seed := read_seed_checkpoint(fetch(args.source)):
        convert_seed(args, *seed)
        return
    layout = identify(args.source)
    weights = load_checkpoint(args.source)
    print(f"{args.source}: {len(weights)} tensors in the layout `{layout.name}` ({layout.origin})")
    print(f"configuration: {layout.config}")
    if args.to == "bua":
        write_weights(args.target, weights)
    else:
        has_no_attribute = cfg.MODEL.BUA.ATTRIBUTES.NO_ATTRIBUTE_CLASS if cfg else layout.name != "grid-feats"
        if args.to == "huggingface" and not has_no_attribute:
            raise InputError(f"{args.source}: has no `no attribute` class, which Hugging Face's layout needs")
        geometry = configured_geometry(cfg) if cfg else released_geometry(weights)
        convert = {"detectron2": to_detectron2, "huggingface": to_huggingface}[args.to]
        try:
            converted = convert(weights, geometry)
        except LayoutError as error:
            raise InputError(f"{args.source}: {error}; see --config-file and --to") from error
        write_weights(args.target, converted, bare=args.to == "huggingface")
        if geometry and geometry.convention == "caffe":
            print("note: from the box convention `caffe` to `detectron2`, in which regions differ a little")
    print(f"{args.target}: written in the layout of {args.to}")


def convert_seed(args: argparse.Namespace, layout: Layout, weights: Weights) -> None:
    if args.to != "bua":
        raise InputError(f"--to {args.to}: is for detectors, and {args.source} is a model of {layout.origin}; use bua")
    sizes = ", ".join(f"{name}={value}" for name, value in constructor_arguments(weights).items())
    if args.vqa_folder is None:
        write_weights(args.target, weights)
    elif layout.name == "ban-flickr":
        raise InputError(
            f"--vqa-folder: is for question answering, and {args.source} is a model for grounding; omit it"
        )
    else:
        save_checkpoint(args.target, **add_vocabularies(weights, args.vqa_folder))
    print(f"{args.source}: {len(weights)} tensors in the layout `{layout.name}` ({layout.origin})")
    print(f"configuration: {layout.config}, with {sizes}")
    print(f"{args.target}: written in the layout of bua")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="file, released checkpoint's name, or address")
    parser.add_argument("target", type=Path, help="file to write; one that ends with .pkl holds numpy arrays")
    parser.add_argument("--to", required=True, choices=("bua", "detectron2", "huggingface"))
    parser.add_argument("--config-file", help="of the detector; needed for weights that bua trained")
    parser.add_argument(
        "--vqa-folder",
        type=Path,
        help="of datasets/prepare_vqa.py, with the vocabularies, in their order, of a question answering model",
    )
    return parser.parse_args(argv)


def configured_geometry(cfg) -> AnchorGeometry:
    generator = cfg.MODEL.ANCHOR_GENERATOR
    return AnchorGeometry(generator.SIZES[0], generator.ASPECT_RATIOS[0], cfg.MODEL.BUA.BOX_CONVENTION)


if __name__ == "__main__":
    sys.exit(main())
