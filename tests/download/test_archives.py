import gzip
import io
import shutil
import tarfile

import pytest
from local_site import zipped

from bua.download import unpack
from bua.download.space import NoSpace
from bua.errors import InputError

FILES = {"VG_100K/1.jpg": b"one" * 1000, "VG_100K/2.jpg": b"two" * 1000, "VG_100K_2/3.jpg": b"three", "LICENSE": b"x"}


def tarred(files: dict[str, bytes], mode: str, links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, goal in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, goal
            archive.addfile(info)
    return buffer.getvalue()


def written(tmp_path, name: str, content: bytes):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def paths(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", zipped(FILES)),
        ("a.tar", tarred(FILES, "w")),
        ("a.tar.gz", tarred(FILES, "w:gz")),
        ("a.tgz", tarred(FILES, "w:gz")),
    ],
)
def test_only_what_is_asked_for_is_unpacked(tmp_path, root, name, content):
    archive = written(tmp_path, name, content)
    files = unpack(archive, root, {"VG_100K/*.jpg": "vg/VG_100K/", "3.jpg": ""}, progress=False)
    assert {str(path.relative_to(root)): size for path, size in files.items()} == {
        "vg/VG_100K/1.jpg": 3000,
        "vg/VG_100K/2.jpg": 3000,
        "3.jpg": 5,
    }
    assert paths(root) == ["3.jpg", "vg/VG_100K/1.jpg", "vg/VG_100K/2.jpg"]
    assert (root / "vg/VG_100K/2.jpg").read_bytes() == FILES["VG_100K/2.jpg"]


def test_a_file_that_is_compressed_by_gzip(tmp_path, root):
    archive = written(tmp_path, "train.txt.gz", gzip.compress(b"1\n2\n"))
    assert unpack(archive, root, {"train.txt": "splits/"}, progress=False) == {root / "splits/train.txt": 4}
    assert (root / "splits/train.txt").read_text() == "1\n2\n"


def test_the_end_of_a_path_is_compared(tmp_path, root):
    """The folder in which the files lie in the archive does not matter, and what macOS adds is left out."""
    names = ("top/Annotations/1.xml", "__MACOSX/top/Annotations/._1.xml", "top/Other/2.xml")
    archive = written(tmp_path, "a.zip", zipped(dict.fromkeys(names, b"x")))
    unpack(archive, root, {"Annotations/*.xml": "A/"}, progress=False)
    assert paths(root) == ["A/1.xml"]


@pytest.mark.parametrize("name", ["../evil.jpg", "a/../../evil.jpg", "/tmp/evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, root, name, kind):
    files = {"good.jpg": b"good", name: b"evil"}
    archive = written(tmp_path, f"a.{kind}", zipped(files) if kind == "zip" else tarred(files, "w"))
    with pytest.raises(InputError, match=r"a\.(zip|tar): has a file .*evil\.jpg', which would be written outside"):
        unpack(archive, root, {"*.jpg": ""}, progress=False)
    assert paths(root) == []


def test_links_are_left_out(tmp_path, root):
    archive = written(tmp_path, "a.tar", tarred({"1.jpg": b"x"}, "w", {"2.jpg": "/etc/passwd"}))
    assert unpack(archive, root, {"*.jpg": ""}, progress=False) == {root / "1.jpg": 1}


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_what_is_no_file_is_left_out(tmp_path, root, kind):
    archive = written(tmp_path, "a.tar", header("2.jpg", 0, kind) + tarred({"1.jpg": b"x"}, "w"))
    assert unpack(archive, root, {"*.jpg": ""}, progress=False) == {root / "1.jpg": 1}


def negative_header() -> bytes:
    """Returns a header whose size leads back to itself, which the tarfile of Python 3.11.7 reads for ever."""
    block = bytearray(header("1.jpg", 0))
    block[124:136] = (-1024).to_bytes(12, "big", signed=True)
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
    return bytes(block)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar", header("0.jpg", 0) + negative_header() + bytes(1024), "a header has a negative size"),
        ("a.tar", header("x", 8 << 30, b"x") + bytes(4096), ""),
        ("a.tar.gz", gzip.compress(header("x", 8 << 30, b"x") + bytes(4096), mtime=0), ""),
        ("a.tar", header("x", 5000, b"L") + b"n" * 5000 + bytes(120) + header("y", 0), "a name has 5000 characters"),
        ("a.tar", (header("x", 2, b"L") + b"n".ljust(512)) * 2000, "recursion|truncated|missing"),
        ("a.tar.xz", tarred({"x": bytes(range(256)) * 40}, "w:xz")[:-60] + bytes(60), ""),
        ("a.zip", zipped({"x": b"y"}).replace(b"x", b"\0"), ""),
    ],
)
def test_damaged_headers_are_one_line(tmp_path, root, name, content, message):
    archive = written(tmp_path, name, content)
    with pytest.raises(InputError, match=rf"is damaged, or is another file \(.*({message})") as error:
        unpack(archive, root, {"*": ""}, progress=False)
    assert "\n" not in str(error.value)


def test_an_encrypted_archive_is_one_line(tmp_path, root):
    content = bytearray(zipped({"x": b"y"}))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    with pytest.raises(InputError, match=r"a\.zip: is damaged, or is another file \(.*encrypted"):
        unpack(written(tmp_path, "a.zip", bytes(content)), root, {"x": ""}, progress=False)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "x.gz"])
