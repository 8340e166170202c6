#!/usr/bin/env python3
"""Makes a data set, trains a detector on it, extracts features, trains models that answer questions, caption and ground
phrases with them, scores all of these, and writes a page that shows them.

    tools/demo.py --output output/demo

Stopped with Ctrl-C, the same command goes on where it was.
"""

import argparse
import logging
import sys
from pathlib import Path

from bua.demo import run_demo
from bua.demo.page import scores
from bua.errors import command
from bua.visualization.report import format_seconds
from bua.visualization.scores import percent

QUICK = ("SOLVER.MAX_ITER", "60", "TEST.EVAL_PERIOD", "0")
QUICK_HEADS = ("SOLVER.EPOCHS", "1")


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder (%(default)s)")
    parser.add_argument("--config-file", default="configs/shapes.yaml", help="the detector (%(default)s)")
    parser.add_argument(
        "--head-configs", default="configs", help="folder with those of vqa, captioning and grounding (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="train for a moment only: to see that everything works")
    parser.add_argument("--num-train", type=int, default=4000, help="training images to make (%(default)s)")
    parser.add_argument("--num-val", type=int, default=300, help="validation images (%(default)s)")
    parser.add_argument("--num-test", type=int, default=500, help="test images (%(default)s)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="the detector's configuration keys and values"
    )
    args = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    metrics = run_demo(
        args.output,
        args.config_file,
        [*(QUICK if args.quick else ()), *args.overrides],
        head_configs=args.head_configs,
        head_overrides=QUICK_HEADS if args.quick else (),
        num_train=args.num_train,
        num_val=args.num_val,
        num_test=args.num_test,
    )
    print(f"\n{'':22}{'':10}{'score':>8}{'blind':>8}{'bound':>8}")
    for row in scores(metrics):
        values = (row.score, row.blind, row.bound)
        print(f"{row.task:22}{row.metric:10}" + "".join(f"{percent(value):>8}" for value in values))
    seconds = sum(value for name, value in metrics.items() if name.startswith("seconds/"))
    print(f"in {format_seconds(seconds)}")
    print(f"open {(args.output / 'index.html').resolve()}")


if __name__ == "__main__":
    sys.exit(main())
