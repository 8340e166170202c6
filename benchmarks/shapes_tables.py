#!/usr/bin/env python3
"""Prints the tables of docs/shapes_scores.json in Markdown, or writes them into README.md and docs/reproducing.md.

    benchmarks/shapes_tables.py
    benchmarks/shapes_tables.py --write

A table is known by the first cell of its header, which each document has once. A test checks that the documents have
the tables of the file.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bua.errors import InputError, command

ROOT = Path(__file__).resolve().parents[1]
SCORES = ROOT / "docs" / "shapes_scores.json"
QUESTIONS = {
    "all": "all",
    "yes/no": "yes/no",
    "number": "number (how many)",
    "colour": "colour",
    "shape": "shape",
    "pattern": "pattern",
    "presence": "presence (is there a ...)",
    "attribute": "attribute (is the ... striped)",
    "relation": "relation (is the ... left of the ...)",
}
CAPTIONS = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D")
ABLATION = "ablation_"
# Stages of the demo before the tasks' models, whose times are those of their trainings.
DETECTOR_STAGES = ("data", "training", "evaluation", "extraction")


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, default=SCORES, help="file of benchmarks/shapes_scores.py (%(default)s)")
    parser.add_argument("--write", action="store_true", help="replace the tables in the documents")
    args = parser.parse_args(argv)
    for document, found in tables(json.loads(args.scores.read_text(encoding="utf-8"))).items():
        if args.write:
            path = ROOT / document
            path.write_text(with_tables(path.read_text(encoding="utf-8"), found, document), encoding="utf-8")
        print(f"{document}:\n\n" + "\n\n".join(found))


def tables(scores: dict[str, Any]) -> dict[str, list[str]]:
    """Returns the tables in Markdown by the document that they are in."""
    return {
        "README.md": [readme_table(scores)],
        "docs/reproducing.md": [
            made_table(scores["made"]),
            model_table(scores),
            question_table(scores),
            caption_table(scores["captioning"]),
            ablation_table(scores["vqa"]),
        ],
    }


def with_tables(text: str, found: list[str], name: str) -> str:
    """Returns a document with its tables replaced by those that begin with the same cell.

    Raises:
        InputError: The document does not have a table once.
    """
    lines = text.splitlines()
    for table in found:
        start = table.split("|")[1]
        places = [number for number, line in enumerate(lines) if line.startswith(f"|{start}|")]
        if len(places) != 1:
            raise InputError(f"{name}: has {len(places)} tables that begin with '|{start}|' instead of one; add it")
        end = next(number for number in range(places[0], len(lines) + 1) if not "".join(lines[number : number + 1]))
        lines[places[0] : end] = table.splitlines()
    return "\n".join(lines) + "\n"


def readme_table(scores: dict[str, Any]) -> str:
    detector, vqa, captions = scores["detector"], scores["vqa"], scores["captioning"]
    ban = scores["grounding"]["ban"]
    return markdown(
        ["Shapes, test split", "score", "blind baseline", "ground-truth regions"],
        [
            ["detector, mAP at 0.5: objects, attributes", both_maps(detector), "", ""],
            [
                "Up-Down VQA, official accuracy",
                f"{percent(vqa['updown'], 'all')} ({percent(vqa['updown_no_boxes'], 'all')} without boxes)",
                *(percent(vqa[name], "all") for name in ("blind", "perfect")),
            ],
            ["Up-Down captioner, CIDEr-D"]
            + [percent(captions[name], "CIDEr-D") for name in ("updown", "blind", "perfect")],
            [
                "BAN grounding, Recall@1",
                percent(ban, "R@1"),
                f"{percent(ban, 'chance')} (random choice)",
                f"{percent(ban, 'bound')} (best region)",
            ],
        ],
    )


def made_table(made: dict[str, Any]) -> str:
    images = ", ".join(f"{number:,} {split}" for split, number in made["images"].items())
    questions = ", ".join(f"{sum(kinds.values()):,} {split}" for split, kinds in made["questions"].items())
    training, seconds = made["questions"]["train"], made["demo_seconds"]
    relations = 100 * training["relation"] / sum(training.values())
    return markdown(
        ["how the scores on Shapes were made", ""],
        [
            ["commit, date", f"{made['commit']}, {made['date']}"],
            ["machine", f"{made['cpu']}, {made['cores']} cores; torch {made['torch']}"],
            ["images", images],
            ["questions", f"{questions}; {relations:.1f} % of train are relations"],
            ["minutes for images, detector and features", minutes(sum(seconds[name] for name in DETECTOR_STAGES))],
        ],
    )


def model_table(scores: dict[str, Any]) -> str:
    ban = scores["grounding"]["ban"]
    limits = f"(upper bound: {percent(ban, 'bound')}; random choice: {percent(ban, 'chance')})"
    found = [("detector, on all cores", "objects and attributes, mAP at 0.5", both_maps(scores["detector"]))]
    seconds = [scores["detector"]["seconds"]]
    for name, model in scores["vqa"].items():
        if not name.startswith(ABLATION):
            found.append((f"VQA: {model['title']}", "official accuracy", percent(model, "all")))
            seconds.append(model["seconds"])
    for model in scores["captioning"].values():
        found.append((f"captioning: {model['title']}", "CIDEr-D", percent(model, "CIDEr-D")))
        seconds.append(model["seconds"])
    found.append(("grounding: BAN", "R@1, any box", f"{percent(ban, 'R@1')} {limits}"))
    seconds.append(ban["seconds"])
    return markdown(
        ["model on Shapes", "metric", "score on the test split", "minutes of training on one core"],
        [[*row, minutes(time)] for row, time in zip(found, seconds, strict=True)],
    )


def question_table(scores: dict[str, Any]) -> str:
    models = {name: model for name, model in scores["vqa"].items() if not name.startswith(ABLATION)}
    kinds = scores["made"]["questions"]["test"]
    # "Yes/no" and "number" are types of answers.
    count = {"all": sum(kinds.values()), "number": kinds["how many"], **kinds}
    count["yes/no"] = kinds["presence"] + kinds["attribute"] + kinds["relation"]
    return markdown(
        ["official accuracy by type of question", "questions", *(model["title"] for model in models.values())],
        [
            [title, f"{count[kind]:,}", *(percent(model, kind) for model in models.values())]
            for kind, title in QUESTIONS.items()
        ],
    )


def caption_table(models: dict[str, Any]) -> str:
    return markdown(
        ["captions, beam of 5, PTB tokens", *CAPTIONS],
        [[model["title"], *(percent(model, metric) for metric in CAPTIONS)] for model in models.values()],
    )


def ablation_table(models: dict[str, Any]) -> str:
    kinds = ("all", "yes/no", "number", "other")
    rows = {"`vqa/shapes_updown.yaml`, `DATA.BOXES False`": models["updown_no_boxes"]}
    rows |= {model["title"]: model for name, model in models.items() if name.startswith(ABLATION)}
    return markdown(
        ["configuration on Shapes", *kinds, "minutes of training"],
        [
            [title, *(percent(model, kind) for kind in kinds), minutes(model["seconds"])]
            for title, model in rows.items()
        ],
    )


def both_maps(detector: dict[str, float]) -> str:
    return f"{percent(detector, 'objects/mAP50')}, {percent(detector, 'attributes/mAP50')}"


def percent(scores: dict[str, Any], name: str) -> str:
    return f"{scores[name]:.1f}" if name in scores else "–"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [" | ".join(cells).strip() for cells in (header, *rows)]
    lines.insert(1, "|".join(["---"] * len(header)))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines).replace("|  |", "| |")


if __name__ == "__main__":
    sys.exit(main())
