#!/usr/bin/env python3
"""Writes the region features of images to a file: bottom-up attention.

    tools/extract.py --config-file configs/vg_r101.yaml --weights model_final.pth --images val2014 --output val2014.tsv

Run again, the same command goes on where it stopped. Exit code: 0, 1 where some images failed, 2 for bad input (with
--on-error stop an image that fails is bad input), 130 after Ctrl-C.
"""

import argparse
import logging
import sys

from bua.errors import command
from bua.extraction import extract
from bua.extraction.cluster import SHARD_SIZE
from bua.extraction.run import ON_ERROR
from bua.features import FORMATS
from bua.modeling.optimize import PRECISIONS


@command
def main(argv: list[str] | None = None) -> int:
    args = vars(parse(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = args["output"]
    summary = extract(**args)
    print(
        f"{output}: {summary.done} images written in {summary.seconds:.1f} s "
        f"({summary.images_per_second:.2f} a second), {summary.skipped} were there, {summary.failed} failed"
    )
    if summary.failed:
        print(f"{summary.failed} images failed; see {output.rstrip('/')}.failures.jsonl", file=sys.stderr)
        return 1
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, under the names that ``bua.extraction.extract`` has for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="YAML file that describes the detector")
    parser.add_argument("--weights", help="checkpoint, or `random`; default: MODEL.WEIGHTS of the configuration")

    group = parser.add_argument_group("images")
    group.add_argument(
        "--images",
        required=True,
        help="folder, glob (in quotes), list file (path or path<TAB>id), COCO JSON, Visual Genome's image_data.json, "
        "WebDataset shards (shards-{000..123}.tar), an image, or - for a list on standard input",
    )
    group.add_argument("--image-root", help="folder that paths in a JSON or a list are relative to")
    group.add_argument(
        "--on-error", choices=ON_ERROR, default="skip", help="at an image that fails: list it and go on, or stop"
    )

    group = parser.add_argument_group("what of each image")
    group.add_argument("--min-boxes", type=int, default=10, help="least number of regions (%(default)s)")
    group.add_argument("--max-boxes", type=int, default=100, help="largest number of regions (%(default)s)")
    group.add_argument("--score-threshold", type=float, default=0.2, help="least confidence, 0 to 1 (%(default)s)")
    group.add_argument("--nms-threshold", type=float, default=0.3, help="IoU of suppression, 0 to 1 (%(default)s)")
    group.add_argument("--regressed", action="store_true", help="boxes regressed for the best class, not proposals")
    group.add_argument("--boxes", help="boxes to describe: JSON, TSV, npz, or a folder of npz or npy files; in pixels")
    group.add_argument("--grid", action="store_true", help="the cells of the feature map instead of regions")

    group = parser.add_argument_group("output")
    group.add_argument("--output", required=True, help="file to write; a folder for npz, mmf, vilbert-lmdb, flat")
    group.add_argument("--format", choices=FORMATS, default="tsv", help="default: %(default)s, the original's columns")
    group.add_argument("--vocabulary", help="folder of the names' files, for formats that hold names")

    group = parser.add_argument_group("machines and speed")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: MODEL.DEVICE of the configuration")
    group.add_argument("--num-gpus", type=int, default=1, help="devices, with a process each (%(default)s)")
    group.add_argument("--ray", metavar="ADDRESS", help="work on a Ray cluster: auto, host:port, or local")
    group.add_argument("--shard-size", type=positive, default=SHARD_SIZE, help="images a task on Ray (%(default)s)")
    group.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the convolutions (%(default)s)")
    group.add_argument("--compile", action="store_true", help="compile the network first (torch.compile)")
    group.add_argument("--batch-size", type=positive, default=1, help="images of one size a step (%(default)s)")
    group.add_argument("--num-workers", type=natural, help="threads that decode; default: DATALOADER.NUM_WORKERS")

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
