#!/usr/bin/env python3
"""Writes the region features of pictures to a file: bottom-up attention.

    tools/extract.py --config-file configs/vg_r101.yaml --weights model_final.pth --images val2014 --output val2014.tsv

Run again, the same command goes on where it stopped. Exit code: 0, 1 where some pictures failed, 2 for bad input.
"""

import argparse
import logging
import sys

from bua.errors import command
from bua.extraction import extract
from bua.features import FORMATS


@command
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    summary = extract(
        args.images,
        args.output,
        config_file=args.config_file,
        weights=args.weights,
        overrides=args.overrides,
        format=args.format,
        image_root=args.image_root,
        min_boxes=args.min_boxes,
        max_boxes=args.max_boxes,
        score_threshold=args.score_threshold,
        nms_threshold=args.nms_threshold,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        device=args.device,
        allow_missing=args.allow_missing,
    )
    print(
        f"{args.output}: {summary.done} pictures written in {summary.seconds:.1f} s "
        f"({summary.images_per_second:.2f} a second), {summary.skipped} were there, {summary.failed} failed"
    )
    if summary.failed:
        print(f"{summary.failed} pictures failed; see {args.output.rstrip('/')}.failures.jsonl", file=sys.stderr)
        return 1
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="YAML file that describes the detector")
    parser.add_argument("--weights", help="checkpoint, or `random`; default: MODEL.WEIGHTS of the configuration")
    parser.add_argument(
        "--images",
        required=True,
        help="folder, glob (in quotes), list file (path or path<TAB>id), COCO JSON, or picture",
    )
    parser.add_argument("--image-root", help="folder that paths in a JSON or a list file are relative to")
    parser.add_argument("--output", required=True, help="file to write; a folder for npz")
    parser.add_argument("--format", choices=FORMATS, default="tsv", help="default: %(default)s, the original's columns")
    parser.add_argument("--min-boxes", type=int, default=10, help="least number of regions a picture (%(default)s)")
    parser.add_argument("--max-boxes", type=int, default=100, help="largest number of regions a picture (%(default)s)")
    parser.add_argument("--score-threshold", type=float, default=0.2, help="least confidence, 0 to 1 (%(default)s)")
    parser.add_argument("--nms-threshold", type=float, default=0.3, help="IoU of suppression, 0 to 1 (%(default)s)")
    parser.add_argument("--batch-size", type=positive, default=1, help="pictures a step (%(default)s)")
    parser.add_argument(
        "--num-workers", type=natural, help="processes that decode pictures; default: DATALOADER.NUM_WORKERS"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: MODEL.DEVICE of the configuration")
    parser.add_argument(
        "--allow-missing", action="store_true", help="let parameters that the weights lack keep random values"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys and their values")
    return parser.parse_intermixed_args(argv)


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def natural(text: str) -> int:
    if (value := int(text)) < 0:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(main())
