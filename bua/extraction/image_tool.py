"""The command line of the tools that detect the regions of single images: answer, caption and ground."""

import argparse

from bua.extraction.extractor_config import ExtractorConfig, extractor_config


def image_parser(description: str | None, *, several: bool = False) -> argparse.ArgumentParser:
    """Returns a parser with the options that all these tools have; each tool adds its own.

    Args:
        several: Whether the tool takes more than one image.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    before = ", before --image" if several else ""
    parser.add_argument(
        "--image", required=True, nargs="+" if several else None, help="image files" if several else "image file"
    )
    parser.add_argument("--config-file", required=True, help="YAML file that describes the detector")
    parser.add_argument("--detector", help="checkpoint of the detector; default: MODEL.WEIGHTS of the configuration")
    same = "use the value that the features for training the model were extracted with (%(default)s)"
    parser.add_argument("--min-boxes", type=int, default=10, help=f"minimum number of regions; {same}")
    parser.add_argument("--max-boxes", type=int, default=100, help=f"maximum number of regions; {same}")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help=f"keys of the configuration and their values{before}"
    )
    return parser


def chosen_extractor(args: argparse.Namespace) -> ExtractorConfig:
    """Returns the detector, and the choice of regions, that the options of ``image_parser`` name.

    Raises:
        InputError: A file or a value cannot be used.
    """
    return extractor_config(
        args.config_file, args.detector, args.overrides, min_boxes=args.min_boxes, max_boxes=args.max_boxes
    )
