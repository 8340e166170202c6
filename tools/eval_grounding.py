#!/usr/bin/env python3
"""Scores phrase grounding on a split of Flickr30k Entities by both protocols, with the scores of random and of perfect
choice for comparison.

    tools/eval_grounding.py --weights output/grounding/ban/model_best.pth --folder datasets/flickr30k/prepared \\
        --features flickr30k.flat --split test --output scores.json
"""

import argparse
import sys
from pathlib import Path

from bua.errors import command
from bua.grounding.dataset import GroundingDataset
from bua.grounding.inference import load_grounding, predict
from bua.grounding.recall import PROTOCOLS
from bua.tasks.tool import add_inference_options, open_features, tool_parser, write_scores


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    reader = open_features(args)
    grounding = load_grounding(args.weights, args.device, folder=args.folder)
    dataset = GroundingDataset.load(args.folder, args.split)
    predictions = predict(grounding, dataset, reader, batch_size=args.batch_size)
    scores = {protocol: predictions.scores(protocol) for protocol in PROTOCOLS}
    print(f"{dataset.name}: {len(dataset.spans)} phrases of {len(dataset)} sentences")
    print("\n\n".join(table(protocol, scores[protocol]) for protocol in PROTOCOLS))
    if args.output:
        write_scores(args.output, scores)


def table(protocol: str, scores: dict) -> str:
    """Returns the recalls in percent: a line for all phrases, for random choice, and for each type of phrase."""
    columns = list(scores["all"])
    rows = {"all": scores["all"], "random choice": scores["chance"]} | scores["types"]
    lines = [f"{protocol + ' box':16}" + "".join(f"{column:>9}" for column in columns) + "  phrases"]
    for name, row in rows.items():
        lines.append(
            f"{name:16}" + "".join(f"{row[column]:9.2f}" for column in columns) + f"{row.get('phrases', ''):>9}"
        )
    return "\n".join(line.rstrip() for line in lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("--weights", required=True, help="checkpoint of tools/train_grounding.py, or of ban-vqa")
    parser.add_argument("--folder", type=Path, required=True, help="folder that datasets/prepare_flickr30k.py wrote")
    parser.add_argument("--split", default="test", help="split of the folder: train, val or test (%(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the scores")
    add_inference_options(parser, images="all images of the split", unit="sentences", batch_size=256)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
