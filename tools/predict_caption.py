#!/usr/bin/env python3
"""Captions the images of a prepared split, or all that there are features of, and writes the captions as COCO's
server and tools/eval_caption.py take them.

    tools/predict_caption.py DECODING.BEAM 3 --captioner output/captioning/updown_scst/model_best.pth \\
        --folder datasets/coco/captions --split test --features train2014.flat val2014.flat --output captions.json
    tools/predict_caption.py --captioner a.pth b.pth --features test2014.flat --output captions.json

Several captioners predict each word together: the mean of their probabilities decides.
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


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if (args.folder is None) != (args.split is None):
        raise InputError("--folder, --split: give both, or none for all images that there are features of")
    reader = RegionReader.open(args.features)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captioner", required=True, nargs="+", help="checkpoints that tools/train_caption.py wrote")
    parser.add_argument("--features", required=True, nargs="+", help="features of all the images, in any format")
    parser.add_argument("--folder", help="what datasets/prepare_captions.py wrote")
    parser.add_argument("--split", help="of it: train, val or test")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the captions")
    parser.add_argument("--batch-size", type=int, default=100, help="images a step (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="keys of DECODING and their values; default: as trained"
    )
    return parser.parse_intermixed_args(argv)


def _all_ids(reader: RegionReader) -> np.ndarray:
    ids = list(dict.fromkeys(image_id for store in reader.stores for image_id in store))
    texts = [image_id for image_id in ids if not isinstance(image_id, int)]
    if texts:
        raise InputError(f"{reader.name}: image {texts[0]!r}: captions are written by number; extract with such ids")
    return np.array(ids, np.int64)


if __name__ == "__main__":
    sys.exit(main())
