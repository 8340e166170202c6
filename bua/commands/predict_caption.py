"""Captions the images of a prepared split, or all images of the features, and writes the captions in the format of
COCO's server and bua eval-caption.

    bua predict-caption DECODING.BEAM 3 --captioner output/captioning/updown_scst/model_best.pth \\
        --folder datasets/coco/captions --split test --features train2014.flat val2014.flat --output captions.json
    bua predict-caption --captioner a.pth b.pth --features test2014.flat --output captions.json

Several captioners form an ensemble, which predicts each word by the mean of their probabilities.
"""

import argparse
from typing import TYPE_CHECKING

from bua.commands.arguments import add_inference_options, add_overrides, output_file
from bua.errors import InputError, make_folder

if TYPE_CHECKING:
    import numpy as np

    from bua.tasks.region_batches import RegionReader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--captioner", required=True, nargs="+", help="checkpoints that `bua train-caption` wrote")
    parser.add_argument("--folder", help="folder that `bua prepare-captions` wrote")
    parser.add_argument("--split", help="split of the folder: train, val or test")
    parser.add_argument("--output", type=output_file, required=True, help="JSON file for the captions")
    add_inference_options(parser, images="all images to caption", unit="images", batch_size=100)
    add_overrides(parser, ", of DECODING alone; default: those of the training")


def run(args: argparse.Namespace) -> None:
    from bua.captioning.dataset import CaptionDataset
    from bua.captioning.inference import load_captioner, predict
    from bua.captioning.scores import write_results
    from bua.tasks.tool import open_features

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


def _all_ids(reader: "RegionReader") -> "np.ndarray":
    import numpy as np

    ids = list(dict.fromkeys(image_id for store in reader.stores for image_id in store))
    texts = [image_id for image_id in ids if not isinstance(image_id, int)]
    if texts:
        raise InputError(
            f"{reader.name}: the image id {texts[0]!r} is not a number, as COCO's format needs; extract features with "
            "numbers as ids"
        )
    return np.array(ids, np.int64)
