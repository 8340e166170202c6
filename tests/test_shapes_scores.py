"""The tables of Shapes in the documents have the scores of docs/shapes_scores.json, and the program that writes it."""

import json
import re

import numpy as np
import pytest
from script_loading import ROOT, load_script

from bua.config_files import FOLDER
from bua.demo.tasks import DemoPaths, configuration
from bua.engine.checkpoints import FINAL
from bua.errors import InputError
from bua.shapes.scene import compose_scene
from bua.shapes.text import ask_questions

programs = load_script("benchmarks/shapes_scores.py")
shapes_tables = load_script("benchmarks/shapes_tables.py")
documents = pytest.mark.parametrize("document", ["README.md", "docs/reproducing.md"])


@pytest.fixture(scope="module")
def scores() -> dict:
    return json.loads((ROOT / "docs" / "shapes_scores.json").read_text())


@documents
def test_documents_have_the_scores_of_the_file(scores, document):
    text, tables = (ROOT / document).read_text(), shapes_tables.tables(scores)[document]
    for table in tables:
        assert table in text
    # Nothing else is in a table that begins like one of them.
    assert shapes_tables.with_tables(text, tables, document) == text


@documents
def test_a_changed_figure_or_a_missing_table_is_noticed(scores, document):
    text = (ROOT / document).read_text()
    for table in shapes_tables.tables(scores)[document]:
        row = next(line for line in table.splitlines()[2:] if re.search(r"\d", line))
        changed = re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit[0]) + 1) % 10), row)
        assert shapes_tables.with_tables(text.replace(row, changed), [table], document) == text
        with pytest.raises(InputError, match="has 0 tables that begin with"):
            shapes_tables.with_tables(text.replace(table, ""), [table], document)


def test_with_boxes_relations_are_answered(scores):
    for with_boxes, without in (("updown", "updown_no_boxes"), ("ban_boxes", "ban")):
        assert scores["vqa"][with_boxes]["relation"] >= 80
        assert scores["vqa"][without]["relation"] < 70


def test_figures_are_rounded_as_printed():
    models = {"updown": {"title": "one", "BLEU-1": 82.449, "CIDEr-D": 152.46, "seconds": 90.0}}
    header, _, row = shapes_tables.caption_table(models).splitlines()
    assert header == "| captions, beam of 5, PTB tokens | BLEU-1 | BLEU-4 | METEOR | ROUGE-L | CIDEr-D |"
    # A metric that needs Java is missing without it.
    assert row == "| one | 82.4 | – | – | – | 152.5 |"
    assert shapes_tables.minutes(90.0) == "1.5"


def test_kinds_of_questions():
    rng = np.random.default_rng(5)
    asked = []
    for _ in range(30):
        scene = compose_scene(rng)
        asked += ask_questions(scene, 7, rng)
    kinds = {programs.kind_of(question.text) for question in asked}
    assert kinds == {*programs.KINDS.values(), "relation"}
    for question in asked:
        kind = programs.kind_of(question.text)
        assert (kind == "relation") == (question.question_type == "is the" and len(question.things) == 2)
        assert (kind == "how many") == (question.answer_type == "number")
        assert (kind in ("presence", "attribute", "relation")) == (question.answer_type == "yes/no")


def test_a_trained_model_is_used_if_its_configuration_is_the_same(tmp_path, capsys):
    paths = DemoPaths(tmp_path / "shapes", tmp_path, FOLDER, (), "cpu")

    def model(*overrides: str):
        cfg = configuration(DemoPaths(paths.shapes, tmp_path, FOLDER, overrides, "cpu"), "grounding", "ban")
        return programs.placed(paths, programs.Model("grounding", "ban", "BAN", cfg))

    own = tmp_path / "scores" / "grounding" / "ban"
    assert model().folder == own
    demo = tmp_path / "grounding" / "ban"
    demo.mkdir(parents=True)
    (demo / FINAL).touch()
    saved = configuration(paths, "grounding", "ban")
    # These differ without making another model.
    saved.DATA.FOLDER, saved.OUTPUT_DIR, saved.SOLVER.MAX_ITER = "elsewhere", "elsewhere", 628
    (demo / "config.yaml").write_text(saved.dump())
    assert model().folder == demo
    assert model().trained
    other = model("SOLVER.BASE_LR", "0.5")
    assert other.folder == own
    assert not other.trained
    assert "trained again, since the configuration has changed: SOLVER.BASE_LR was 0.004" in capsys.readouterr().out
    own.mkdir(parents=True)
    (own / "config.yaml").write_text(other.cfg.dump())
    assert model("SOLVER.BASE_LR", "0.5").folder == own
    with pytest.raises(InputError, match=r"SOLVER\.BASE_LR was 0\.5\); remove the folder"):
        model("SOLVER.BASE_LR", "0.6")


def test_the_file_has_the_models_that_have_configurations(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "augmented_questions", lambda paths: paths.output / "augmented")
    models = programs.all_models(DemoPaths(tmp_path / "shapes", tmp_path, FOLDER, (), "cpu"))
    names = {(model.task, model.name) for model in models}
    assert len(names) == len(models)
    assert len({model.cfg.OUTPUT_DIR for model in models}) == len(models)
    by_name = {model.name: model for model in models if model.task == "vqa"}
    for name in ("updown", "ban"):
        (other,) = (by_name[key] for key in (f"{name}_boxes", f"{name}_no_boxes") if key in by_name)
        assert other.cfg.DATA.BOXES != by_name[name].cfg.DATA.BOXES
    for model in by_name.values():
        assert ("augmented" in model.cfg.DATA.FOLDER) == ("vg_train" in model.cfg.DATA.TRAIN)
    rows = {f"ablation_{file.stem.removeprefix('shapes_')}" for file in FOLDER.glob("vqa/ablation/shapes_*.yaml")}
    assert rows == {name for name in by_name if name.startswith("ablation_")}
    assert names == {(task, name) for task in ("vqa", "captioning", "grounding") for name in scores[task]}
