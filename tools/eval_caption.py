#!/usr/bin/env python3
"""Scores captions by BLEU, METEOR, ROUGE-L, CIDEr-D and SPICE.

    tools/eval_caption.py --results captions.json --references datasets/coco/captions/captions_test.json
    tools/eval_caption.py --results captions.json --references captions_val2014.json \\
        --images karpathy_test_images.txt --output scores.json
"""

import argparse
import logging
import sys
from pathlib import Path

import orjson

from bua.captioning.scores import METRICS, PTB, caption_scores
from bua.errors import command, make_folder
from bua.io.files import whole_file


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    # What it would warn of is in the table.
    logging.basicConfig(level=logging.ERROR)
    scores = caption_scores(args.results, args.references, images=args.images, metrics=args.metrics)
    print(table(scores))
    if args.output:
        make_folder(args.output.parent)
        with whole_file(args.output) as file:
            file.write(orjson.dumps(scores, option=orjson.OPT_INDENT_2))


def table(scores: dict) -> str:
    """The scores in percent, a line each, the tokeniser, and what was left out and why."""
    lines = [f"{metric:10s} {scores[metric]:7.2f}" for metric in METRICS if metric in scores]
    tokenizer = scores["tokenizer"]
    note = "" if tokenizer == PTB else ", not PTB: there is no Java; not for comparison with papers"
    lines.append(f"{'tokeniser':10s} {tokenizer}{note}")
    lines += [f"{metric:10s} left out: {reason}" for metric, reason in sorted(scores["left_out"].items())]
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True, help="captions, as COCO's server takes them")
    parser.add_argument(
        "--references", required=True, help="what people wrote: COCO's file, or captions_*.json of prepare_captions.py"
    )
    parser.add_argument("--images", help="list of images, to score by those of the references alone")
    parser.add_argument(
        "--metrics", nargs="+", choices=METRICS, default=METRICS, metavar="METRIC", help=f"default: {' '.join(METRICS)}"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the scores")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
