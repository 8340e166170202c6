import json
import shutil
import stat
import subprocess
from collections import Counter

import numpy as np
import pytest

from bua.captioning.scores import METRICS, caption_scores, ptb_tokenize, regex_tokenize, write_results
from bua.errors import InputError

pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed; run `pip install pycocoevalcap`")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no java on the PATH")
WITHOUT_JAVA = [metric for metric in METRICS if metric not in ("METEOR", "SPICE")]

REFERENCES = {
    3: ["A red circle is left of a star.", "There is a red circle.", "The circle isn't blue"],
    1: ["Two dogs run, one is brown.", "Dogs' tails (two)"],
    2: ["A man's t-shirt", "the man wears a shirt"],
}
RESULTS = {1: "two brown dogs", 2: "a man wears a t-shirt", 3: "a red circle left of a star"}


def as_results(captions):
    return [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]


def as_references(references):
    pairs = [(image_id, caption) for image_id, captions in references.items() for caption in captions]
    return {"annotations": [{"image_id": image_id, "caption": caption} for image_id, caption in pairs]}


@pytest.fixture
def no_java(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


SENTENCES = {
    "A man's dog (brown) can't run; it cannot stop.": "a man 's dog -lrb- brown -rrb- ca n't run it can not stop",
    'He said "no" -- I\'ll go... to the U.S. at 5:30 p.m.': "he said no i 'll go to the u.s. at 5:30 p.m.",
    "Caf\u00e9 w/ half-eaten pizza & and/or 1/2 $5.00 #1 100% don't they're!!": (
        "caf\u00e9 w / half-eaten pizza & and/or 1/2 $ 5.00 # 1 100 % do n't they 're !!"
    ),
    "[a] {b} T-shirt a/c o'clock dogs' 1,000 stop? : it's": (
        "-lsb- a -rsb- -lcb- b -rcb- t-shirt a/c o'clock dogs 1,000 stop it 's"
    ),
    "": "",
    ".": "",
    "a cat .": "a cat",
}


@needs_java
def test_ptb_tokeniser():
    assert ptb_tokenize(list(SENTENCES)) == list(SENTENCES.values())


def test_regex_tokeniser_gives_the_same():
    assert regex_tokenize(list(SENTENCES)) == list(SENTENCES.values())


def ngrams(text: str, n: int) -> Counter:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def slow_cider_d(results: dict, references: dict) -> float:
    """Computes CIDEr-D as in the paper, or as coco-caption where it differs, for words with blanks between."""
    scores = []
    for image_id, result in results.items():
        of_image = []
        for reference in references[image_id]:
            parts = []
            for n in range(1, 5):
                frequency = Counter(
                    gram for texts in references.values() for gram in {g for text in texts for g in ngrams(text, n)}
                )

                def weights(text, n=n, frequency=frequency):
                    rarity = np.log(len(references))
                    return {g: c * (rarity - np.log(max(1, frequency[g]))) for g, c in ngrams(text, n).items()}

                ours, theirs = weights(result), weights(reference)
                product = sum(min(ours[g], theirs[g]) * theirs[g] for g in ours.keys() & theirs.keys())
                norms = [sum(w * w for w in vector.values()) ** 0.5 for vector in (ours, theirs)]
                penalty = np.exp(-((len(result.split()) - len(reference.split())) ** 2) / (2 * 6**2))
                parts.append(penalty * product / (norms[0] * norms[1]) if all(norms) else 0.0)
            of_image.append(np.mean(parts))
        scores.append(10 * np.mean(of_image))
    return 100 * float(np.mean(scores))


def slow_bleu(results: dict, references: dict, order: int) -> float:
    logs = []
    for n in range(1, order + 1):
        hits = total = 0
        for image_id, result in results.items():
            most = Counter()
            for reference in references[image_id]:
                most |= ngrams(reference, n)
            hits += sum((ngrams(result, n) & most).values())
            total += sum(ngrams(result, n).values())
        logs.append(np.log(hits / total))
    said = sum(len(result.split()) for result in results.values())
    closest = 0
    for image_id, result in results.items():
        lengths = [len(reference.split()) for reference in references[image_id]]
        closest += min(lengths, key=lambda length: (abs(length - len(result.split())), length))
    return 100 * float(np.exp(np.mean(logs)) * min(1, np.exp(1 - closest / said)))


def test_scores_without_java(no_java, caplog):
    scores = caption_scores(as_results(RESULTS), as_references(REFERENCES))
    assert list(scores) == [*WITHOUT_JAVA, "tokenizer", "left_out"]
    assert scores["tokenizer"] == "regex"
    assert scores["left_out"] == dict.fromkeys(["METEOR", "SPICE"], "there is no java on the PATH")
    assert "words are split by a regular expression" in caplog.text
    assert "METEOR left out: there is no java on the PATH" in caplog.text
    results = dict(zip(RESULTS, regex_tokenize(list(RESULTS.values()))))
    references = {image_id: regex_tokenize(texts) for image_id, texts in REFERENCES.items()}
    assert scores["CIDEr-D"] == pytest.approx(slow_cider_d(results, references), abs=1e-6)
    assert scores["BLEU-1"] == pytest.approx(slow_bleu(results, references, 1), abs=1e-5)
    assert scores["BLEU-2"] == pytest.approx(slow_bleu(results, references, 2), abs=1e-5)
    assert 0 < scores["ROUGE-L"] < 100


def test_the_reference_itself_scores_best(no_java):
    references = {image_id: captions[:1] for image_id, captions in REFERENCES.items()}
    said = {image_id: captions[0] for image_id, captions in references.items()}
    scores = caption_scores(as_results(said), as_references(references))
    assert scores["ROUGE-L"] == pytest.approx(100)
    assert scores["BLEU-4"] == pytest.approx(100, abs=1e-3)
    # "a man's t-shirt" has no four words in a row that count: 10 * (1 + 1 + 3/4 or more) / 3.
    assert 900 < scores["CIDEr-D"] <= 1000


@needs_java
def test_scores_with_java(monkeypatch, caplog):
    # A locale with a decimal comma, and an encoding other than UTF-8, have no effect.
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE -Dfile.encoding=ISO-8859-1")
    scores = caption_scores(as_results(RESULTS), as_references(REFERENCES))
    assert scores["tokenizer"] == "PTB"
    # What pycocoevalcap's own classes give for these.
    assert scores["METEOR"] == pytest.approx(39.49049532127687)
    assert scores["CIDEr-D"] == pytest.approx(253.6891605939686)
    left_out = scores.pop("left_out")
    if "SPICE" in left_out:
        assert left_out["SPICE"].startswith(("lacks Stanford CoreNLP 3.6.0", "SPICE's program fails"))
        assert f"SPICE left out: {left_out['SPICE']}" in caplog.text
    assert set(left_out) <= {"SPICE"}
    monkeypatch.setenv("PATH", "")
    plain = caption_scores(as_results(RESULTS), as_references(REFERENCES), metrics=WITHOUT_JAVA)
    assert plain["left_out"] == {}
    for metric in WITHOUT_JAVA:
        assert scores[metric] == pytest.approx(plain[metric])


def fake_java(folder, script: str) -> None:
    folder.mkdir()
    path = folder / "java"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_java_that_does_not_run(tmp_path, monkeypatch):
    fake_java(tmp_path / "bin", "echo 'No Java runtime present' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    scores = caption_scores(as_results(RESULTS), as_references(REFERENCES))
    assert scores["left_out"]["METEOR"] == "java -version fails: No Java runtime present"
    assert scores["tokenizer"] == "regex"


def test_programs_that_fail_are_left_out_or_said(tmp_path, monkeypatch):
    # The tokeniser splits nothing, and all other programs fail.
    fake_java(tmp_path / "bin", 'case "$*" in *PTBTokenizer*) cat;; *-version*);; *) echo broken >&2; exit 1;; esac')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    scores = caption_scores(as_results(RESULTS), as_references(REFERENCES), metrics=["METEOR", "CIDEr-D"])
    assert scores["left_out"] == {"METEOR": "METEOR's program ends early: broken"}
    assert "CIDEr-D" in scores
    fake_java(tmp_path / "bin2", 'case "$*" in *PTBTokenizer*) echo "out of memory" >&2; exit 1;; esac')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin2'}:/bin:/usr/bin")
    with pytest.raises(InputError, match=r"^PTB tokeniser: gives 0 lines for 10 captions: out of memory$"):
        caption_scores(as_results(RESULTS), as_references(REFERENCES))


def test_a_meteor_that_ends_before_anything_is_written_to_it(tmp_path, monkeypatch):
    fake_java(tmp_path / "bin", 'case "$*" in *PTBTokenizer*) cat;; *-version*);; *) echo broken >&2; exit 1;; esac')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")

    class Ended(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(command, **options)
            if "-stdio" in command:
                self.wait()

    monkeypatch.setattr(subprocess, "Popen", Ended)
    scores = caption_scores(as_results(RESULTS), as_references(REFERENCES), metrics=["METEOR", "CIDEr-D"])
    assert scores["left_out"] == {"METEOR": "METEOR's program ends early: broken"}
    assert "CIDEr-D" in scores


def test_spice_where_it_was_downloaded(tmp_path, monkeypatch):
    from pycocoevalcap.spice import spice

    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "stanford-corenlp-3.6.0-models.jar").touch()
    monkeypatch.setattr(spice, "__file__", str(tmp_path / "spice.py"))
    # A program that writes one score per image to the given file.
    scores = json.dumps([{"scores": {"All": {"f": value}}} for value in (0.25, 0.5, None)])
    given = """case "$*" in *PTBTokenizer*) cat;; *spice*) cp "${7}" %s; echo '%s' > "${9}";; esac"""
    fake_java(tmp_path / "bin", given % (tmp_path / "given.json", scores))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    found = caption_scores(as_results(RESULTS), as_references(REFERENCES), metrics=["SPICE"])
    assert found == {"SPICE": pytest.approx(25), "tokenizer": "PTB", "left_out": {}}
    given = {item["image_id"]: item for item in json.loads((tmp_path / "given.json").read_text())}
    assert given.keys() == REFERENCES.keys()
    assert given[1]["test"] == RESULTS[1]
    assert len(given[3]["refs"]) == 3


def test_captions_of_no_words_and_with_breaks(no_java):
    results = RESULTS | {1: "", 2: "a\nman's\u2028shirt"}
    scores = caption_scores(as_results(results), as_references(REFERENCES))
    assert 0 < scores["CIDEr-D"] < 1000


def test_files_and_lists_of_images(tmp_path, no_java):
    write_results(tmp_path / "results.json", {np.int64(image_id): RESULTS[image_id] for image_id in (1, 3)})
    (tmp_path / "references.json").write_text(json.dumps(as_references(REFERENCES)))
    (tmp_path / "images.txt").write_text("val2014/COCO_val2014_000000000003.jpg 3\n1\n")
    paths = [tmp_path / "results.json", tmp_path / "references.json"]
    scores = caption_scores(*paths, images=tmp_path / "images.txt", metrics=["BLEU-4", "CIDEr-D"])
    assert list(scores) == ["BLEU-4", "CIDEr-D", "tokenizer", "left_out"]
    some = {image_id: REFERENCES[image_id] for image_id in (1, 3)}
    results = {image_id: RESULTS[image_id] for image_id in (1, 3)}
    assert scores == caption_scores(as_results(results), as_references(some), metrics=["BLEU-4", "CIDEr-D"])
    (tmp_path / "images.txt").write_text("1\n4\n")
    with pytest.raises(InputError, match=r"references.json: lacks 1 of the 2 images of .*images.txt: 4; both must"):
        caption_scores(*paths, images=tmp_path / "images.txt")


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({1: "x"}, "results: lacks 2 of the 3 images of references: 3, 2; both must be of one split"),
        (RESULTS | {9: "x", 8: "y"}, "results: has 2 images that references does not have: 8, 9; leave them out"),
    ],
)
def test_missing_and_extra_images_are_reported_in_one_line(results, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        caption_scores(as_results(results), as_references(REFERENCES))


def test_bad_input_is_reported_in_one_line():
    results = as_results(RESULTS)
    with pytest.raises(InputError, match=r"^results: has 1 images more than once: 1; keep one of each$"):
        caption_scores([*results, results[0]], as_references(REFERENCES))
    with pytest.raises(InputError, match=r"^metric 'CIDEr': unknown; use some of BLEU-1, .*"):
        caption_scores(results, as_references(REFERENCES), metrics=["CIDEr"])
    with pytest.raises(
        InputError, match=r"^references: has no captions; name a file in the format of COCO's captions$"
    ):
        caption_scores([], {"annotations": []})
    with pytest.raises(InputError, match="record 0: caption is 5; it must be a string"):
        caption_scores([{"image_id": 1, "caption": 5}], as_references(REFERENCES))
