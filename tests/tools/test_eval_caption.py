import json
import runpy

import pytest

main = runpy.run_path("tools/eval_caption.py")["main"]
pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed; run `pip install pycocoevalcap`")


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    written = {7: ["A red circle.", "there is a circle"], 8: ["A blue star on a box"]}
    references = [{"image_id": image_id, "caption": text} for image_id, texts in written.items() for text in texts]
    results = [{"image_id": 7, "caption": "a red circle"}, {"image_id": 8, "caption": "a blue star on a box"}]
    (tmp_path / "references.json").write_text(json.dumps({"annotations": references}))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return ["--results", str(tmp_path / "results.json"), "--references", str(tmp_path / "references.json")]


def test_prints_and_writes_the_scores(files, tmp_path, capsys):
    output = tmp_path / "scores" / "captions.json"
    assert main([*files, "--output", str(output)]) == 0
    printed = capsys.readouterr()
    rows = [line.split(maxsplit=1) for line in printed.out.splitlines()]
    assert [name for name, _ in rows] == [
        *("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"),
        *("tokeniser", "METEOR", "SPICE"),
    ]
    assert rows[0][1] == "100.00"
    assert rows[-3][1] == "regex, since PTB needs Java; do not compare these scores with those of papers"
    assert rows[-1][1] == "left out: there is no java on the PATH"
    scores = json.loads(output.read_text())
    assert scores["tokenizer"] == "regex"
    assert f"{scores['CIDEr-D']:.2f}" == rows[5][1]
    assert printed.err == ""


def test_chosen_metrics(files, capsys):
    assert main([*files, "--metrics", "CIDEr-D"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["CIDEr-D", "tokeniser"]


def test_bad_files_have_one_line(files, tmp_path, capsys):
    (tmp_path / "results.json").write_text("[]")
    assert main(files) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: {tmp_path}/results.json: lacks 2 of the 2 images of {tmp_path}/references.json")
