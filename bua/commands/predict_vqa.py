"""Answers the questions of a prepared split, and writes the answers in the test server's format.

    bua predict-vqa --vqa output/vqa/updown/model_best.pth --folder datasets/vqa/prepared --split test \\
        --features test2015.flat --output results.json

Several checkpoints form an ensemble, which answers by the mean of their logits.
"""

import argparse

from bua.commands.arguments import add_inference_options, output_file
from bua.errors import make_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vqa", required=True, nargs="+", help="checkpoints that `bua train-vqa` wrote")
    parser.add_argument("--folder", required=True, help="folder that `bua prepare-vqa` wrote")
    parser.add_argument("--split", required=True, help="split of the folder: train, val or test")
    parser.add_argument("--output", type=output_file, required=True, help="JSON file for the answers")
    add_inference_options(parser, images="all images of the split", unit="questions", batch_size=512)


def run(args: argparse.Namespace) -> None:
    from bua.tasks.tool import open_features
    from bua.vqa.accuracy import write_results
    from bua.vqa.dataset import VqaDataset
    from bua.vqa.inference import load_vqa, predict

    dataset = VqaDataset.load(args.folder, args.split)
    reader = open_features(args)
    models = [load_vqa(path, args.device) for path in args.vqa]
    labels = predict(models, dataset, reader, batch_size=args.batch_size)
    make_folder(args.output.parent)
    write_results(args.output, dataset.question_ids.tolist(), [models[0].answers.answers[label] for label in labels])
    print(f"{args.output}: {len(dataset)} answers")
