"""Trains or evaluates a detector, as a configuration describes.

    bua train-net --config-file vg_r101.yaml --num-gpus 8
    bua train-net --config-file vg_r101.yaml --eval-only MODEL.WEIGHTS output/vg_r101/model_final.pth

If training is interrupted, --resume continues it from the newest checkpoint, and --resume-from FILE from another one of
the run. Exit code: 0 if it was completed, 1 if a loss was infinite or not a number, 2 for bad input, 130 after Ctrl-C.
"""

import argparse
import sys
from collections.abc import Callable

from bua.commands.arguments import add_config_file, add_overrides, add_resume
from bua.errors import InputError
from bua.options import ENGINES, TRAINING_FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_file(parser, "the configuration of the detector and its training, such as configs/vg_r101.yaml")
    add_resume(parser)
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    parser.add_argument("--engine", choices=ENGINES, help="default: detectron2 if it is installed, else torch")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine, one per GPU (%(default)s)")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines (%(default)s)")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0 (%(default)s)")
    parser.add_argument("--dist-url", default="auto", help="tcp://host:port of the first machine, if there are several")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    train_detector: Callable[..., object]
    evaluate_checkpoint: Callable[..., object]
    engine = _engine(args)
    if engine == "detectron2":
        from bua.d2.config import load_cfg
        from bua.d2.launch import launch
        from bua.d2.trainer import evaluate_checkpoint, train_detector
    else:
        from bua.config import load_cfg
        from bua.detection.training import evaluate_checkpoint, train_detector
        from bua.engine import launch
    from bua.detection.catalog import check_prepared
    from bua.detection.own_data import follow_own_data
    from bua.engine import NonFiniteLoss
    from bua.engine.launch import check_processes
    from bua.modeling.vinvl import META_ARCHITECTURE as VINVL
    from bua.modeling.vinvl import NOT_TRAINED

    cfg = load_cfg(args.config_file, args.overrides)
    if cfg.MODEL.META_ARCHITECTURE == VINVL:
        raise InputError(f"{args.config_file}: {NOT_TRAINED}")
    if cfg.MODEL.BUA.DUMP.OUTPUT and engine == "torch" and not args.eval_only:
        raise InputError(
            f"MODEL.BUA.DUMP.OUTPUT is {cfg.MODEL.BUA.DUMP.OUTPUT!r}: only Detectron2's engine writes features during "
            "a training; set it to '' and run `bua extract` afterwards, or use --engine detectron2"
        )
    # Said before processes are started, which takes a while.
    check_processes(cfg.MODEL.DEVICE, args.num_gpus)
    check_prepared([*(() if args.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST], cfg.DATASETS.FILES)
    for line in follow_own_data(cfg, args.overrides[::2]):
        print(line, flush=True)
    function, arguments = (evaluate_checkpoint, (cfg,)) if args.eval_only else (train_detector, (cfg, args.resume))
    try:
        launch(
            function,
            arguments,
            num_processes=args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            address=args.dist_url,
        )
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        return TRAINING_FAILED
    return 0


def _engine(args: argparse.Namespace) -> str:
    """Returns the engine to train with: the torch engine for an EfficientDet, or else that of ``choose_engine``."""
    from bua.config_files import find_config, read_config
    from bua.modeling.efficientdet import META_ARCHITECTURE as EFFICIENTDET

    model = read_config(find_config(args.config_file)).get("MODEL")
    in_file = model.get("META_ARCHITECTURE") if isinstance(model, dict) else None
    overrides = dict(zip(args.overrides[::2], args.overrides[1::2]))
    if overrides.get("MODEL.META_ARCHITECTURE", in_file) != EFFICIENTDET:
        return choose_engine(args.engine)
    if args.engine == "detectron2":
        raise InputError(f"--engine detectron2: Detectron2 has no {EFFICIENTDET}; use --engine torch")
    if choose_engine(None) == "detectron2":
        print(f"{args.config_file}: {EFFICIENTDET} is trained on the torch engine", flush=True)
    return "torch"


def choose_engine(requested: str | None) -> str:
    """Returns the engine to train with: the requested one, or else Detectron2 if it is installed."""
    from bua.extraction.engines import has_detectron2

    if requested == "detectron2" and not has_detectron2():
        raise InputError("--engine detectron2: Detectron2 is not installed; see README.md, or use --engine torch")
    return requested or ("detectron2" if has_detectron2() else "torch")
