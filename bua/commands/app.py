"""Opens a page in a browser: one chooses an image, sees its regions, asks, reads the caption, and grounds sentences.

    bua app
    bua app --detector model_final.pth --vqa vqa.pth --captioner captioner.pth --grounding grounding.pth

By default, the models that come with the package are used, which know only the drawn images of Shapes. The page is
served from this machine and loads nothing from elsewhere. It needs Gradio: pip install 'bottom-up-attention[app]'.
"""

import argparse
import os
import tempfile
from pathlib import Path

from bua.commands.arguments import add_detector_options
from bua.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_detector_options(parser)
    parser.add_argument(
        "--vocabulary",
        help="folder of objects_vocab.txt and attributes_vocab.txt, or VinVL's JSON file of names; default: the names "
        "that the checkpoint holds",
    )

    group = parser.add_argument_group(
        "models of the tasks",
        "By default, those that come with the package. A task is hidden if these do not fit the detector.",
    )
    group.add_argument("--vqa", help="checkpoint of train-vqa")
    group.add_argument("--captioner", help="checkpoint of train-caption")
    group.add_argument("--grounding", help="checkpoint of train-grounding")

    group = parser.add_argument_group("address of the page")
    group.add_argument(
        "--host", default="127.0.0.1", help="address to serve at; 0.0.0.0 lets other machines in (%(default)s)"
    )
    group.add_argument("--port", type=int, help="port to serve at; default: the first free one from 7860")


def run(args: argparse.Namespace) -> None:
    # Gradio reads this when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"gradio: cannot be imported ({error}), and the page needs it; pip install 'bottom-up-attention[app]'"
        ) from error

    from bua.app.models import CAPTIONING, GROUNDING, VQA, load_models
    from bua.app.page import build_page, launch_page
    from bua.pipelines import DETECTOR

    models = load_models(
        args.detector or DETECTOR,
        models={VQA: args.vqa, CAPTIONING: args.captioner, GROUNDING: args.grounding},
        config_file=args.config_file,
        overrides=args.overrides,
        vocabulary=args.vocabulary,
        device=args.device,
        min_boxes=args.min_boxes,
        max_boxes=args.max_boxes,
        engine=args.engine,
    )
    with tempfile.TemporaryDirectory(prefix="bua_app_") as folder:
        launch_page(build_page(models, Path(folder)), args.host, args.port)
