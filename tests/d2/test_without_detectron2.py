"""Tests that bua works without Detectron2."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_everything_but_the_extension_can_be_imported_and_the_tool_uses_the_torch_engine():
    code = """
import importlib, importlib.util, pkgutil, sys
sys.modules["detectron2"] = None  # makes `import detectron2` fail, and nothing finds it
import bua
for module in pkgutil.walk_packages(bua.__path__, "bua."):
    # The page needs Gradio, which is optional.
    without = {"bua.d2", *([] if importlib.util.find_spec("gradio") else ["bua.app"])}
    if not module.name.startswith(tuple(without)):
        importlib.import_module(module.name)
from bua.commands import main, train_net
assert train_net.choose_engine(None) == "torch"
sys.exit(main(["train-net", "--config-file", "configs/shapes.yaml", "--engine", "detectron2"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: --engine detectron2: Detectron2 is not installed")


def test_only_the_extension_imports_it():
    imports = re.compile(r"^\s*(import|from) (detectron2|bua\.d2)\b", re.MULTILINE)
    tool = REPOSITORY / "bua" / "commands" / "train_net.py"
    for folder in ("bua", "tools", "datasets", "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            if path.parent != REPOSITORY / "bua" / "d2" and path != tool:
                assert not imports.search(path.read_text()), path
    assert not re.search(r"^(import|from) (detectron2|bua\.d2)\b", tool.read_text(), re.MULTILINE)
