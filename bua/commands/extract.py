"""Writes the region features of images (bottom-up attention) to a file.

    bua extract --config-file vg_r101.yaml --detector model_final.pth --images val2014 --output val2014.tsv
    bua extract --min-boxes 10 --max-boxes 100

The second command takes vg_r101.yaml, the newest checkpoint of its training, and the images of DATASETS.TEST. If the
command is interrupted, run it again: it continues where it stopped. Exit code: 0 if all images have features, 1 if some
images failed, 2 for bad input (with --on-error stop this includes an image that fails), 130 after Ctrl-C,
143 after SIGTERM.
"""

import argparse
import logging
import sys

from bua.commands.arguments import add_detector, add_engine, add_overrides, add_reader
from bua.options import FEATURES_FROM, FORMATS, ON_ERROR, PRECISIONS, SHARD_SIZE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file",
        help="configuration of the detector, also one of Detectron2's model zoo; default: the one that the checkpoint "
        "holds, or that of released weights, or vg_r101.yaml",
    )
    add_detector(
        parser,
        "MODEL.WEIGHTS of the configuration, or that of Detectron2's model zoo, "
        "or the newest checkpoint in its OUTPUT_DIR; `random` for random weights",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="keep random values for parameters that the checkpoint lacks"
    )

    add_engine(parser)
    parser.add_argument(
        "--feature-layer",
        default="",
        metavar="LAYER",
        help="with --engine detectron2, the fully connected layer of the box head whose output is the feature: fc1, "
        "fc2, ...; default: the last one",
    )

    group = parser.add_argument_group("images")
    group.add_argument(
        "--images",
        help="one of: a folder, a glob (in quotes), a list file with a line `path` or `path<TAB>id` per image, a COCO "
        "JSON, Visual Genome's image_data.json, WebDataset shards (shards-{000..123}.tar), a single image, or - for a "
        "list on standard input; default: the images of DATASETS.TEST",
    )
    group.add_argument("--image-root", help="folder that the paths in a JSON or a list file are relative to")
    group.add_argument(
        "--on-error",
        choices=ON_ERROR,
        default="skip",
        help="what to do when an image fails: `skip` lists it in OUTPUT.failures.jsonl and continues (%(default)s)",
    )

    group = parser.add_argument_group("regions of each image")
    group.add_argument("--min-boxes", type=int, help="minimum number of regions per image (10; 0 with --boxes-from)")
    group.add_argument("--max-boxes", type=int, help="maximum number of regions per image (100; 10 with --boxes-from)")
    group.add_argument(
        "--score-threshold",
        type=float,
        help="minimum confidence of a region, 0 to 1, between the limits on the number of regions (0.2; 0.1 with "
        "--boxes-from)",
    )
    group.add_argument(
        "--nms-threshold",
        type=float,
        help="IoU of non-maximum suppression, 0 to 1 (0.3; with --boxes-from 1, and across classes)",
    )
    group.add_argument(
        "--regressed",
        action="store_true",
        help="write boxes regressed for the best class of each region, instead of the proposals",
    )
    group.add_argument(
        "--boxes",
        help="describe these boxes, in pixels, instead of proposals: a JSON, TSV or npz file, a folder of npz or npy "
        "files, or features that bua reads",
    )
    group.add_argument(
        "--boxes-from",
        metavar="DETECTOR",
        help="describe the most confident boxes of this detector instead of proposals: a checkpoint, the name of "
        "released weights, a configuration file such as vg_efficientdet_d1.yaml, or torchvision:NAME, such as "
        "torchvision:fasterrcnn_resnet50_fpn",
    )
    group.add_argument(
        "--features-from",
        choices=FEATURES_FROM,
        default=FEATURES_FROM[0],
        help="what describes them: the `detector` of --detector and --config-file, or a ResNet-50 on `crops` of the "
        "image (%(default)s)",
    )
    group.add_argument(
        "--crop-weights",
        help="weights of this ResNet-50: a state dict of torchvision's, as a file or an address, or `random` for "
        "random weights; default: its ImageNet weights, by download",
    )
    group.add_argument(
        "--grid", action="store_true", help="write the cells of the feature map as features, instead of regions"
    )

    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        help="file to write; a folder for npz, mmf, vilbert-lmdb, grid-pth, flat and flat-fp16; default, without "
        "--images: a name in output/features that is made of those of the configuration and the data set",
    )
    group.add_argument(
        "--format",
        choices=FORMATS,
        help="format of the output; default: that of the reader that --for names, or tsv, the original's",
    )
    add_reader(group)
    group.add_argument(
        "--keep-probabilities",
        action="store_true",
        help="write the probabilities of all classes too, which some models are trained to predict (npz, mmf, "
        "vilbert-lmdb, --for uniter, --for m2)",
    )
    group.add_argument(
        "--vocabulary",
        help="folder of objects_vocab.txt and attributes_vocab.txt, or VinVL's JSON file of names, for formats that "
        "store class names; default: the names that the checkpoint holds, or those of the configuration's data set",
    )

    group = parser.add_argument_group("devices and speed")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: MODEL.DEVICE of the configuration")
    group.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        help="number of GPUs, each with a process, or of processes on the CPU (%(default)s)",
    )
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster instead, which `ray start` starts on its machines: `auto`, host:port, or `local` "
        "for this machine alone",
    )
    group.add_argument(
        "--shard-size", type=positive, default=SHARD_SIZE, help="number of images per task on Ray (%(default)s)"
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="fp32; tf32, which is faster on a GPU and as fp32 on the CPU; bf16, the fastest on both (%(default)s)",
    )
    group.add_argument(
        "--compile", action="store_true", help="compile a part of the network with torch.compile; takes about a minute"
    )
    group.add_argument(
        "--batch-size",
        type=positive,
        help="number of images that go through the network together; default: 1 on the CPU, 8 on a GPU",
    )
    group.add_argument(
        "--num-workers",
        type=natural,
        help="number of threads per device that decode images; default: DATALOADER.NUM_WORKERS of the configuration",
    )

    add_overrides(parser, ", such as INPUT.MIN_SIZE_TEST 800")


def run(args: argparse.Namespace) -> int:
    from bua.extraction import extract

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = vars(args)
    arguments["weights"] = arguments.pop("detector")
    summary = extract(**arguments)
    print(
        f"{summary.output}: {summary.done} images written in {summary.seconds:.1f} s "
        f"({summary.images_per_second:.2f} per second), {summary.skipped} were there before, {summary.failed} failed"
    )
    if summary.failed:
        print(f"{summary.failed} images failed; see {summary.output}.failures.jsonl", file=sys.stderr)
        return 1
    return 0


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def natural(text: str) -> int:
    if (value := int(text)) < 0:
        raise ValueError(text)
    return value
