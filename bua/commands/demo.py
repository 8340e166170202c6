"""Runs the demo: makes a data set, trains a detector on it, extracts features, trains models for question answering,
captioning and phrase grounding on these, scores all models, and writes a page of the results.

    bua demo --output output/demo

After Ctrl-C, run the same command again to continue.
"""

import argparse
import logging
from pathlib import Path

from bua.commands.arguments import add_config_file, add_overrides

QUICK = ("SOLVER.MAX_ITER", "60", "TEST.EVAL_PERIOD", "0")
QUICK_TASKS = ("SOLVER.EPOCHS", "1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder to write to (%(default)s)")
    add_config_file(parser, "the detector's configuration", default="shapes.yaml")
    parser.add_argument(
        *("--task-configs", "--head-configs"),
        default="configs",
        help="folder with the configurations of the three tasks, in its folders vqa, captioning and grounding "
        "(%(default)s); --head-configs is the option's former name",
    )
    parser.add_argument(
        "--quick", action="store_true", help="train only for a few iterations, to check that everything runs"
    )
    parser.add_argument("--num-train", type=int, default=4000, help="number of training images (%(default)s)")
    parser.add_argument("--num-val", type=int, default=300, help="number of validation images (%(default)s)")
    parser.add_argument("--num-test", type=int, default=500, help="number of test images (%(default)s)")
    add_overrides(parser, " for the detector")


def run(args: argparse.Namespace) -> None:
    from bua.demo import run_demo
    from bua.demo.page import scores
    from bua.visualization.report import format_seconds
    from bua.visualization.scores import percent

    logging.basicConfig(level=logging.INFO, format="%(message)s")

    metrics = run_demo(
        args.output,
        args.config_file,
        [*(QUICK if args.quick else ()), *args.overrides],
        task_configs=args.task_configs,
        task_overrides=QUICK_TASKS if args.quick else (),
        num_train=args.num_train,
        num_val=args.num_val,
        num_test=args.num_test,
    )
    print(f"\n{'':22}{'':10}{'score':>8}{'blind':>8}{'bound':>8}")
    for row in scores(metrics):
        values = (row.score, row.blind, row.bound)
        print(f"{row.task:22}{row.metric:10}" + "".join(f"{percent(value):>8}" for value in values))
    seconds = sum(value for name, value in metrics.items() if name.startswith("seconds/"))
    print(f"time: {format_seconds(seconds)}")
    print(f"open {(args.output / 'index.html').resolve()}")
