"""Tests of tools/convert_features.py and tools/inspect_features.py."""

import json
import sys
from pathlib import Path

import pytest
from script_loading import load_script

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "features"))

from feature_samples import LABELS, assert_same, sample

from bua.features import open_features, open_writer


def load_tool(name):
    path = Path(__file__).resolve().parents[2] / "tools" / f"{name}.py"
    return load_script(path).main


convert, inspect = load_tool("convert_features"), load_tool("inspect_features")


@pytest.fixture
def source(tmp_path):
    with open_writer(tmp_path / "source.tsv", "lxmert-tsv") as writer:
        for seed, name in enumerate(("COCO_val2014_000000000042", "COCO_val2014_000000393267")):
            writer.append(sample(name, seed=seed))
        writer.finish()
    return tmp_path / "source.tsv"


def test_convert_and_inspect(source, tmp_path, capsys):
    target = tmp_path / "train36.hdf5"
    assert convert([str(source), str(target), "--format", "hdf5", "--ids", "number"]) == 0
    assert capsys.readouterr().out == f"{target}: 2 images copied\n"
    assert_same(open_features(target)[393267], sample(393267, seed=1))
    assert inspect([str(target)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "images     2" in out
    assert "boxes      6, 3 to 3, 3.0 on average per image" in out
    assert inspect([str(target), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["images"], summary["histogram"], summary["faults"]) == (2, {"3": 2}, [])


def test_vinvls_format_needs_vocabularies(source, tmp_path, capsys):
    target = tmp_path / "vinvl.tsv"
    assert convert([str(source), str(target), "--format", "vinvl-tsv"]) == 2
    assert "give the vocabulary" in capsys.readouterr().err
    for kind, number in (("object", 1600), ("attribute", 400)):
        (tmp_path / kind).write_text("".join(f"{kind}{i}\n" for i in range(number)))
    names = ["--object-vocabulary", str(tmp_path / "object"), "--attribute-vocabulary", str(tmp_path / "attribute")]
    assert not target.exists()
    assert convert([str(source), str(target), "--format", "vinvl-tsv", *names]) == 0
    read = open_features(target)["COCO_val2014_000000000042"]
    assert_same(read, sample("COCO_val2014_000000000042"))


def test_the_vocabulary_of_a_conversion_is_that_of_an_extraction(source, tmp_path, capsys):
    folder = tmp_path / "vocab"
    folder.mkdir()
    for kind, number in (("objects", 1600), ("attributes", 400)):
        (folder / f"{kind}_vocab.txt").write_text("".join(f"{kind}{i}\n" for i in range(number)))
    given = [str(source), str(tmp_path / "vinvl.tsv"), "--format", "vinvl-tsv", "--vocabulary", str(folder)]
    assert convert([*given, "--object-vocabulary", str(folder / "objects_vocab.txt")]) == 2
    assert "--vocabulary: names objects and attributes" in capsys.readouterr().err
    assert convert(given) == 0
    read = open_features(tmp_path / "vinvl.tsv")["COCO_val2014_000000000042"]
    assert_same(read, sample("COCO_val2014_000000000042"))
    # What was written beside the features is a vocabulary too.
    again = [str(source), str(tmp_path / "again.tsv"), "--format", "vinvl-tsv"]
    assert convert([*again, "--vocabulary", str(tmp_path / "vinvl.labelmap.json")]) == 0
    assert (tmp_path / "again.tsv").read_bytes() == (tmp_path / "vinvl.tsv").read_bytes()


def test_faults_are_printed(source, tmp_path, capsys):
    rows = source.read_bytes().splitlines(keepends=True)
    source.write_bytes(b"".join([*rows, *[rows[1]] * 30, rows[0].replace(b"000042", b"000043").replace(b"640", b"")]))
    assert inspect([str(source)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert "wrong: 1 images that cannot be decoded" in out
    assert f"  {source}: line 33: img_w: '' is not a number; extract this image again" in out
    assert f"  {source}: line 3: image COCO_val2014_000000393267 again, which line 2 has" in out
    assert out[-1] == "  ... and 11 more (use --json to print all)"
    assert inspect([str(source), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 30
    (tmp_path / "empty").mkdir()
    with open_writer(tmp_path / "none", "flat"):
        pass
    assert inspect([str(tmp_path / "none"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["minimum"] is None
    assert inspect([str(tmp_path / "empty")]) == 2
    assert "has no features: the folder has no" in capsys.readouterr().err


def test_an_image_that_cannot_be_converted_is_named(tmp_path, capsys):
    with open_writer(tmp_path / "source", "flat") as writer:
        writer.append(sample(1))
        writer.append(sample(2, labelled=False))
        writer.finish()
    assert convert([str(tmp_path / "source"), str(tmp_path / "out.tsv"), "--format", "lxmert-tsv"]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"error: {tmp_path}/out.tsv (lxmert-tsv): image 2: has no object_ids")
    assert convert([str(tmp_path / "source"), str(tmp_path / "out.tsv2"), "--format", "tsv"]) == 0
    assert_same(open_features(tmp_path / "out.tsv2")[2], sample(2), LABELS)
