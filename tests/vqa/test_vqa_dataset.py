"""VQA data: from the official files (Shapes writes them too) to arrays."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from script_loading import load_script
from test_authors_vocabularies import write_authors_folder

from bua.errors import InputError
from bua.shapes.make import make_shapes
from bua.tasks.words import WordVocabulary, tokenize
from bua.vqa.answers import AnswerVocabulary, normalize_answer
from bua.vqa.dataset import VqaDataset, prepare_vqa
from bua.vqa.official import load_annotations, load_questions

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "prepare_vqa.py"
SUBSETS = {"train": "train2014", "val": "val2014", "test": "test2015"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "data"
    make_shapes(root, 30, 8, 6, seed=3, processes=1)
    return root


@pytest.fixture(scope="module")
def prepared(shapes, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("prepared") / "vqa"
    prepare_vqa(shapes / "vqa", output, min_count=2, visual_genome=shapes)
    return output


def read(root, kind, subset):
    name = "v2_OpenEnded_mscoco_{}_questions.json" if kind == "questions" else "v2_mscoco_{}_annotations.json"
    return json.loads((root / "vqa" / name.format(subset)).read_text())[kind]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_is_what_its_files_say(shapes, prepared, split):
    dataset = VqaDataset.load(prepared, split)
    questions = read(shapes, "questions", SUBSETS[split])
    answers = {item["question_id"]: item["answers"] for item in read(shapes, "annotations", SUBSETS[split])}
    assert len(dataset) == len(questions) > 20
    assert dataset.questions.shape == (len(questions), 14)
    for item, question in zip(dataset, questions):
        assert (item.question_id, item.image_id) == (question["question_id"], question["image_id"])
        words = [dataset.words.words[number] for number in item.words if number < len(dataset.words)]
        assert words == tokenize(question["question"])[:14]
        counts = Counter(normalize_answer(answer["answer"]) for answer in answers[item.question_id])
        given = {dataset.answers.answers[label]: score for label, score in zip(item.labels, item.scores)}
        known = {answer: min(10, 3 * count) / 10 for answer, count in counts.items() if answer in given}
        assert given == pytest.approx(known)
        assert set(counts) - set(given) <= set(counts) - set(dataset.answers.answers)


def test_vocabularies(shapes, prepared):
    dataset = VqaDataset.load(prepared, "train")
    texts = [q["question"] for subset in SUBSETS.values() for q in read(shapes, "questions", subset)]
    assert dataset.words.words == list(dict.fromkeys(word for text in texts for word in tokenize(text)))
    frequent = [a["multiple_choice_answer"] for s in ("train2014", "val2014") for a in read(shapes, "annotations", s)]
    counts = Counter(map(normalize_answer, frequent))
    assert dataset.answers.answers == [answer for answer, count in counts.items() if count >= 2]


def test_visual_genome_is_added_by_bans_rule(shapes, prepared):
    images = {item["image_id"]: item["coco_id"] for item in json.loads((shapes / "image_data.json").read_text())}
    records = json.loads((shapes / "question_answers.json").read_text())
    for split in ("train", "val"):
        asked = {q["image_id"] for q in read(shapes, "questions", SUBSETS[split])}
        dataset = VqaDataset.load(prepared, f"vg_{split}")
        expected = [
            (item["qa_id"], images[record["id"]], tokenize(item["question"])[:14], normalize_answer(item["answer"]))
            for record in records
            for item in record["qas"]
            if images[record["id"]] in asked and normalize_answer(item["answer"]) in dataset.answers.answers
        ]
        assert [
            (
                item.question_id,
                item.image_id,
                int((item.words < len(dataset.words)).sum()),
                dataset.answers.answers[item.labels[0]],
            )
            for item in dataset
        ] == [(number, image, len(words), answer) for number, image, words, answer in expected]
        assert expected
        assert all(item.scores.tolist() == [1] for item in dataset)


def test_data_sets_are_joined(prepared):
    parts = [VqaDataset.load(prepared, split) for split in ("train", "vg_train", "val")]
    both = VqaDataset.concatenate(parts)
    items = [item for part in parts for item in part]
    assert len(both) == len(items)
    for one, other in zip(both, items):
        assert (one.question_id, one.image_id) == (other.question_id, other.image_id)
        assert all(np.array_equal(a, b) for a, b in zip(one[2:], other[2:]))


def test_only_what_belongs_together_is_joined(prepared):
    train = VqaDataset.load(prepared, "train")
    with pytest.raises(InputError, match="only one of them has answers"):
        VqaDataset.concatenate([train, replace(train, targets=None)])
    with pytest.raises(InputError, match="has other vocabularies than"):
        VqaDataset.concatenate([train, replace(train, answers=AnswerVocabulary(["yes"]))])


def test_in_the_vocabularies_of_a_checkpoint(prepared):
    train = VqaDataset.load(prepared, "train")
    assert train.in_vocabularies(train.words, train.answers) is train
    words = WordVocabulary([*reversed(train.words.words[3:]), "more", "last"])
    answers = AnswerVocabulary([*reversed(train.answers.answers[2:]), "more"])
    other = train.in_vocabularies(words, answers)
    for new, old in zip(other, train):
        said = [train.words.words[number] for number in old.words if number < len(train.words)]
        expected = [word if word in words else "last" for word in said]
        assert [words.words[number] for number in new.words if number < len(words)] == expected
        kept = {train.answers.answers[label]: score for label, score in zip(old.labels, old.scores)}
        kept = {answer: score for answer, score in kept.items() if answer in answers.answers}
        assert {answers.answers[label]: score for label, score in zip(new.labels, new.scores)} == kept
    back = replace(train, targets=None).in_vocabularies(words, answers)
    assert back.targets is None


def copy_without(shapes, root, *left_out):
    root.mkdir()
    for path in (shapes / "vqa").glob("*.json"):
        if path.name not in left_out:
            (root / path.name).write_bytes(path.read_bytes())
    return root


def test_goes_without_test(shapes, tmp_path):
    missing = [f"v2_OpenEnded_mscoco_test2015_{kind}.json" for kind in ("questions", "annotations")]
    root = copy_without(shapes, tmp_path / "vqa", *missing)
    assert set(prepare_vqa(root, tmp_path / "out", min_count=2)) == {"train", "val"}
    with pytest.raises(InputError, match=r"test\.npz: no such split; .* has train, val"):
        VqaDataset.load(tmp_path / "out", "test")


def test_nothing_of_other_vocabularies_is_left(shapes, tmp_path):
    prepare_vqa(shapes / "vqa", tmp_path / "out", min_count=1, visual_genome=shapes)
    prepare_vqa(shapes / "vqa", tmp_path / "out", min_count=2)
    assert not list((tmp_path / "out").glob("vg_*"))


def test_test_has_no_answers(shapes, tmp_path):
    root = copy_without(shapes, tmp_path / "vqa", "v2_mscoco_test2015_annotations.json")
    prepare_vqa(root, tmp_path / "out", min_count=2)
    test = VqaDataset.load(tmp_path / "out", "test")
    assert test.targets is None
    assert len(test[0].labels) == 0


def test_annotations_of_another_split(shapes, tmp_path):
    root = copy_without(shapes, tmp_path / "vqa")
    (root / "v2_mscoco_val2014_annotations.json").write_bytes(
        (root / "v2_mscoco_train2014_annotations.json").read_bytes()
    )
    with pytest.raises(InputError, match=r"lacks \d+ of the \d+ questions of .*; both must be of one split") as caught:
        prepare_vqa(root, tmp_path / "out", min_count=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"no vqa\.json in it; prepare it"):
        VqaDataset.load(tmp_path / "out", "train")


def test_needs_the_official_files(tmp_path):
    with pytest.raises(InputError, match=r"has no v2_Open.*_train2014_q.*; name .* --root, .*`bua download vqa`"):
        prepare_vqa(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", ["root", "missing", "damaged", "vocabulary", "visual_genome"])
def test_bad_input_leaves_a_prepared_folder_as_it_was(shapes, prepared, tmp_path, bad):
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    lacking = ["v2_mscoco_val2014_annotations.json"] if bad == "missing" else []
    root = copy_without(shapes, tmp_path / "vqa", *lacking)
    if bad == "damaged":
        (root / "v2_mscoco_val2014_annotations.json").write_text('{"annotations": [{}]}')
    (tmp_path / "words.pkl").write_bytes(b"no pickle")
    options = {
        "vocabulary": {"vocabulary": [tmp_path / "words.pkl"]},
        "visual_genome": {"visual_genome": tmp_path / "none"},
    }
    with pytest.raises(InputError):
        prepare_vqa(tmp_path / "none" if bad == "root" else root, prepared, **options.get(bad, {}))
    assert {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()} == before


def test_a_damaged_split_is_named(prepared, tmp_path):
    for path in prepared.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 500 if path.name == "val.npz" else None])
    with pytest.raises(InputError, match=r"val\.npz: damaged .*; prepare it again"):
        VqaDataset.load(tmp_path, "val")


QUESTION = {"question_id": 7, "image_id": 1, "question": "Is it?"}
ANNOTATION = {
    "question_id": 7,
    "image_id": 1,
    "question_type": "is it",
    "answer_type": "yes/no",
    "multiple_choice_answer": "yes",
    "answers": [{"answer": "yes"}],
}


@pytest.mark.parametrize(
    ("load", "content", "message"),
    [
        (load_questions, [], None),
        (load_questions, {"annotations": []}, "does not hold a list of questions"),
        (
            load_questions,
            [QUESTION, {**QUESTION, "question_id": "8"}],
            "record 1: question_id is '8'; it must be an int",
        ),
        (load_questions, [QUESTION, QUESTION], "has 1 questions more than once: 7; keep one"),
        (load_questions, [{"question_id": 7, "image_id": 1}], "record 0: question is None; it must be a string"),
        (load_questions, [3], "record 0: question is None"),
        (load_annotations, [{**ANNOTATION, "answers": ["yes"]}], "record 0: answers: an entry has no answer"),
        (load_annotations, [{**ANNOTATION, "answers": []}], "record 0: answers: empty"),
        (load_annotations, [{**ANNOTATION, "answer_type": None}], "record 0: answer_type is None"),
    ],
)
def test_bad_records_are_named(tmp_path, load, content, message):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    if message is None:
        assert len(load(path).question_ids) == 0
        return
    for source in (path, content):
        with pytest.raises(InputError, match=message) as caught:
            load(source)
        assert "\n" not in str(caught.value)
    path.write_text("[{")
    with pytest.raises(InputError, match=r"file\.json: is not JSON"):
        load(path)


def test_the_command(shapes, tmp_path, capsys):
    script = load_script(SCRIPT)
    glove = tmp_path / "glove.txt"
    glove.write_text("what 1 0 2\nred 0.5 1 -1\n")
    captions = str(shapes / "captions" / "captions_val2014.json")
    arguments = ["--root", str(shapes / "vqa"), "--output", str(tmp_path / "out"), "--min-count", "2"]
    arguments += ["--visual-genome", str(shapes), "--glove", str(glove), "--glove-dim", "3", "--captions", captions]
    assert script.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "vg_train" in printed
    assert "upper bound" in printed
    with np.load(tmp_path / "out" / "word_vectors.npz") as arrays:
        words = VqaDataset.load(tmp_path / "out", "train").words
        assert arrays["glove"].shape == arrays["authors"].shape == arrays["tfidf"].shape == (len(words), 3)
        assert arrays["glove"][words.id_of("red")].tolist() == [0.5, 1, -1]
        answers = VqaDataset.load(tmp_path / "out", "train").answers
        assert arrays["answers"].shape == (len(answers), 3)
        assert arrays["answers"][answers.label("red")].tolist() == [0.5, 1, -1]
        assert not arrays["answers"][answers.label("blue")].any()
    assert script.main(["--root", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out2")]) == 2


def test_the_command_with_the_authors_vocabularies(shapes, prepared, tmp_path, capsys):
    before = VqaDataset.load(prepared, "train")
    words, answers = before.words.words[::-1], before.answers.answers[:0:-1]
    data = write_authors_folder(tmp_path / "data", words, answers, protocol=2)
    command = ["--root", str(shapes / "vqa"), "--output", str(tmp_path / "out"), "--vocabulary", str(data)]
    assert load_script(SCRIPT).main(command) == 0
    assert f"{len(words)} words, {len(answers)} answers" in capsys.readouterr().out
    after = VqaDataset.load(tmp_path / "out", "train")
    assert (after.words.words, after.answers.answers) == (words, answers)
    about = json.loads((tmp_path / "out/vqa.json").read_text())
    assert (about["vocabulary"], about["min_count"]) == ([str(data)], None)
    assert load_script(SCRIPT).main([*command, "--min-count", "3"]) == 2
    assert "--min-count 3: has no effect, since --vocabulary names the answers" in capsys.readouterr().err
    assert load_script(SCRIPT).main([*command, "--captions", "x.json"]) == 2
    assert "--captions: is only for --glove" in capsys.readouterr().err
    assert load_script(SCRIPT).main([*command, "--glove", "x.txt"]) == 2
    assert "x.txt: no such file" in capsys.readouterr().err
    expected = before.in_vocabularies(after.words, after.answers)
    assert np.array_equal(after.questions, expected.questions)
    assert np.array_equal(after.targets.labels, expected.targets.labels)
    (data / "dictionary.pkl").write_bytes(b"not a pickle")
    assert load_script(SCRIPT).main(command) == 2
    assert "dictionary.pkl: not a readable pickle" in capsys.readouterr().err
