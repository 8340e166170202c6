#!/usr/bin/env python3
"""Writes weights in any released layout as bua's, Detectron2's or Hugging Face's.

    tools/convert_checkpoint.py resnet101_faster_rcnn_final.caffemodel caffe_10_100.pth --to bua
    tools/convert_checkpoint.py output/mine/model_final.pth pytorch_model.bin --to huggingface --config-file mine.yaml

bua reads every released layout as it is, and its plug-in for Detectron2 reads bua's; nothing needs converting for them.
"""

import argparse
import sys
from pathlib import Path

from bua.checkpoint import identify, load_checkpoint
from bua.config import load_cfg
from bua.errors import InputError, command
from bua.weights.export import AnchorGeometry, released_geometry, to_detectron2, to_huggingface, write_weights
from bua.weights.layouts import LayoutError


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.target.exists():
        raise InputError(f"{args.target}: exists; remove it, or name another file")
    if not args.target.parent.is_dir():
        raise InputError(f"{args.target}: no such folder; make it first")
    cfg = load_cfg(args.config_file) if args.config_file else None
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


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="file, released checkpoint's name, or address")
    parser.add_argument("target", type=Path, help="file to write; one that ends with .pkl holds numpy arrays")
    parser.add_argument("--to", required=True, choices=("bua", "detectron2", "huggingface"))
    parser.add_argument("--config-file", help="of the detector; needed for weights that bua trained")
    return parser.parse_args(argv)


def configured_geometry(cfg) -> AnchorGeometry:
    generator = cfg.MODEL.ANCHOR_GENERATOR
    return AnchorGeometry(generator.SIZES[0], generator.ASPECT_RATIOS[0], cfg.MODEL.BUA.BOX_CONVENTION)


if __name__ == "__main__":
    sys.exit(main())
