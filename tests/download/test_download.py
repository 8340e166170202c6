import argparse
import hashlib
import importlib
import os
import re
import shlex

import pytest
from local_site import refusing, sending, zipped

from bua.commands import command_names, main
from bua.download import CATALOG, download
from bua.download.data_set import DataSet, File, Part
from bua.download.space import NoSpace
from bua.errors import InputError
from bua.io.files import exclusive

IMAGES = {f"pets/{number}.jpg": bytes([number]) * 5000 for number in range(4)}
BOXES = {"boxes.json": b"[1, 2]", "README": b"not wanted"}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "datasets"


@pytest.fixture
def catalog(site):
    """A data set of images, boxes, a list, and an optional part; and another data set."""
    site.files |= {"images.zip": zipped(IMAGES), "boxes.json.zip": zipped(BOXES), "train.txt": b"0\n1\n", "big": b"b"}
    sizes = {name: len(content) for name, content in site.files.items()}
    checksum = f"sha256:{hashlib.sha256(site.files['images.zip']).hexdigest()}"
    images = File(
        f"{site.url}images.zip",
        "pets/images.zip",
        sizes["images.zip"],
        checksum,
        {"pets/*.jpg": "pets/images/"},
        20_000,
        4,
    )
    boxes = File(f"{site.url}boxes.json.zip", "pets/boxes.json.zip", members={"boxes.json": "pets/"}, count=1)
    return {
        "pets": DataSet(
            "Pets",
            {
                "images": Part("images", (images,)),
                "boxes": Part("boxes and a list", (boxes, File(f"{site.url}train.txt", "pets/train.txt", 4))),
                "more": Part("more", (File(f"{site.url}big", "pets/big", 1),), optional=True),
            },
            notes=("ask for sounds at http://sounds, and put them into {root}/sounds",),
            next={"images+boxes": "prepare-pets --root {root}/pets", "more": "prepare-more"},
        ),
        "words": DataSet("Words", {"words": Part("words", (File(f"{site.url}words", "words.txt", 5),))}),
    }


@pytest.fixture
def run(catalog, root):
    """Fetches, and returns the lines that are shown."""

    def fetch(*names, **options):
        lines = []
        try:
            download(names, root, catalog=catalog, wait=0, attempts=3, progress=False, show=lines.append, **options)
        finally:
            fetch.lines = lines
        return lines

    return fetch


def paths(root) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_data_set_gets_its_layout(run, root):
    lines = run("pets")
    assert paths(root) == [
        "pets/.boxes.json.zip.unpacked",
        "pets/.images.zip.unpacked",
        "pets/boxes.json",
        *(f"pets/images/{number}.jpg" for number in range(4)),
        "pets/train.txt",
    ]
    assert all((root / "pets/images" / name[5:]).read_bytes() == content for name, content in IMAGES.items())
    assert lines[-2:] == [
        f"note: ask for sounds at http://sounds, and put them into {root}/sounds",
        f"next: prepare-pets --root {root}/pets",
    ]


def test_what_is_there_is_not_fetched_again(run, site):
    run("pets")
    before = len(site.requests)
    lines = run("pets")
    assert len(site.requests) == before
    assert "everything is there" in lines
    assert lines[-1].startswith("next: ")


def test_what_was_deleted_or_cut_is_fetched_again(run, root, site):
    run("pets")
    (root / "pets/images/2.jpg").write_bytes(b"cut")
    (root / "pets/boxes.json").unlink()
    site.requests.clear()
    run("pets")
    assert [path for path, _ in site.requests] == ["images.zip", "boxes.json.zip"]
    assert (root / "pets/images/2.jpg").read_bytes() == IMAGES["pets/2.jpg"]


def test_what_others_put_there_is_left_alone(run, root, site):
    (root / "pets/images").mkdir(parents=True)
    for number in range(4):
        (root / f"pets/images/{number}.jpg").write_bytes(b"x")
    (root / "pets/boxes.json").write_bytes(b"[]")
    (root / "pets/train.txt").write_bytes(b"my own list")
    lines = run("pets")
    assert not site.requests
    assert [line for line in lines if "counted" in line]
    assert [line for line in lines if "train.txt" in line and "another file; delete it to fetch it" in line]


