"""Scores phrase grounding on a split of Flickr30k Entities by both protocols, with the scores of random and of perfect
choice for comparison.

    bua eval-grounding --grounding output/grounding/ban/model_best.pth --folder datasets/flickr30k/prepared \\
        --features flickr30k.flat --split test --output scores.json
"""

import argparse
from pathlib import Path

from bua.commands.arguments import add_inference_options, output_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *("--grounding", "--weights"),
        dest="grounding",
        required=True,
        help="checkpoint that `bua train-grounding` wrote, or of ban-vqa (--weights is the option's former name)",
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder that `bua prepare-flickr30k` wrote")
    parser.add_argument("--split", default="test", help="split of the folder: train, val or test (%(default)s)")
    parser.add_argument("--output", type=output_file, help="JSON file for the scores")
    add_inference_options(parser, images="all images of the split", unit="sentences", batch_size=256)


def run(args: argparse.Namespace) -> None:
    from bua.grounding.dataset import GroundingDataset
    from bua.grounding.inference import load_grounding, predict
    from bua.grounding.recall import PROTOCOLS
    from bua.tasks.tool import open_features, write_scores

    reader = open_features(args)
    grounding = load_grounding(args.grounding, args.device, folder=args.folder)
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
