#!/usr/bin/env python3
"""Scores phrase grounding on a split of Flickr30k Entities by both protocols, beside random and perfect choice.

    tools/eval_grounding.py --weights output/grounding/ban/model_best.pth --folder datasets/flickr30k/prepared \\
        --features flickr30k.flat --split test --output scores.json
"""

import argparse
import sys
from pathlib import Path

import orjson
import torch

from bua.config import check_device
from bua.errors import command, make_folder
from bua.grounding.dataset import GroundingDataset
from bua.grounding.inference import load_grounding, predict
from bua.grounding.recall import PROTOCOLS
from bua.io.files import whole_file
from bua.tasks.region_batches import RegionReader


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_device(args.device)
    grounding = load_grounding(args.weights, args.device, folder=args.folder)
    dataset = GroundingDataset.load(args.folder, args.split)
    reader = RegionReader.open(args.features, pin_memory=torch.device(args.device).type == "cuda")
    predictions = predict(grounding, dataset, reader, batch_size=args.batch_size)
    scores = {protocol: predictions.scores(protocol) for protocol in PROTOCOLS}
    print(f"{dataset.name}: {len(dataset.spans)} phrases of {len(dataset)} sentences")
    print("\n\n".join(table(protocol, scores[protocol]) for protocol in PROTOCOLS))
    if args.output:
        make_folder(args.output.parent)
        with whole_file(args.output) as file:
            file.write(orjson.dumps(scores, option=orjson.OPT_INDENT_2))


def table(protocol: str, scores: dict) -> str:
    """The recalls in percent, a line for all phrases, for random choice, and for each type."""
    columns = list(scores["all"])
    rows = {"all": scores["all"], "random choice": scores["chance"]} | scores["types"]
    lines = [f"{protocol + ' box':16}" + "".join(f"{column:>9}" for column in columns) + "  phrases"]
    for name, row in rows.items():
        lines.append(
            f"{name:16}" + "".join(f"{row[column]:9.2f}" for column in columns) + f"{row.get('phrases', ''):>9}"
        )
    return "\n".join(line.rstrip() for line in lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint of tools/train_grounding.py, or of ban-vqa")
    parser.add_argument("--folder", type=Path, required=True, help="that datasets/prepare_flickr30k.py wrote")
    parser.add_argument("--features", nargs="+", required=True, help="files that tools/extract.py wrote")
    parser.add_argument("--split", default="test", help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file for the scores")
    parser.add_argument("--batch-size", type=int, default=256, help="sentences at a time; default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
