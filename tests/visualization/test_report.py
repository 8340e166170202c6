import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from bua.detection.evaluation.average_precision import PrecisionRecall
from bua.visualization.gallery import AnswerPanel, CaptionPanel, GalleryImage, PhrasePanel, WordPanel
from bua.visualization.report import Report, format_seconds, write_report
from bua.visualization.scores import Score

METRICS = {
    "objects/mAP50": 0.8314,
    "objects/weighted_mAP50": 0.8421,
    "objects/original/mAP50": 0.8012,
    "objects/original/weighted_mAP50": 0.8104,
    "objects/coco_AP": 0.5533,
    "attributes/mAP50": 0.7125,
    "attributes/weighted_mAP50": 0.7331,
}
VOID = {"meta", "img", "input", "br", "line", "path"}
TITLES = (
    *("Scores", "Test images", "Detector scores by protocol", "Detector training", "Precision and recall by attribute"),
    *("Average precision by class", "Time by stage", "Commands for your own images"),
)


class Page(HTMLParser):
    """Checks that tags are nested correctly, and keeps the tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def curve(precision, recall, count):
    return PrecisionRecall(np.array(precision), np.array(recall), np.linspace(1, 0, len(precision)), count)


def full_report(**changes):
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
    log = [{"iteration": n, "loss_cls": 2.0 / n, "loss_attr": 1.0 / n, "lr": 0.1} for n in range(1, 50)]
    log += [{"iteration": n, "objects/mAP50": n / 60, "attributes/mAP50": n / 70} for n in (24, 49)]
    parts = {
        "title": "A <detector>",
        "introduction": "Learnt from images & boxes.",
        "scores": [Score("Objects", "mAP@0.5", 0.8314), Score("Captions", "CIDEr-D", 1.35, 0.21, 1.62, "× 100", 2.0)],
        "metrics": METRICS,
        "facts": {"Time": "7 min"},
        "gallery": [GalleryImage("one.jpg", drawn, ['red "circle" 0.93'], drawn, ["circle", "star"])],
        "training_log": log,
        "curves": {
            "objects": {"circle": curve([1, 0.5], [0.5, 0.5], 2)},
            "attributes": {f"attribute {n}": curve([1.0], [1.0], n) for n in range(1, 10)},
        },
        "timings": {"Training": 372.0, "Evaluation": 21.0},
        "commands": [("Features", "python tools/extract.py --images 'my images/'")],
    }
    return Report(**{**parts, **changes})


def image_of_all_tasks():
    rng = np.random.default_rng(1)

    def drawn(height=60, width=80):
        return rng.integers(0, 255, (height, width, 3), dtype=np.uint8)

    return GalleryImage(
        title="two.jpg",
        predicted=drawn(),
        predicted_labels=["red star 0.97"],
        annotated=drawn(),
        annotated_labels=["star"],
        questions=[
            AnswerPanel("How many <stars>?", [("2", 0.81), ("1", 0.1)], "2", drawn()),
            AnswerPanel("Is it red?", [("no", 0.55), ("yes", 0.45)], "yes", drawn()),
        ],
        caption=CaptionPanel(
            "a red star",
            [WordPanel("a", 0.5, drawn()), WordPanel("red", 0.0, drawn()), WordPanel("star", 0.987, drawn())],
            ["the star is <red>", "a star"],
            1.234,
        ),
        phrases=PhrasePanel(
            words=["the", "red", "star", "is", "left", "of", "a", "blue", "one", "."],
            spans=[(0, 3), (6, 9)],
            colors=[(10, 20, 30), (1, 2, 3)],
            right=[True, False],
            drawn=drawn(),
        ),
    )


def text_of(html):
    """The text of a piece of a page, without its tags."""
    return " ".join(re.sub(r"<(?:[^>\"]|\"[^\"]*\")*>", " ", html).split()).replace(" ,", ",")


def charts_of(html):
    """The descriptions of a page's charts."""
    return [attrs["aria-label"] for attrs in Page(html).all("div") if attrs.get("role") == "img"]


def written(tmp_path, report):
    write_report(tmp_path / "new" / "index.html", report)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["index.html"]
    return (tmp_path / "new" / "index.html").read_text(encoding="utf-8")


def test_page_is_well_formed_and_has_every_part(tmp_path):
    page = Page(written(tmp_path, full_report()))
    for text in ["A <detector>", "83.1", "84.2", "80.1", "55.3", "71.2", "7 min", "6 min 12 s", "my images/"]:
        assert text in page.text
    assert re.findall(r"<h2>(.*?)</h2>", written(tmp_path, full_report())) == list(TITLES)


def test_text_is_escaped(tmp_path):
    html = written(tmp_path, full_report(commands=[("<b>", "a && b > 'c'")]))
    assert "<title>A &lt;detector&gt;</title>" in html
    assert "<h3>&lt;b&gt;</h3>" in html
    assert "a &amp;&amp; b &gt; &#39;c&#39;" in html


def test_page_loads_nothing_from_outside(tmp_path):
    html = written(tmp_path, full_report())
    assert not re.search(r"https?://|//[a-z]|@import|url\(", re.sub(r'src="data:[^"]*"', "", html))
    page = Page(html)
    assert not page.all("script")
    assert not page.all("link")
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))


