#!/usr/bin/env python3
"""Captions the images of a prepared split, or all images of the features, and writes the captions in the format of
COCO's server and tools/eval_caption.py.

    tools/predict_caption.py DECODING.BEAM 3 --captioner output/captioning/updown_scst/model_best.pth \\
        --folder datasets/coco/captions --split test --features train2014.flat val2014.flat --output captions.json
    tools/predict_caption.py --captioner a.pth b.pth --features test2014.flat --output captions.json

Several captioners form an ensemble, which predicts each word by the mean of their probabilities.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from bua.captioning.dataset import CaptionDataset
from bua.captioning.inference import load_captioner, predict
from bua.captioning.scores import write_results
from bua.errors import InputError, command, make_folder
from bua.tasks.region_batches import RegionReader
from bua.tasks.tool import add_inference_options, open_features, tool_parser


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if (args.folder is None) != (args.split is None):
        raise InputError("--folder, --split: give both, or neither to caption all images of the features")
    reader = open_features(args)
    if args.folder:
        dataset = CaptionDataset.load(args.folder, args.split)
        image_ids, name = dataset.image_ids, dataset.name
    else:
        image_ids, name = _all_ids(reader), "the features"
    captioners = [load_captioner(path, args.device, args.overrides) for path in args.captioner]
    captions = predict(captioners, image_ids, reader, name=name, batch_size=args.batch_size)
    make_folder(args.output.parent)
    vocabulary = captioners[0].vocabulary
    write_results(args.output, {image_id: vocabulary.decode(words) for image_id, words in captions.items()})
    print(f"{args.output}: {len(captions)} captions")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("--captioner", required=True, nargs="+", help="checkpoints that tools/train_caption.py wrote")
    parser.add_argument("--folder", help="folder that datasets/prepare_captions.py wrote")
    parser.add_argument("--split", help="split of the folder: train, val or test")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the captions")
    add_inference_options(parser, images="all images to caption", unit="images", batch_size=100)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="keys of DECODING and their values; default: as in training"
    )
    return parser.parse_intermixed_args(argv)


def _all_ids(reader: RegionReader) -> np.ndarray:
    ids = list(dict.fromkeys(image_id for store in reader.stores for image_id in store))
    texts = [image_id for image_id in ids if not isinstance(image_id, int)]
    if texts:
        raise InputError(
            f"{reader.name}: the image id {texts[0]!r} is not a number, as COCO's format needs; extract features with "
            "numbers as ids"
        )
    return np.array(ids, np.int64)


if __name__ == "__main__":
    sys.exit(main())
