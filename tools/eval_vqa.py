#!/usr/bin/env python3
"""Scores answers to VQA v2's questions by the official accuracy.

    tools/eval_vqa.py --results updown.json blind.json --annotations v2_mscoco_val2014_annotations.json \\
        --questions v2_OpenEnded_mscoco_val2014_questions.json --output scores.json

tools/predict_vqa.py writes such answers. Several files make a column each. --matching adds a row for the questions that
a regular expression finds something in, such as --matching "relation=left of|right of|above|below".
"""

import argparse
import re
import sys
from pathlib import Path
from statistics import fmean

import orjson

from bua.errors import InputError, command, make_folder
from bua.io.files import whole_file
from bua.vqa.accuracy import REVISIONS, soft_scores, vqa_accuracy
from bua.vqa.answers import AnswerVocabulary
from bua.vqa.official import load_questions


@command
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    scores = {}
    for path in args.results:
        name = path.stem if path.stem not in scores else str(path)
        scores[name] = vqa_accuracy(path, args.annotations, args.questions, revision=args.revision)
        if args.answers:
            scores[name] |= soft_scores(path, args.annotations, AnswerVocabulary.load(args.answers))
        if args.matching:
            scores[name]["matching"] = matching(scores[name]["per_question"], args.questions, args.matching)
    print(table(scores))
    if args.output:
        make_folder(args.output.parent)
        with whole_file(args.output) as file:
            file.write(orjson.dumps(scores, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))


def table(scores: dict[str, dict]) -> str:
    """The scores in percent, a column for each file of answers; "per_question" is left out."""
    first = next(iter(scores.values()))
    rows = [("percent", [name[-12:] for name in scores])]
    rows.append(("overall", [f"{score['overall']:.2f}" for score in scores.values()]))
    parts = {
        "by answer type": "per_answer_type",
        "by question type": "per_question_type",
        "by what they match": "matching",
    }
    for title, key in parts.items():
        if key in first:
            rows.append((title, []))
        for kind in sorted(first.get(key, ())):
            rows.append((f"  {kind}", [f"{score[key][kind]:.2f}" for score in scores.values()]))
    for key in ("soft_score", "upper_bound"):
        if key in first:
            rows.append((key.replace("_", " "), [f"{score[key]:.2f}" for score in scores.values()]))
    return "\n".join(f"{name:36s}" + "".join(f" {cell:>12s}" for cell in cells) for name, cells in rows)


def matching(per_question: dict[int, float], questions: str | None, patterns: list[str]) -> dict[str, float]:
    """The mean accuracy of the questions that each pattern, "name=regular expression", finds something in."""
    if questions is None:
        raise InputError("--matching: needs the questions' words; give --questions too")
    asked = load_questions(questions)
    found = {}
    for pattern in patterns:
        name, _, expression = pattern.partition("=")
        try:
            expression = re.compile(expression or name, re.IGNORECASE)
        except re.error as error:
            raise InputError(f"--matching {pattern}: no regular expression ({error}); quote its marks") from error
        ids = [number for number, text in zip(asked.question_ids.tolist(), asked.texts) if expression.search(text)]
        if not ids:
            raise InputError(f"--matching {pattern}: matches no question of {questions}; leave it out")
        found[name] = round(fmean(per_question[number] for number in ids), 2)
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True, nargs="+", type=Path, help="answers, as the test server takes them")
    parser.add_argument("--annotations", required=True, help="official file of people's answers")
    parser.add_argument("--questions", help="official file, to check that it belongs to the annotations")
    parser.add_argument("--answers", help="answer_vocabulary.json: adds the soft score and the vocabulary's bound")
    parser.add_argument(
        "--revision",
        choices=REVISIONS,
        default=REVISIONS[0],
        help="of the official script: 2021 compares to the letter where all people agree; default: %(default)s",
    )
    parser.add_argument(
        "--matching", nargs="+", metavar="NAME=REGEX", help="rows for questions by their words; needs --questions"
    )
    parser.add_argument("--output", type=Path, help="JSON file for all scores, those of each question too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