def test_images_are_inside_and_say_what_they_show(tmp_path):
    images = Page(written(tmp_path, full_report())).all("img")
    alts = ['one.jpg: 1 object found: red "circle" 0.93', "2 annotated objects: circle; star"]
    assert [image["alt"] for image in images] == alts
    data = base64.b64decode(images[0]["src"].split(",")[1])
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (int(images[0]["height"]), int(images[0]["width"]), 3) == (60, 80, 3)


def test_curves_of_the_most_frequent_attributes_are_drawn(tmp_path):
    charts = charts_of(written(tmp_path, full_report()))
    assert [label.split(";")[0] for label in charts[2:]] == [
        f"Precision by recall of attribute {n}" for n in range(9, 3, -1)
    ]
    assert "object class 0.0" in charts[0]
    assert charts[1].endswith("objects 81.7, attributes 70.0")


def test_a_chart_without_a_line_to_draw_is_left_out(tmp_path):
    """A single evaluation is a single point, which a line chart does not show."""
    log = [{"iteration": n, "loss_cls": 2.0 / n} for n in range(1, 50)] + [{"iteration": 49, "objects/mAP50": 0.8}]
    charts = charts_of(written(tmp_path, full_report(training_log=log, curves={})))
    assert [label.split(" by ")[0] for label in charts] == ["Training losses"]
    assert charts_of(written(tmp_path, full_report(training_log=log[-2:], curves={}))) == []
    assert "Detector training" not in written(tmp_path, full_report(training_log=log[-2:]))
    diverged = [{**line, "loss_cls": float("nan")} for line in log]
    assert charts_of(written(tmp_path, full_report(training_log=diverged, curves={}))) == []
    overflown = [*log, {"iteration": 50, "loss_cls": float("inf")}]
    assert charts_of(written(tmp_path, full_report(training_log=overflown, curves={}))) == charts


def test_parts_without_content_are_left_out(tmp_path):
    page = Page(written(tmp_path, Report(title="Bare", introduction="")))
    assert not page.all("section")
    assert not page.all("img")


def test_gallery_without_annotation_has_no_switch(tmp_path):
    gallery = [GalleryImage("one.jpg", np.zeros((6, 8, 3), np.uint8), [])]
    page = Page(written(tmp_path, full_report(gallery=gallery)))
    assert not page.all("input")
    assert page.all("img")[0]["alt"] == "one.jpg: 0 objects found"


def test_what_the_models_say_about_an_image(tmp_path):
    html = written(tmp_path, full_report(gallery=[image_of_all_tasks()]))
    page = Page(html)
    assert [text_of(text) for text in re.findall(r"<figcaption>(.*?)</figcaption>", html, re.DOTALL)] == [
        "two.jpg: 1 object found",
        "1 annotated object",
        "the red star ✓ is left of a blue one ✗ .",
        "How many &lt;stars&gt;? 2 ✓ Expected accuracy: 2 0.81, 1 0.10",
        "Is it red? no ✗, reference answer: yes Expected accuracy: no 0.55, yes 0.45",
        "a red star CIDEr-D 123.4 Reference caption, 1 of 2: the star is &lt;red&gt;",
    ]
    words = re.findall(r"<li>(.*?)</li>", html.split('<figure class="caption">')[1], re.DOTALL)
    assert [text_of(word) for word in words] == ["a 50%", "red", "star 99%"]
    colors = [attrs["style"] for attrs in page.all("span") if attrs.get("class") == "phrase"]
    assert colors == ["--c:rgb(30,20,10)", "--c:rgb(3,2,1)"]
    assert len(page.all("img")) == 8
    assert all(image["alt"] for image in page.all("img"))


def test_the_table_has_a_row_for_each_task(tmp_path):
    html = written(tmp_path, full_report())
    table = re.search(r'<table class="scores">.*?</table>', html, re.DOTALL)[0]
    rows = [row.split('<td class="bar">') for row in table.split("<tr>")[2:]]
    assert [text_of(figures) for figures, _ in rows] == [
        "Objects mAP@0.5, % 83.1 – –",
        "Captions CIDEr-D, × 100 135.0 21.0 162.0",
    ]
    # Each row has the scale of its own metric, with both ends written under the bar.
    assert [re.findall(r"(?:width|left):([\d.]+)%", bar) for _, bar in rows] == [["83.1"], ["67.5", "10.5", "81.0"]]
    assert [text_of(bar) for _, bar in rows] == ["0 100", "0 200"]


def test_figures_that_are_not_there_are_a_dash(tmp_path):
    metrics = {"objects/mAP50": 0.5, "objects/weighted_mAP50": 0.5, "objects/coco_AP": float("nan")}
    page = Page(written(tmp_path, full_report(metrics=metrics)))
    assert "nan" not in page.text
    assert "–" in page.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.5, "9.5 s"), (59.4, "59 s"), (59.7, "1 min 0 s"), (372, "6 min 12 s"), (7510, "2 h 5 min")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
