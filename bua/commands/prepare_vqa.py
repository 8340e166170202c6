"""Prepares VQA v2, or a data set in the same format, for training: vocabularies, and questions and targets as arrays.

    bua prepare-vqa --root datasets/vqa --output datasets/vqa/prepared \\
        --visual-genome datasets/visual_genome --glove datasets/glove.6B.300d.txt \\
        --captions datasets/coco/captions_train2017.json datasets/coco/captions_val2017.json
    bua prepare-vqa --root datasets/shapes/vqa --output datasets/shapes/vqa_prepared

The root folder has the official files, unpacked: v2_mscoco_{train2014,val2014}_annotations.json and
v2_OpenEnded_mscoco_{train2014,val2014,test2015,test-dev2015}_questions.json. The files of test may be missing.
"""

import argparse
import logging
from pathlib import Path

from bua.errors import InputError
from bua.options import ANSWER_MIN_COUNT, QUESTION_LENGTH


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", type=Path, default=Path("datasets/vqa"), help="folder of the official files; default: %(default)s"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("datasets/vqa/prepared"), help="folder to write; default: %(default)s"
    )
    parser.add_argument(
        "--min-count",
        type=int,
        metavar="N",
        help=f"leave out answers that are the most frequent answer to fewer questions; default: {ANSWER_MIN_COUNT}",
    )
    parser.add_argument(
        "--length",
        type=int,
        default=QUESTION_LENGTH,
        help="number of words that are kept of a question; default: %(default)s",
    )
    parser.add_argument(
        "--authors-targets",
        action="store_true",
        help="do not normalise answers before they are counted, as in hengyuan-hu/bottom-up-attention-vqa and "
        "jnhwkim/ban-vqa, whose vocabulary is normalised nevertheless",
    )
    parser.add_argument(
        "--vocabulary",
        type=Path,
        nargs="+",
        default=[],
        help="the authors' dictionary.pkl, trainval_label2ans.pkl or both, or their folder `data` with them, whose "
        "words and answers are used instead of those of the questions; no code in them is executed",
    )
    parser.add_argument(
        "--visual-genome",
        type=Path,
        help="folder with image_data.json and question_answers.json, whose questions BAN is also trained on",
    )
    parser.add_argument("--glove", type=Path, help="text file of word vectors, such as glove.6B.300d.txt")
    parser.add_argument("--glove-dim", type=int, default=300, help="dimension of its vectors; default: %(default)s")
    parser.add_argument(
        "--captions",
        type=Path,
        nargs="*",
        default=[],
        help="files of COCO's captions, whose words are counted for BAN's second table, too",
    )


def run(args: argparse.Namespace) -> None:
    from bua.vqa.accuracy import upper_bound
    from bua.vqa.cooccurrence import prepare_word_vectors
    from bua.vqa.dataset import prepare_vqa

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.captions and not args.glove:
        raise InputError("--captions: is only for --glove; add it, or leave this one out")
    for path in [*([args.glove] if args.glove else ()), *args.captions]:
        # Said before the folder is written, which these files are read after.
        if not path.is_file():
            raise InputError(f"{path}: no such file; name the unpacked files with --glove and --captions")
    datasets = prepare_vqa(
        args.root,
        args.output,
        min_count=args.min_count,
        length=args.length,
        normalize_targets=not args.authors_targets,
        visual_genome=args.visual_genome,
        vocabulary=args.vocabulary,
    )
    train = datasets["train"]
    print(f"{len(train.words)} words, {len(train.answers)} answers -> {args.output}")
    for split, dataset in datasets.items():
        bound = "without answers" if dataset.targets is None else f"upper bound {upper_bound(dataset.targets):.2f} %"
        print(f"{split:9} {len(dataset):7} questions, {bound}")
    if args.glove:
        prepare_word_vectors(
            args.output,
            args.glove,
            args.root,
            visual_genome=args.visual_genome,
            captions=args.captions,
            dim=args.glove_dim,
        )
