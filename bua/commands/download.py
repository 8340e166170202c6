"""Fetches data sets from their official addresses, and unpacks them into the folders that bua expects.

    bua download visual-genome
    bua download vqa coco glove
    bua download coco --only train2014 val2014
    bua download visual-genome --only questions --dry-run

The program says first how much it will fetch, and how much space that takes. A file that was cut goes on where it was
cut when the same command is given again, and what is there is not fetched again. Sizes, and checksums where they were
published, are checked. Where a form must be filled in first, the program says where. datasets/README.md describes the
data sets.
"""

import argparse
import logging
import os
from pathlib import Path

from bua.download import CATALOG, download
from bua.download.data_set import DataSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data_sets", nargs="+", choices=CATALOG, metavar="DATA_SET", help=f"one of {', '.join(CATALOG)}"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PART",
        help="parts to fetch; default: all that are not in brackets. "
        + "; ".join(f"{name}: {_list_parts(data_set)}" for name, data_set in CATALOG.items()),
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS", "datasets")),
        help="folder of all data sets; default: the environment variable DETECTRON2_DATASETS, or else datasets",
    )
    parser.add_argument("--keep-archives", action="store_true", help="keep archives after they are unpacked")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be fetched, and how much space that takes"
    )


def run(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(message)s")
    download(args.data_sets, args.root, only=args.only, keep_archives=args.keep_archives, dry_run=args.dry_run)


def _list_parts(data_set: DataSet) -> str:
    return ", ".join(f"[{name}]" if part.optional else name for name, part in data_set.parts.items())