def test_an_archive_that_grows_without_bounds_is_refused(tmp_path, root, monkeypatch, name):
    monkeypatch.setattr("bua.download.archives._SMALL", 10_000)
    data = bytes(2_000_000)
    content = {"a.zip": zipped({"x": data}), "a.tar.gz": tarred({"x": data}, "w:gz"), "x.gz": gzip.compress(data)}[name]
    with pytest.raises(InputError, match=rf"{name}: unpacks to more than 100 times its size"):
        unpack(written(tmp_path, name, content), root, {"x": ""}, progress=False)
    assert paths(root) == []


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_of_too_many_files_is_refused(tmp_path, root, monkeypatch, kind):
    monkeypatch.setattr("bua.download.archives._MAX_FILES", 3)
    archive = written(tmp_path, f"a.{kind}", zipped(FILES) if kind == "zip" else tarred(FILES, "w"))
    with pytest.raises(InputError, match="do not use it"):
        unpack(archive, root, {"*.jpg": ""}, progress=False)


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\x1b[2J.jpg", "\u202egpj.jpg"])
def test_a_name_that_cannot_be_listed_is_refused(tmp_path, root, name):
    archive = written(tmp_path, "a.tar", tarred({name: b"x"}, "w"))
    with pytest.raises(InputError, match="whose name is not printable; do not use it") as error:
        unpack(archive, root, {"*.jpg": ""}, progress=False)
    assert str(error.value).isprintable()


def test_what_is_there_with_its_size_is_kept(tmp_path, root):
    archive = written(tmp_path, "a.zip", zipped(FILES))
    (root / "1.jpg").write_bytes(b"mine" * 750)
    (root / "2.jpg").write_bytes(b"cut")
    unpack(archive, root, {"VG_100K/*.jpg": ""}, progress=False)
    assert (root / "1.jpg").read_bytes() == b"mine" * 750
    assert (root / "2.jpg").read_bytes() == FILES["VG_100K/2.jpg"]


def test_after_ctrl_c_it_goes_on(tmp_path, root, monkeypatch):
    archive = written(tmp_path, "a.zip", zipped({f"{number}.jpg": b"x" * 100 for number in range(5)}))
    reads = []

    def read(source):
        reads.append(source)
        if len(reads) == 3 * 3 + 2:  # in the middle of the fourth file, each of which takes three
            raise KeyboardInterrupt
        return source.read(60)

    with monkeypatch.context() as patch:
        patch.setattr("bua.download.archives._read", read)
        with pytest.raises(KeyboardInterrupt):
            unpack(archive, root, {"*.jpg": ""}, progress=False)
    assert paths(root) == ["0.jpg", "1.jpg", "2.jpg"]
    before = (root / "2.jpg").stat().st_mtime_ns
    unpack(archive, root, {"*.jpg": ""}, progress=False)
    assert paths(root) == [f"{number}.jpg" for number in range(5)]
    assert (root / "2.jpg").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "x.gz"])
def test_a_damaged_archive_is_one_line(tmp_path, root, name):
    archive = written(tmp_path, name, b"<html>please log in</html>")
    with pytest.raises(InputError, match=rf"{name}.* delete ") as error:
        unpack(archive, root, {"*": ""}, progress=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "x.gz"])
def test_a_damaged_file_in_an_archive_is_not_left_behind(tmp_path, root, name):
    noise = {"x": bytes(range(256)) * 40}
    content = {"a.zip": zipped(noise), "a.tar.gz": tarred(noise, "w:gz"), "x.gz": gzip.compress(noise["x"])}[name]
    middle = len(content) // 3
    archive = written(tmp_path, name, content[:middle] + b"\0\0\0\0\0\0" + content[middle + 6 :])
    with pytest.raises(InputError, match="delete "):
        unpack(archive, root, {"x": ""}, progress=False)
    assert paths(root) == []


def test_another_archive_than_was_expected(tmp_path, root):
    archive = written(tmp_path, "a.zip", zipped(FILES))
    with pytest.raises(InputError, match=r"a\.zip: has no train\*\.json, no val\.json; it is another file"):
        unpack(archive, root, {"*.jpg": "", "train*.json": "", "val.json": ""}, progress=False)


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_unpacked(tmp_path, root, monkeypatch):
    archive = written(tmp_path, "a.zip", zipped(FILES))
    monkeypatch.setattr("bua.download.archives.free_space", lambda _: 4000)
    with pytest.raises(NoSpace, match=r"a\.zip: unpacking needs 6\.0 kB, of which 2\.0 kB are missing"):
        unpack(archive, root, {"VG_100K/*.jpg": ""}, progress=False)
    assert paths(root) == []
    # What is there needs no space.
    shutil.copy(written(tmp_path, "1.jpg", FILES["VG_100K/1.jpg"]), root)
    unpack(archive, root, {"VG_100K/*.jpg": ""}, progress=False)


def test_a_full_disk_is_one_line(tmp_path, root):
    archive = written(tmp_path, "a.zip", zipped(FILES))
    (root / "1.jpg.tmp").symlink_to("/dev/full")  # each write to this device fails as on a full disk
    with pytest.raises(NoSpace, match=r"1\.jpg: the disk is full") as error:
        unpack(archive, root, {"VG_100K/*.jpg": ""}, progress=False)
    assert "\n" not in str(error.value)
    assert paths(root) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path, root):
    archive = written(tmp_path, "a.zip", zipped(FILES))
    (root / "vg").write_text("a file")
    with pytest.raises(InputError, match=f"{root}/vg: cannot create this folder"):
        unpack(archive, root, {"VG_100K/*.jpg": "vg/"}, progress=False)
