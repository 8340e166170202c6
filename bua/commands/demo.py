"""Shows everything that bua does on drawn images, and writes a page of the results.

    bua demo
    bua demo --train

Without --train, the models that come with the package are applied to newly drawn images and scored, which takes about a
minute. With --train, the demo makes the data set Shapes, trains a detector on it, extracts features, trains models for
question answering, captioning and phrase grounding on these, and scores all models, which takes about 15 minutes on two
CPU cores. After Ctrl-C, run the same command again to continue.
"""

import argparse
import logging
import sys
from pathlib import Path

from bua.commands.arguments import add_config_file, add_overrides
from bua.errors import InputError
from bua.options import TRAINING_FAILED

QUICK = ("SOLVER.MAX_ITER", "60", "TEST.EVAL_PERIOD", "0")
QUICK_TASKS = ("SOLVER.EPOCHS", "1")
QUICK_IMAGES = 20
NUM_TRAIN, NUM_VAL, NUM_TEST, NUM_TEST_PACKED = 4000, 300, 500, 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        help="folder to write to; default: output/demo, or output/demo-train with --train",
    )
    parser.add_argument("--train", action="store_true", help="train all models from pixels")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"check that everything runs: score only {QUICK_IMAGES} images, or train only for a few iterations",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... without --train (%(default)s)")
    parser.add_argument(
        "--num-test",
        type=int,
        help=f"number of test images; default: {NUM_TEST_PACKED}, or {NUM_TEST} with --train",
    )

    group = parser.add_argument_group("training")
    group.add_argument("--num-train", type=int, default=NUM_TRAIN, help="number of training images (%(default)s)")
    group.add_argument("--num-val", type=int, default=NUM_VAL, help="number of validation images (%(default)s)")
    add_config_file(group, "the detector's configuration", default="shapes.yaml")
    group.add_argument(
        *("--task-configs", "--head-configs"),
        help="folder with the configurations of the three tasks, in its folders vqa, captioning and grounding; "
        "default: those of bua (--head-configs is the option's former name)",
    )
    add_overrides(parser, ", for the detector's training")


def run(args: argparse.Namespace) -> int:
    from bua.demo.page import scores
    from bua.engine.losses import NonFiniteLoss
    from bua.visualization.report import format_seconds
    from bua.visualization.scores import percent

    # What the stages log otherwise, such as files that a data set may lack, is of interest to their own commands.
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    output = args.output or Path("output/demo-train" if args.train else "output/demo")
    try:
        metrics = _train(args, output) if args.train else _apply(args, output)
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        return TRAINING_FAILED
    print(f"\n{'':22}{'':10}{'score':>8}{'blind':>8}{'bound':>8}")
    for row in scores(metrics):
        values = (row.score, row.blind, row.bound)
        print(f"{row.task:22}{row.metric:10}" + "".join(f"{percent(value):>8}" for value in values))
    seconds = sum(value for name, value in metrics.items() if name.startswith("seconds/"))
    print(f"time: {format_seconds(seconds)}")
    print(f"open {(output / 'index.html').resolve()}")
    return 0


def _apply(args: argparse.Namespace, output: Path) -> dict[str, float]:
    from bua.config import check_device
    from bua.demo.packed import run_packed_demo

    if args.overrides:
        raise InputError(f"{args.overrides[0]}: changes the detector's training; add --train")
    check_device(args.device, "--device")
    number = args.num_test or (QUICK_IMAGES if args.quick else NUM_TEST_PACKED)
    return run_packed_demo(output, num_test=number, device=args.device)


def _train(args: argparse.Namespace, output: Path) -> dict[str, float]:
    from bua.config_files import FOLDER
    from bua.demo import run_demo

    return run_demo(
        output,
        args.config_file,
        [*(QUICK if args.quick else ()), *args.overrides],
        task_configs=args.task_configs or FOLDER,
        task_overrides=QUICK_TASKS if args.quick else (),
        num_train=args.num_train,
        num_val=args.num_val,
        num_test=args.num_test or NUM_TEST,
    )
