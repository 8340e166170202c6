"""Scores answers to VQA v2's questions by the official accuracy.

    bua eval-vqa --results updown.json blind.json --annotations v2_mscoco_val2014_annotations.json \\
        --questions v2_OpenEnded_mscoco_val2014_questions.json --output scores.json

bua predict-vqa writes such answers. The table has a column for each file. --matching adds a row for the questions
that match a regular expression, such as --matching "relation=left of|right of|above|below".
"""

import argparse
import re
from pathlib import Path
from statistics import fmean

from bua.commands.arguments import output_file
from bua.errors import InputError
from bua.options import VQA_REVISIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", required=True, nargs="+", type=Path, help="answers, in the test server's format")
    parser.add_argument("--annotations", required=True, help="official file of people's answers")
    parser.add_argument("--questions", help="official file of questions, whose ids must be those of the annotations")
    parser.add_argument("--answers", help="answer_vocabulary.json; adds the soft score, and the highest possible one")
    parser.add_argument(
        "--revision",
        choices=VQA_REVISIONS,
        default=VQA_REVISIONS[0],
        help="revision of the official script; 2021 does not normalise answers if all people gave the same one; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--matching", nargs="+", metavar="NAME=REGEX", help="add rows of questions by their words; needs --questions"
    )
    parser.add_argument("--output", type=output_file, help="JSON file for all scores, including those of each question")


def run(args: argparse.Namespace) -> None:
    from bua.tasks.tool import write_scores
    from bua.vqa.accuracy import soft_scores, vqa_accuracy
    from bua.vqa.answers import AnswerVocabulary

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
        write_scores(args.output, scores)


def table(scores: dict[str, dict]) -> str:
    """Returns the scores in percent, without "per_question", in one column for each file of answers."""
    first = next(iter(scores.values()))
    rows = [("percent", [name[-12:] for name in scores])]
    rows.append(("overall", [f"{score['overall']:.2f}" for score in scores.values()]))
    parts = {
        "by answer type": "per_answer_type",
        "by question type": "per_question_type",
        "by regular expression": "matching",
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
    """Returns the mean accuracy of the questions that match each pattern, "name=regular expression", by name."""
    from bua.vqa.official import load_questions

    if questions is None:
        raise InputError("--matching: the questions' words are needed; also give --questions")
    official = load_questions(questions)
    found = {}
    for pattern in patterns:
        name, _, given = pattern.partition("=")
        try:
            expression = re.compile(given or name, re.IGNORECASE)
        except re.error as error:
            raise InputError(
                f"--matching {pattern}: not a regular expression ({error}); escape special characters with \\"
            ) from error
        pairs = zip(official.question_ids.tolist(), official.texts)
        ids = [number for number, text in pairs if expression.search(text)]
        if not ids:
            raise InputError(f"--matching {pattern}: matches no question of {questions}; omit it")
        found[name] = round(fmean(per_question[number] for number in ids), 2)
    return found
