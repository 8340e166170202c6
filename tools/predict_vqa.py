#!/usr/bin/env python3
"""Answers the questions of a prepared split, and writes the answers in the test server's format.

    tools/predict_vqa.py --vqa output/vqa/updown/model_best.pth --folder datasets/vqa/prepared --split test \\
        --features test2015.flat --output results.json

Several checkpoints form an ensemble, which answers by the mean of their logits.
"""

import argparse
import sys
from pathlib import Path

from bua.errors import command, make_folder
from bua.tasks.tool import add_inference_options, open_features, tool_parser
from bua.vqa.accuracy import write_results
from bua.vqa.dataset import VqaDataset
from bua.vqa.inference import load_vqa, predict


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    dataset = VqaDataset.load(args.folder, args.split)
    reader = open_features(args)
    models = [load_vqa(path, args.device) for path in args.vqa]
    labels = predict(models, dataset, reader, batch_size=args.batch_size)
    make_folder(args.output.parent)
    write_results(args.output, dataset.question_ids.tolist(), [models[0].answers.answers[label] for label in labels])
    print(f"{args.output}: {len(dataset)} answers")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("--vqa", required=True, nargs="+", help="checkpoints that tools/train_vqa.py wrote")
    parser.add_argument("--folder", required=True, help="folder that datasets/prepare_vqa.py wrote")
    parser.add_argument("--split", required=True, help="split of the folder: train, val or test")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the answers")
    add_inference_options(parser, images="all images of the split", unit="questions", batch_size=512)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
