"""What a user gets who installs the wheel: everything runs in another folder, without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import cv2
import numpy as np
import pytest
from script_loading import ROOT

from bua.demo.packed import SCORED_IMAGES, SCORES

SOURCES = ("bua", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
PIPELINES = """
import json, sys
import bua
from bua.vqa.config import load_cfg
image = sys.argv[1]
found = {
    "folder": bua.__path__[0],
    "configuration": load_cfg("vqa/updown.yaml").MODEL.NAME,
    "features": len(bua.pipeline("image-feature-extraction")(image)[0]),
    "objects": bua.pipeline("object-detection")(image, threshold=0.0),
    "answers": bua.pipeline("visual-question-answering")(image, question="what color is the circle?"),
    "caption": bua.pipeline("image-to-text")(image),
    "phrases": bua.pipeline("phrase-grounding")(image, text="[a circle] above [a square]"),
}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of a virtual environment that has the wheel, and the packages that it needs from this environment."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("environment")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("bottom_up_attention-*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    # A folder in a .pth file is searched, but its own .pth files, such as that of the checkout, are not read.
    (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(python: Path, *arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run([*map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment)
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


def test_five_pipelines_run_and_configurations_are_found_by_name(python, tmp_path):
    image = np.full((240, 320, 3), 200, np.uint8)
    cv2.circle(image, (100, 80), 40, (0, 0, 255), -1)
    cv2.rectangle(image, (180, 130), (260, 210), (255, 0, 0), -1)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    found = json.loads(run(python, python, "-c", PIPELINES, "image.png", cwd=tmp_path))
    assert found["folder"].startswith(str(python.parents[1]))
    assert found["configuration"] == "UpDown"
    assert found["features"] >= 10
    assert found["objects"]
    assert {"answer", "score"} == set(found["answers"][0])
    assert [one["label"] for one in found["phrases"]] == ["a circle", "a square"]


def test_the_demo_reaches_the_scores_that_are_written_beside_the_models(python, tmp_path):
    arguments = ("demo", "--num-test", str(SCORED_IMAGES), "--output", "demo")
    shown = run(python, python.with_name("bua"), *arguments, cwd=tmp_path)
    assert "Phrases, BAN" in shown
    assert (tmp_path / "demo" / "index.html").is_file()
    written = json.loads(SCORES.read_text())
    reached = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    # Processors differ in rounding, so that a region or an answer may change.
    assert {name: reached[name] for name in written} == pytest.approx(written, abs=0.03)
    assert sum(path.stat().st_size for path in SCORES.parent.iterdir()) <= 12e6
