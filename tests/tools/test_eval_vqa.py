import json
import runpy

import pytest

from bua.vqa.answers import AnswerVocabulary

main = runpy.run_path("tools/eval_vqa.py")["main"]


@pytest.fixture
def files(tmp_path):
    """Two questions, one answered well."""
    people = {11: ("is the", "yes/no", "yes", "yes"), 12: ("what color", "other", "red", "blue")}
    annotations = [
        {
            "question_id": number,
            "image_id": 1,
            "question_type": question_type,
            "answer_type": answer_type,
            "multiple_choice_answer": answer,
            "answers": [{"answer": answer, "answer_id": person} for person in range(1, 11)],
        }
        for number, (question_type, answer_type, answer, _) in people.items()
    ]
    contents = {
        "annotations": {"annotations": annotations},
        "questions": {"questions": [{"question_id": n, "image_id": 1, "question": f"number {n}?"} for n in people]},
        "results": [{"question_id": number, "answer": said} for number, (*_, said) in people.items()],
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return [argument for name in contents for argument in (f"--{name}", str(tmp_path / f"{name}.json"))]


def test_prints_and_writes_the_scores(files, tmp_path, capsys):
    AnswerVocabulary(["yes"]).save(tmp_path / "answers.json")
    output = tmp_path / "scores" / "vqa.json"
    assert main([*files, "--answers", str(tmp_path / "answers.json"), "--output", str(output)]) == 0
    rows = {tuple(line.rsplit(maxsplit=1)) for line in capsys.readouterr().out.splitlines()}
    assert {("overall", "50.00"), ("  yes/no", "100.00"), ("  what color", "0.00")} <= rows
    assert {("soft score", "50.00"), ("upper bound", "50.00")} <= rows
    assert json.loads(output.read_text())["results"] == {
        "overall": 50,
        "per_question_type": {"is the": 100, "what color": 0},
        "per_answer_type": {"yes/no": 100, "other": 0},
        "per_question": {"11": 100, "12": 0},
        "soft_score": 50,
        "upper_bound": 50,
    }


def test_questions_by_their_words(files, capsys):
    assert main([*files, "--matching", "first=NUMBER 11", "number"]) == 0
    rows = {tuple(line.rsplit(maxsplit=1)) for line in capsys.readouterr().out.splitlines()}
    assert {("  first", "100.00"), ("  number", "50.00")} <= rows
    for pattern, message in (("a=(", "not a regular expression"), ("b=cat", "matches no question")):
        assert main([*files, "--matching", pattern]) == 2
        assert message in capsys.readouterr().err
    without = files[: files.index("--questions")] + files[files.index("--questions") + 2 :]
    assert main([*without, "--matching", "number"]) == 2
    assert "also give --questions" in capsys.readouterr().err


def test_two_files_are_two_columns(files, tmp_path, capsys):
    (tmp_path / "better.json").write_text(
        '[{"question_id": 11, "answer": "yes"}, {"question_id": 12, "answer": "red"}]'
    )
    where = files.index("--results") + 2
    assert main([*files[:where], str(tmp_path / "better.json"), *files[where:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["percent", "results", "better"]
    assert lines[1].split() == ["overall", "50.00", "100.00"]


def test_bad_input_is_one_line(files, tmp_path, capsys):
    (tmp_path / "results.json").write_text('[{"question_id": 11, "answer": "yes"}]')
    assert main(files) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'results.json'}: lacks 1 of the 2 questions")
    assert error.count("\n") == 1
