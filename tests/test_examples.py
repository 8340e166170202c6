"""The Python examples of the documents run, in their order, with the models that come with the package."""

import ast
import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from script_loading import ROOT

from bua.extraction import extract
from bua.shapes.make import make_shapes
from bua.visual_genome.prepare import prepare
from bua.weights.zoo import fetch

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "datasets/README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
    if FENCE.search(path.read_text())
)
# Examples with these packages are not run: they download weights.
DOWNLOADING = {"transformers"}
# The checkpoints that examples name, and the models that stand in for them.
CHECKPOINTS = {
    "model_final.pth": "shapes",
    "output/vg_r101/model_final.pth": "shapes",
    "output/vqa/updown/model_best.pth": "shapes-vqa",
    "output/captioning/updown_scst/model_best.pth": "shapes-captioning",
    "output/grounding/ban/model_best.pth": "shapes-grounding",
}
IMAGES = ["image.jpg", "cat.jpg", "photos/84002.jpg", "photos/84003.jpg"]
FEATURES = ["output/features/images.tsv", "output/features/photos.tsv"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with the files that the examples name: drawn images, small models, and features of the images."""
    folder = tmp_path_factory.mktemp("world")
    datasets = folder / "datasets"
    make_shapes(datasets / "shapes", num_train=2, num_val=1, num_test=4, processes=1)
    prepare(datasets / "shapes", "shapes", progress=False)
    (datasets / "shapes").rename(datasets / "visual_genome")
    annotations = datasets / "visual_genome" / "annotations"
    (annotations / "shapes_test.json").rename(annotations / "visual_genome_test.json")
    drawn = sorted((datasets / "visual_genome").glob("VG_100K*/*.jpg"))
    for name, image in zip(IMAGES, drawn):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(image, folder / name)
    for name, model in CHECKPOINTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(fetch(model), folder / name)
    # A configuration of this name in the working folder comes before that of the package.
    (folder / "vg_r50.yaml").write_text("_BASE_: shapes.yaml\nDATASETS:\n  TEST: [visual_genome_test]\n")
    for features in FEATURES:
        extract(folder / "photos", folder / features, weights=fetch("shapes"), device="cpu")
    return folder


@pytest.mark.parametrize("document", DOCUMENTS)
def test_examples_run(document, world, tmp_path, monkeypatch):
    """Each example may use the names of those before it in the document."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", "datasets")
    text = (ROOT / document).read_text()
    names: dict[str, object] = {"__name__": "example"}
    for match in FENCE.finditer(text):
        imports = imported_packages(match[1])
        missing = {name for name in imports if importlib.util.find_spec(name) is None}
        assert missing <= DOWNLOADING | {"detectron2"}, f"{document}: needs {missing}"
        if not (imports & DOWNLOADING or missing):
            # With its line numbers, errors show the line of the document.
            line = text[: match.start(1)].count("\n")
            exec(compile("\n" * line + match[1], ROOT / document, "exec"), names)


def imported_packages(source: str) -> set[str]:
    """The packages that Python source imports."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}
