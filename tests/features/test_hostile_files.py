"""Files of features that are damaged, or that claim more than they hold."""

import logging
import multiprocessing
import resource
import shutil
import struct
import zipfile
from contextlib import suppress

import h5py
import lmdb
import numpy as np
import pytest
from feature_files import REGION_FORMATS
from feature_samples import assert_same, sample

from bua.commands import main
from bua.errors import InputError
from bua.features import open_features, open_writer
from bua.features.hdf5_files import write_hdf5
from bua.features.lmdb import LmdbWriter
from bua.features.settings import read_settings
from bua.features.store import FORMATS

BOMB = 3 << 30


def write(path, format, images=4, **options):
    with open_writer(path, format) as writer:
        for image_id in range(images):
            writer.append(sample(image_id, seed=image_id, **options))
        writer.finish()
    return path


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An LMDB with several levels of pages, a list of free pages, and long and short values."""
    path = write(tmp_path_factory.mktemp("lmdb") / "x", "vilbert-lmdb", 150, count=20, dim=40)
    with open_writer(path, "vilbert-lmdb") as writer:
        for image_id in range(0, 150, 3):
            writer.append(sample(image_id, count=1))
        writer.finish()
    return path


def read_and_write(path):
    with suppress(InputError):
        list(open_features(path).values())
    with suppress(InputError):
        writer = LmdbWriter(path)
        writer.append(sample(999))
        writer.close()


def test_damaged_databases_do_not_kill_the_process(database, tmp_path):
    def damage_many():
        whole = (database / "data.mdb").read_bytes()
        rng, work = np.random.default_rng(0), tmp_path / "work"
        for case in range(30):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            content = bytearray(whole[: rng.integers(len(whole))] if case % 2 else whole)
            if not case % 2:
                page = int(rng.integers(len(whole) // 4096)) * 4096
                for place in rng.integers(0, 120, 4):
                    content[page + place] = rng.integers(256)
            (work / "data.mdb").write_bytes(content)
            read_and_write(work)

    process = multiprocessing.get_context("fork").Process(target=damage_many)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_truncated_database_is_refused_for_reading_and_writing(database, tmp_path):
    shutil.copytree(database, tmp_path / "x")
    with open(tmp_path / "x" / "data.mdb", "r+b") as file:
        file.truncate(200_000)
    for use in (open_features, LmdbWriter):
        with pytest.raises(InputError, match=r"is truncated: it has 200000 of [0-9]+ bytes"):
            use(tmp_path / "x")


def test_a_database_may_end_before_pages_that_were_freed_at_once(tmp_path):
    environment = lmdb.open(str(tmp_path / "x"), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for key in range(300):
            transaction.put(b"%d" % key, b"x" * 3000)
        for key in range(300):
            transaction.delete(b"%d" % key)
    environment.close()
    assert len(open_features(tmp_path / "x")) == 0


def test_a_full_disk_is_one_error(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        with open_writer(tmp_path / "x", "vilbert-lmdb") as writer:
            writer.append(sample(1, dim=20_000))
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            writer.sync()

    try:
        with pytest.raises(OSError, match="mdb_txn_commit") as raised:
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(raised.value.__cause__, lmdb.Error)


def test_converting_an_index_that_lost_records_is_no_success(tmp_path, capsys):
    path = write(tmp_path / "x", "flat")
    assert main(["convert-features", str(path), str(tmp_path / "whole.tsv"), "--format", "tsv"]) == 0
    index = path / "index.bin"
    index.write_bytes(index.read_bytes()[:112])
    assert main(["convert-features", str(path), str(tmp_path / "half.tsv"), "--format", "tsv"]) == 1
    assert f"error: {path}: its index.bin has lost 2 images; copy it again\n" in capsys.readouterr().err
    assert len(open_features(tmp_path / "half.tsv")) == 2


def test_records_that_the_index_lost_are_told(tmp_path, caplog):
    path = write(tmp_path / "x", "flat")
    index = path / "index.bin"
    index.write_bytes(index.read_bytes()[:112])
    store = open_features(path)
    assert list(store) == [0, 1]
    assert "has lost the last 2 records of index.bin" in caplog.text
    assert list(store.problems()) == ["index.bin: has lost its last 2 records, whose images are left out"]
    caplog.clear()
    with open_writer(path, "flat") as writer:
        assert writer.done == {0, 1}
    assert "has lost the last 2 records of index.bin, whose images are written again" in caplog.text


def test_damaged_tables_of_ids_are_made_again(tmp_path, caplog):
    flat, tsv = write(tmp_path / "flat", "flat"), write(tmp_path / "x.tsv", "tsv")
    open_features(tsv)
    lookup, index = flat / "lookup.npy", tmp_path / "x.tsv.index"
    for path, table in ((flat, lookup), (tsv, index)):
        whole = table.read_bytes()
        for content in (b"broken", whole[:-8], whole[:-20] + bytes(20)):
            table.write_bytes(content)
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                store = open_features(path)
            assert_same(
                store[3],
                sample(3, seed=3),
                () if path == flat else ("object_ids", "object_scores", "attribute_ids", "attribute_scores"),
            )
            assert len(caplog.records) == 1
            assert table.name in caplog.text


@pytest.mark.parametrize("format", ["hdf5", "ban-hdf5"])
def test_hdf5_that_claims_more_than_it_has(tmp_path, format):
    path = tmp_path / "x.hdf5"
    write_hdf5(path, {1: sample(1), 2: sample(2)}, format)
    many = (2, BOMB // 4096) if format == "hdf5" else (BOMB // 4096,)
    with h5py.File(path, "r+") as file:
        for name in (
            "image_bb",
            "image_features",
            "spatial_features",
            "objects_id",
            "objects_conf",
            "attrs_id",
            "attrs_conf",
        ):
            width = {"image_bb": (4,), "image_features": (1024,), "spatial_features": (6,)}.get(name, ())
            del file[name]
            file.create_dataset(name, many + width, "f4", chunks=(1,) * len(many + width))
        if format == "ban-hdf5":
            file["pos_boxes"][1] = 0, many[0]
    assert path.stat().st_size < 20_000
    with pytest.raises(InputError, match=r"would take .* bytes of memory, but has 0 bytes in the file"):
        open_features(path)[2]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("objects_id", np.zeros((2, 2), int), r"objects_id has the shape \(2, 2\) instead of \(2, 3\)"),
        ("image_id", np.array([b"7", b"7"]), "image 7 is in the rows 0 and 1"),
        ("image_w", np.array([1.5, np.inf]), "image_w has values of the type float64 instead of integers"),
    ],
)
def test_hdf5_with_wrong_data_sets_is_refused(tmp_path, name, value, message):
    path = tmp_path / "x.hdf5"
    write_hdf5(path, {1: sample(1), 2: sample(2)})
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = value
    with pytest.raises(InputError, match=message):
        open_features(path)


def test_hdf5_that_reads_other_files_is_refused(tmp_path):
    path = tmp_path / "x.hdf5"
    write_hdf5(path, {1: sample(1), 2: sample(2)})
    (tmp_path / "secret").write_bytes(bytes(1000))
    with h5py.File(path, "r+") as file:
        del file["image_w"]
        file.create_dataset("image_w", (2,), "i4", external=[(str(tmp_path / "secret"), 0, 8)])
    with pytest.raises(InputError, match="image_w takes its values from other files"):
        open_features(path)


def test_the_number_of_boxes_in_hdf5_is_that_of_the_settings(tmp_path):
    about = {"settings": {"min_boxes": 6, "max_boxes": 6, "grid": False, "boxes": None}}
    with open_writer(tmp_path / "x.hdf5", "hdf5", about) as writer:
        for count in (0, 3):
            with pytest.raises(InputError, match=f"has {count} boxes, and hdf5 needs 6 in each image"):
                writer.append(sample(1, count=count))
        writer.append(sample(2, count=6))
        writer.finish()
    assert list(open_features(tmp_path / "x.hdf5")) == [2]


def zipped(path, compression=zipfile.ZIP_STORED, header=None, **changes):
    """Writes an npz file, in which the bytes of arrays may follow another header."""
    arrays = {"x": np.ones((2, 5), "f4"), "bbox": np.ones((2, 4), "f4"), "image_w": np.array(4), "image_h": np.array(3)}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in (arrays | changes).items():
            with archive.open(f"{name}.npy", "w") as member:
                if name == "x" and header:
                    np.lib.format.write_array_header_1_0(member, header)
                    member.write(bytes(40))
                else:
                    np.lib.format.write_array(member, np.asarray(value))


def patched(path, place, value):
    content = bytearray(path.read_bytes())
    for magic in (b"PK\x01\x02", b"PK\x03\x04"):
        at = content.index(magic) + place + (2 if magic == b"PK\x01\x02" else 0)
        content[at : at + len(value)] = value
    path.write_bytes(content)


def patched_bytes(path, place, value):
    content = bytearray(path.read_bytes())
    content[place : place + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: zipped(path, header={"descr": "<f4", "fortran_order": False, "shape": (2**40, 5)}), "claims"),
        (lambda path: zipped(path, header={"descr": "<f4", "fortran_order": False, "shape": (-1, 5)}), "claims"),
        (lambda path: zipped(path, image_w=np.inf), "cannot convert float infinity"),
        (lambda path: zipped(path, x=np.ones((2, 5), "c8")), "1.npz.*x has values of the type complex64"),
        (lambda path: zipped(path, x=np.full((2, 5), "1")), "1.npz.*x has values of the type <U1"),
        (lambda path: zipped(path, x=np.ones((2, 5), bool)), "1.npz.*x has values of the type bool"),
        (
            lambda path: zipped(path, bbox=np.full((2, 4), "2020-01-01", "M8[D]")),
            "bbox has values of the type datetime64",
        ),
        (lambda path: zipped(path, num_bbox=np.array(4)), "1.npz: num_bbox is 4, but bbox has 2 boxes"),
        (lambda path: zipped(path, num_bbox=np.zeros(3)), "1.npz: num_bbox is .*, but bbox has 2 boxes"),
        (lambda path: zipped(path, image_w=2**40), "width: is not a number of pixels"),
        (lambda path: zipped(path, zipfile.ZIP_DEFLATED, x=np.zeros((2, 5000), "f4")), "would take"),
        (lambda path: (zipped(path), patched(path, 6, b"\x01\x00")), "encrypted"),
        (lambda path: (zipped(path), patched(path, 8, struct.pack("<H", 97))), "compression"),
        (
            lambda path: (zipped(path), path.write_bytes(path.read_bytes().replace(b"\x80?\x00", b"\x81?\x00", 1))),
            "CRC",
        ),
        (lambda path: (zipped(path, zipfile.ZIP_DEFLATED), patched_bytes(path, 35, b"\xff\xff")), "decompressing"),
    ],
)
def test_hostile_npz_files_are_one_line(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr("bua.features.checks.FREE_BYTES", 4000)
    change(tmp_path / "1.npz")
    with pytest.raises(InputError, match=message) as raised:
        open_features(tmp_path)[1]
    assert "1" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("format", ["npz", "mmf"])
def test_numbers_outside_of_float32_are_refused_at_writing(tmp_path, format):
    write(tmp_path / "x", format, 1)
    if format == "npz":
        zipped(tmp_path / "x" / "0.npz", x=np.full((2, 5), 1e300))
    else:
        np.save(tmp_path / "x" / "0.npy", np.full((3, 5), 1e300))
    with open_writer(tmp_path / "x.tsv", "tsv") as writer, pytest.raises(InputError, match="numbers are not finite"):
        writer.append(open_features(tmp_path / "x")[0])


@pytest.mark.parametrize(
    "value", [float("inf"), 2**40, 10**5000, "9" * 5000, None], ids=["infinite", "large", "long", "text", "none"]
)
def test_hostile_sizes_of_mmf_are_one_line(tmp_path, value):
    write(tmp_path / "x", "mmf", 1)
    info = np.load(tmp_path / "x" / "0_info.npy", allow_pickle=True).item()
    np.save(tmp_path / "x" / "0_info.npy", np.array(info | {"image_width": value}, dtype=object))
    with pytest.raises(InputError, match="x") as raised:
        open_features(tmp_path / "x")[0]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["[1]", "7", "[" * 100_000, "{"])
def test_settings_that_are_no_object_are_one_line(tmp_path, content):
    path = write(tmp_path / "x.tsv", "tsv", 1)
    (tmp_path / "x.tsv.meta.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.tsv\.meta\.json"):
        read_settings(path)


def test_every_format_is_tested():
    assert set(REGION_FORMATS) == set(FORMATS) - {"grid-pth"}
