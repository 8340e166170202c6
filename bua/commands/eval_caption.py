"""Scores captions by BLEU, METEOR, ROUGE-L, CIDEr-D and SPICE.

    bua eval-caption --results captions.json --references datasets/coco/captions/captions_test.json
    bua eval-caption --results captions.json --references captions_val2014.json \\
        --images karpathy_test_images.txt --output scores.json
"""

import argparse
import logging

from bua.commands.arguments import output_file
from bua.options import CAPTION_METRICS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", required=True, help="captions, in the format of COCO's server")
    parser.add_argument(
        "--references", required=True, help="people's captions: COCO's file, or captions_*.json of prepare-captions"
    )
    parser.add_argument("--images", help="list of images; only the references of these images count")
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=CAPTION_METRICS,
        default=CAPTION_METRICS,
        metavar="METRIC",
        help=f"default: {' '.join(CAPTION_METRICS)}",
    )
    parser.add_argument("--output", type=output_file, help="JSON file for the scores")


def run(args: argparse.Namespace) -> None:
    from bua.captioning.scores import caption_scores
    from bua.tasks.tool import write_scores

    # The table says all that the scorers warn of.
    logging.basicConfig(level=logging.ERROR)
    scores = caption_scores(args.results, args.references, images=args.images, metrics=args.metrics)
    print(table(scores))
    if args.output:
        write_scores(args.output, scores)


def table(scores: dict) -> str:
    """Returns the scores in percent, one line for each, the tokeniser, and the metrics that were left out and why."""
    from bua.captioning.scores import METRICS, PTB

    lines = [f"{metric:10s} {scores[metric]:7.2f}" for metric in METRICS if metric in scores]
    tokenizer = scores["tokenizer"]
    note = "" if tokenizer == PTB else ", since PTB needs Java; do not compare these scores with those of papers"
    lines.append(f"{'tokeniser':10s} {tokenizer}{note}")
    lines += [f"{metric:10s} left out: {reason}" for metric, reason in sorted(scores["left_out"].items())]
    return "\n".join(lines)
