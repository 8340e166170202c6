"""Draws boxes with objects and attributes on images: a detector's predictions, a data set's annotations, or both.

Annotated relations, such as "man - on - horse", are listed above the annotations.

    bua visualize cat.jpg dog.jpg --detector output/vg_r101/model_final.pth
    bua visualize --dataset shapes_train --what annotations
    bua visualize --dataset shapes_test --detector output/model_final.pth

Without --detector, the detector that comes with bua is used. It knows only the drawn images of Shapes.
"""

import argparse

from bua.commands.arguments import add_detector, add_device, add_engine, check_files, split_words
from bua.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", help="draw images of this data set, such as shapes_test")
    parser.add_argument(
        "--what",
        choices=("annotations", "predictions", "both"),
        help="for --dataset; default: both, with the annotations on the left",
    )
    parser.add_argument("--images", nargs="+", metavar="FILE", default=[], help="image files, as without an option")
    parser.add_argument(
        "--config-file",
        help="the detector's configuration; default: the one that its checkpoint holds, or that of released weights",
    )
    add_detector(parser, "the one that comes with bua, or with --config-file MODEL.WEIGHTS of the configuration")
    parser.add_argument(
        "--vocabulary",
        help="folder of objects_vocab.txt and attributes_vocab.txt, or VinVL's JSON file of names; default: the names "
        "that the checkpoint holds, or those of the data set",
    )
    add_engine(parser)
    add_device(parser)
    parser.add_argument(
        "--output", default="output/visualize", metavar="DIR", help="folder for the drawn images (%(default)s)"
    )
    parser.add_argument(
        "--num", type=int, default=20, help="number of images, spread evenly over the data set; default: %(default)s"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.4, help="least probability of a predicted object; default: %(default)s"
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="FILE or KEY VALUE",
        help="image files to draw the detector's predictions on; keys of the configuration and their values",
    )


def run(args: argparse.Namespace) -> None:
    from bua.detection.catalog import get_dataset
    from bua.extraction.engines import choose_engine, default_weights
    from bua.extraction.extractor_config import ExtractorConfig, find_weights
    from bua.extraction.image_detector import open_detector
    from bua.visualization.visualize import draw_dataset, draw_files, evenly

    files, overrides = split_words(args.words)
    files = [*args.images, *files]
    what = args.what or ("predictions" if files else "both")
    if files and (args.dataset or what != "predictions"):
        option = "--dataset" if args.dataset else f"--what {what}"
        raise InputError(f"{option}: image files have no annotations; name files, or a data set")
    if not files and not args.dataset:
        raise InputError("FILE: none given; name image files, or a data set (--dataset)")
    for option in ("detector", "vocabulary", "engine", "device") if what == "annotations" else ():
        if getattr(args, option) is not None:
            raise InputError(f"--{option}: has no effect on --what annotations; leave it out")
    check_files(files)
    if args.num < 1:
        raise InputError(f"--num: is {args.num}; give 1 or more")
    if not 0 <= args.threshold <= 1:
        raise InputError(f"--threshold: is {args.threshold}; give a probability from 0 to 1")
    cfg, engine = None, args.engine
    if args.config_file:
        engine = choose_engine(engine, args.config_file, "", overrides)
        cfg = ExtractorConfig(args.config_file, tuple(overrides), "", engine=engine).cfg()
    dataset = get_dataset(args.dataset, cfg.DATASETS.FILES if cfg else None) if args.dataset else None
    detector, names = None, {}
    if what != "annotations":
        weights = args.detector
        if cfg is None:
            weights = weights or "shapes"
        elif weights is None:
            weights = find_weights(default_weights(engine, None, args.config_file), cfg, args.config_file)
        opened = open_detector(
            weights,
            config_file=args.config_file,
            overrides=overrides,
            device=args.device,
            vocabulary=args.vocabulary,
            engine=engine,
            boxes_only=True,
        )
        if opened.objects is None and dataset is not None:
            opened.objects, opened.attributes = dataset.objects.names, dataset.attribute_names.names
        detector = opened.detector
        names["objects"], names["attributes"] = opened.class_names()
    if dataset is None:
        assert detector is not None
        drawn = draw_files(files, args.output, detector=detector, threshold=args.threshold, **names)
    else:
        drawn = draw_dataset(
            dataset,
            evenly(dataset, args.num),
            args.output,
            detector=detector,
            annotations=what != "predictions",
            threshold=args.threshold,
            **names,
        )
    print(f"the drawing: {drawn[0]}" if len(drawn) == 1 else f"{len(drawn)} images in {args.output}")