def test_a_compressed_list_is_enough(run, root, site):
    (root / "pets").mkdir(parents=True)
    (root / "pets/train.txt.gz").write_bytes(b"x")
    run("pets", only=["boxes"])
    assert [path for path, _ in site.requests] == ["boxes.json.zip"]


def test_an_archive_that_is_there_is_only_unpacked(run, root, site):
    (root / "pets").mkdir(parents=True)
    (root / "pets/images.zip").write_bytes(site.files["images.zip"])
    lines = run("pets", only=["images"])
    assert not site.requests
    assert lines[0].endswith("to unpack and then to delete")
    assert (root / "pets/images/0.jpg").is_file()
    assert not (root / "pets/images.zip").exists()


def test_archives_are_kept_on_request(run, root, site):
    run("pets", only=["images"], keep_archives=True)
    assert (root / "pets/images.zip").read_bytes() == site.files["images.zip"]


def test_parts_are_chosen(run, root):
    lines = run("pets", only=["more"])
    assert paths(root) == ["pets/big"]
    assert lines[-1] == "next: prepare-more"


def test_several_data_sets_are_fetched(run, root, site):
    site.files["words"] = b"a b c"
    run("pets", "words", only=["more", "words"])
    assert paths(root) == ["pets/big", "words.txt"]


@pytest.mark.parametrize(
    ("names", "only", "message"),
    [
        (["cats"], [], "cats: is not a data set that can be fetched; the names are pets, words"),
        (["pets"], ["words"], "--only words: pets has no such part; the parts are images, boxes, more"),
    ],
)
def test_unknown_names(run, site, names, only, message):
    with pytest.raises(InputError, match=re.escape(message)):
        run(*names, only=only)
    assert not site.requests


def test_a_file_that_fails_does_not_stop_the_others(run, root, site):
    site.answers["images.zip"].append(refusing(404))
    with pytest.raises(InputError, match=r"^1 of 3 files could not be fetched.*images\.zip: the server refuses"):
        run("pets")
    assert (root / "pets/boxes.json").is_file()
    assert not [line for line in run.lines if line.startswith("next: ")]
    assert run("pets")[-1].startswith("next: ")


def test_a_cut_archive_goes_on_in_the_next_run(run, site):
    site.answers["images.zip"] += [sending(cut=60), *[refusing(500)] * 3]
    with pytest.raises(InputError, match="60 bytes are kept"):
        run("pets")
    lines = run("pets")
    assert lines[0].endswith("to fetch, from 60 bytes on")
    assert site.ranges("images.zip")[-1] == "bytes=60-"


def test_two_processes_do_not_unpack_the_same_archive(run, root, site):
    (root / "pets").mkdir(parents=True)
    with exclusive(root / "pets/.images.zip.unpacked"), pytest.raises(InputError, match="is writing to it"):
        run("pets", only=["images"])
    assert not site.requests


