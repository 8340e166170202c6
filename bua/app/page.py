"""The page, made with Gradio."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from bua.app import views
from bua.app.examples import draw_examples
from bua.app.models import CAPTIONING, GROUNDING, VQA, Models
from bua.app.results import Results
from bua.errors import InputError, make_folder

TITLE = "Bottom-up attention"
# Seconds after which uploaded images are removed, and between two looks for such images.
KEPT_SECONDS, LOOK_SECONDS = 6 * 3600, 600
MAX_FILE_SIZE = "64mb"
# Of an image with more boxes, the further ones are not highlighted.
LINKED = 100


def build_page(models: Models, folder: Path) -> gr.Blocks:
    """Returns the page.

    Args:
        models: As ``bua.app.models.load_models`` returns them.
        folder: An empty folder for the examples and for features files, which must exist as long as the page.
    """
    examples = draw_examples(make_folder(folder / "examples"))
    results = Results(models, make_folder(folder / "features"))

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(LOOK_SECONDS, KEPT_SECONDS)) as page:
        _html(views.header(models))
        path = gr.State(None)
        with gr.Row(elem_classes="part"):
            with gr.Column(scale=1, min_width=280, elem_classes="controls"):
                _html(views.section("Image", "Upload one, or pick an example."))
                upload = gr.File(label="Image file", file_types=["image"], height=130, elem_id="upload")
                gallery = gr.Gallery(
                    [str(example.path) for example in examples],
                    label="Examples",
                    columns=3,
                    height="auto",
                    object_fit="contain",
                    allow_preview=False,
                    buttons=[],
                    elem_id="examples",
                )
                threshold = gr.Slider(
                    0.05, 0.95, 0.4, step=0.05, label="Least probability of an object", buttons=[], elem_id="threshold"
                )
                download = gr.DownloadButton("Download the features (npz)", elem_id="download")
            with gr.Column(scale=2, min_width=280):
                objects = _html(elem_id="objects")
        question, ask, answers = _text_part(
            "Question",
            "The model answers from the regions, and shows where it looked.",
            "what color is the circle?",
            "Answer",
            hidden=models.hidden.get(VQA),
        )
        with gr.Row(elem_classes="part"):
            with gr.Column(scale=1, min_width=280, elem_classes="controls"):
                _html(
                    views.section(
                        "Caption", models.hidden.get(CAPTIONING) or "Word by word, with the region that each is from."
                    )
                )
            with gr.Column(scale=2, min_width=280):
                caption = _html(elem_id="caption", visible=CAPTIONING not in models.hidden)
        sentence, ground, phrases = _text_part(
            "Sentence",
            "The model finds the region of each phrase. Phrases may be put in brackets.",
            "[a red circle] above [a star]",
            "Find",
            hidden=models.hidden.get(GROUNDING),
        )

        def show_all(path: str | None, threshold: float, question: str, sentence: str) -> dict[Any, Any]:
            shown = {objects: results.objects(path, threshold), download: results.features_file(path)}
            if VQA in models.pipelines:
                shown[answers] = results.answers(path, question)
            if CAPTIONING in models.pipelines:
                shown[caption] = results.caption(path)
            if GROUNDING in models.pipelines:
                shown[phrases] = results.phrases(path, sentence)
            return shown

        def first_example() -> tuple[str, str, str]:
            return str(examples[0].path), examples[0].question, examples[0].sentence

        def picked(event: gr.SelectData) -> tuple[str, str, str]:
            example = examples[event.index]
            return str(example.path), example.question, example.sentence

        chosen = (
            page.load(first_example, None, [path, question, sentence], api_visibility="private"),
            gallery.select(picked, None, [path, question, sentence], api_visibility="private"),
            # The place for a file is empty again for the next one.
            upload.upload(lambda file: (file, None), upload, [path, upload], api_visibility="private"),
        )
        outputs = [objects, download, answers, caption, phrases]
        for event in chosen:
            event.then(show_all, [path, threshold, question, sentence], outputs, api_visibility="private")
        threshold.change(
            results.objects,
            [path, threshold],
            objects,
            trigger_mode="always_last",
            show_progress="hidden",
            api_visibility="private",
        )
        gr.on([ask.click, question.submit], results.answers, [path, question], answers, api_visibility="private")
        gr.on([ground.click, sentence.submit], results.phrases, [path, sentence], phrases, api_visibility="private")
    return page


def launch_page(page: gr.Blocks, host: str, port: int | None, *, wait: bool = True) -> str:
    """Serves the page, and returns its address.

    Args:
        host: Name or address of this machine that the page is served at.
        port: Port; by default the first free one from 7860.
        wait: Whether to return only when the user stops the program.

    Raises:
        InputError: The page cannot be served there.
    """
    styles = (files("bua.app") / "templates" / "page.css").read_text(encoding="utf-8")
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            footer_links=[],
            max_file_size=MAX_FILE_SIZE,
            theme=_theme(),
            # The argument css would rewrite the selectors, and break those with a comma in brackets.
            head=f"<style>\n{styles}\n{views.link_styles(LINKED)}\n</style>",
        )
    except OSError as error:
        raise InputError(
            f"{host}{'' if port is None else f':{port}'}: the page cannot be served here ({error}); choose another "
            "--host or --port"
        ) from error
    if wait:
        print(f"open {address} in a browser; Ctrl-C stops", flush=True)
        page.block_thread()
    return address


def _text_part(
    title: str, text: str, example: str, button: str, *, hidden: str | None
) -> tuple[gr.Textbox, gr.Button, gr.HTML]:
    """Adds a part of the page where the user writes a text and sees the result.

    Args:
        example: A text that shows what may be written.
        hidden: Why the part is hidden, if it is.
    """
    visible, name = hidden is None, title.lower()
    with gr.Row(elem_classes="part"):
        with gr.Column(scale=1, min_width=280, elem_classes="controls"):
            _html(views.section(title, hidden or text))
            written = gr.Textbox(
                label=title,
                placeholder=example,
                show_label=False,
                container=False,
                visible=visible,
                lines=1,
                elem_id=name,
            )
            pressed = gr.Button(button, variant="primary", visible=visible, elem_id=f"{name}-button")
        with gr.Column(scale=2, min_width=280):
            result = _html(visible=visible, elem_id=f"{name}-result")
    return written, pressed, result


def _html(value: str = "", **options: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **options)


def _theme() -> gr.themes.Base:
    """Returns the colours and fonts of bua's pages. All fonts are the reader's own: nothing is loaded from outside."""
    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.gray,
        radius_size=gr.themes.sizes.radius_md,
        font=[gr.themes.Font(name) for name in sans],
        font_mono=[gr.themes.Font(name) for name in mono],
    ).set(
        body_background_fill="#fcfcfa",
        body_background_fill_dark="#14171b",
        body_text_color="#1c2127",
        body_text_color_dark="#e6e9ec",
        body_text_color_subdued="#5b6570",
        body_text_color_subdued_dark="#9ba6b1",
        border_color_primary="#e2e4e3",
        border_color_primary_dark="#2d333a",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1b1f24",
        button_primary_background_fill="#0b5fae",
        button_primary_background_fill_hover="#094f91",
        button_primary_background_fill_dark="#0b5fae",
        button_primary_background_fill_hover_dark="#094f91",
        button_primary_text_color="#ffffff",
        slider_color="#0b5fae",
        color_accent="#0b5fae",
    )
