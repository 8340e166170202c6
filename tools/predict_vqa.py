#!/usr/bin/env python3
"""Answers the questions of a prepared split, and writes the answers as the test server takes them.

    tools/predict_vqa.py --vqa output/vqa/updown/model_best.pth --folder datasets/vqa/prepared --split test \\
        --features test2015.flat --output results.json

Several checkpoints make an ensemble: the mean of their logits decides.
"""

import argparse
import sys

from bua.errors import command
from bua.tasks.region_batches import RegionReader
from bua.vqa.accuracy import write_results
from bua.vqa.dataset import VqaDataset
from bua.vqa.inference import load_vqa, predict


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    dataset = VqaDataset.load(args.folder, args.split)
    reader = RegionReader.open(args.features)
    models = [load_vqa(path, args.device) for path in args.vqa]
    labels = predict(models, dataset, reader, batch_size=args.batch_size)
    write_results(args.output, dataset.question_ids, [models[0].answers.answers[label] for label in labels])
    print(f"{args.output}: {len(dataset)} answers")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vqa", required=True, nargs="+", help="checkpoints that tools/train_vqa.py wrote")
    parser.add_argument("--folder", required=True, help="what datasets/prepare_vqa.py wrote")
    parser.add_argument("--split", required=True, help="train, val or test")
    parser.add_argument("--features", required=True, nargs="+", help="features of all its images, in any format")
    parser.add_argument("--output", required=True, help="JSON file for the answers")
    parser.add_argument("--batch-size", type=int, default=512, help="questions a step (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