def test_ctrl_c_while_unpacking_goes_on_in_the_next_run(run, root, site, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("bua.download.archives._read", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("pets")
    site.requests.clear()
    run("pets")
    assert "images.zip" not in [path for path, _ in site.requests]
    assert len(list((root / "pets/images").iterdir())) == 4


def test_an_archive_that_leaves_the_folder_is_refused(run, root, site, catalog):
    site.files["boxes.json.zip"] = zipped({"../boxes.json": b"evil"})
    with pytest.raises(InputError, match="would be written outside its folder"):
        run("pets", only=["boxes"])
    assert not list(root.parent.rglob("boxes.json"))


def test_the_space_is_said_first(run, site, monkeypatch):
    size = len(site.files["images.zip"])
    monkeypatch.setattr("bua.download.run.free_space", lambda _: 20_000 + size)
    lines = run("pets", only=["images"], dry_run=True)
    assert not site.requests
    assert lines[1:] == [f"to fetch: {size} bytes", lines[2]]
    assert re.fullmatch(r".*/datasets/pets: needs about 20\.\d kB of disk space, and 20\.\d kB are free", lines[2])

    monkeypatch.setattr("bua.download.run.free_space", lambda _: 19_000 + size)
    with pytest.raises(NoSpace, match=r"/datasets/pets: 1\.0 kB of disk space are missing; .* --root, .* --only"):
        run("pets", only=["images"])
    assert not site.requests


def test_the_space_of_what_is_there_counts(run, root, monkeypatch):
    monkeypatch.setattr("bua.download.run.free_space", lambda _: 6000)
    with pytest.raises(NoSpace):
        run("pets", only=["images"])
    (root / "pets/images").mkdir(parents=True)
    for number in range(3):
        (root / f"pets/images/{number}.jpg").write_bytes(IMAGES[f"pets/{number}.jpg"])
    run("pets", only=["images"])


def test_a_full_disk_stops_everything(run, site, monkeypatch):
    monkeypatch.setattr("bua.download.http.free_space", lambda _: 0)
    with pytest.raises(NoSpace, match="disk space are missing"):
        run("pets")
    assert len(site.requests) == 1


def test_a_damaged_list_of_what_was_unpacked_is_replaced(run, root):
    run("pets", only=["boxes"])
    record = root / "pets" / ".boxes.json.zip.unpacked"
    text = record.read_bytes()
    record.write_bytes(b"\xff")
    run("pets", only=["boxes"])
    assert record.read_bytes() == text
    record.unlink()
    os.mkfifo(record)
    assert any("its files were only counted" in line for line in run("pets", only=["boxes"]))


@pytest.mark.parametrize("name", CATALOG)
def test_the_catalog_is_consistent(name):
    data_set = CATALOG[name]
    files = [file for part in data_set.parts.values() for file in part.files]
    assert any(not part.optional for part in data_set.parts.values())
    assert len({file.target for file in files}) == len(files)
    for file in files:
        assert file.url.startswith(("https://", "http://images.cocodataset.org/"))
        assert file.url.endswith(f"/{file.name}") or file.target.startswith("visual_genome/vocab/")
        # Without https, only a checksum tells that the file is the right one.
        assert file.url.startswith("https://") or file.checksum
        if file.checksum:
            kind, number = file.checksum.split(":")
            assert re.fullmatch(r"[0-9a-f]+", number)
            assert len(number) == {"sha256": 64, "md5": 32, "git": 40}[kind]
    for parts, command in data_set.next.items():
        assert set(parts.split("+")) <= set(data_set.parts)
        assert "{root}" in command


def test_the_command_says_what_it_would_do(root, capsys, monkeypatch):
    assert main(["download", "vqa", "glove", "--only", "val", "6B", "--dry-run", "--root", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[:3]] == [
        "v2_Questions_Val_mscoco.zip",
        "v2_Annotations_Val_mscoco.zip",
        "glove.6B.zip",
    ]
    assert "to fetch: 876 MB" in lines
    # The folder of both data sets, not the one of the first.
    assert lines[-1].startswith(f"{root}: needs about")
    assert not root.exists()

    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    assert main(["download", "flickr30k", "--dry-run"]) == 0
    assert f"{root}/flickr30k_entities: needs about" in capsys.readouterr().out


@pytest.mark.parametrize("name", CATALOG)
def test_the_commands_in_the_catalog_are_accepted(name):
    data_set = CATALOG[name]
    texts = [*data_set.next.values(), *(note.rpartition(": ")[2] for note in data_set.notes if "bua " in note)]
    for text in texts:
        _, command, *arguments = shlex.split(text.format(root="datasets"))
        if command not in command_names():
            pytest.skip(f"bua {command} is not there yet")
        module = importlib.import_module(f"bua.commands.{command.replace('-', '_')}")
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        parser.parse_args(arguments)
