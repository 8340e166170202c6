import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from local_site import raw, refusing, sending, silent

from bua.download import fetch
from bua.download.http import file_checksum
from bua.download.space import NoSpace, readable
from bua.errors import InputError
from bua.io.files import exclusive

DATA = random.Random(0).randbytes(300_000)
SHA256 = f"sha256:{hashlib.sha256(DATA).hexdigest()}"

# A try that brings nothing is repeated at once, and few times. The time without a byte after which the connection
# counts as cut is long enough for the slowest machine, except where a test waits for it.
quick = partial(fetch, timeout=300, attempts=3, wait=0, progress=False)


def serve(site, *answers, data=DATA) -> str:
    site.files["file.bin"] = data
    site.answers["file.bin"] += answers
    return site.url + "file.bin"


def names(target) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_file_is_fetched_once(site, target):
    url = serve(site)
    assert quick(url, target, size=len(DATA), checksum=SHA256) == target
    assert target.read_bytes() == DATA
    assert quick(url, target, size=len(DATA), checksum=SHA256) == target
    assert len(site.requests) == 1
    assert names(target) == ["file.bin"]


def test_a_cut_file_goes_on_where_it_was_cut(site, target):
    url = serve(site, sending(cut=100_000), sending(cut=50_000), sending(cut=1))
    assert quick(url, target, checksum=SHA256).read_bytes() == DATA
    assert site.ranges("file.bin") == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-"]


def test_a_file_goes_on_in_the_next_call(site, target):
    url = serve(site, sending(cut=100_000), *[refusing(503)] * 3)
    with pytest.raises(InputError, match=r"503 .*100 kB are kept, and the same command goes on there"):
        quick(url, target)
    assert names(target) == ["file.bin.part", "file.bin.part.json"]
    assert quick(url, target).read_bytes() == DATA
    assert site.ranges("file.bin")[-1] == "bytes=100000-"


def test_any_number_of_cuts_is_survived_as_long_as_bytes_come(site, target):
    url = serve(site, *[sending(cut=20_000)] * 14)
    assert quick(url, target, checksum=SHA256).read_bytes() == DATA


def test_a_server_that_does_not_know_ranges_sends_the_file_again(site, target):
    url = serve(site, sending(cut=100_000), sending(ranges=False))
    assert quick(url, target, checksum=SHA256).read_bytes() == DATA
    assert site.ranges("file.bin") == [None, "bytes=100000-"]


def test_a_server_that_always_cuts_at_the_same_place_is_given_up(site, target):
    url = serve(site, *[sending(cut=100_000, ranges=False)] * 9)
    with pytest.raises(InputError, match="cut after 100000 of 300000 bytes"):
        quick(url, target)
    assert len(site.requests) == 4


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_validator_a_file_starts_anew(site, target, tag):
    url = serve(site, sending(cut=100_000, tag=tag), sending(tag=tag))
    assert quick(url, target).read_bytes() == DATA
    assert site.ranges("file.bin") == [None, None]


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("size", [300_000, 310_000])
def test_parts_of_two_versions_are_not_joined(site, target, if_range, size):
    url = serve(site, sending(cut=100_000), *[refusing(503)] * 3)
    with pytest.raises(InputError):
        quick(url, target)
    changed = random.Random(1).randbytes(size)
    serve(site, sending(if_range=if_range), data=changed)
    assert quick(url, target).read_bytes() == changed


def test_parts_that_a_server_joined_wrongly_are_fetched_anew(site, target):
    url = serve(site, sending(cut=100_000, tag='"1"'), *[refusing(503)] * 3)
    with pytest.raises(InputError):
        quick(url, target)
    changed = random.Random(1).randbytes(len(DATA))
    serve(site, sending(tag='"1"'), sending(tag='"1"'), data=changed)
    assert quick(url, target, checksum=f"md5:{hashlib.md5(changed).hexdigest()}").read_bytes() == changed
    assert site.ranges("file.bin")[-2:] == ["bytes=100000-", None]


def test_a_server_that_does_not_answer_is_tried_again(site, target):
    url = serve(site, silent(site.released), sending(cut=10_000, kept_waiting=site.released))
    assert quick(url, target, timeout=0.5, attempts=50).read_bytes() == DATA
    assert len(site.requests) >= 3


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_in_trouble_is_tried_again_for_a_while(site, target, code):
    url = serve(site, refusing(code), refusing(code))
    assert quick(url, target).read_bytes() == DATA
    url = serve(site, *[refusing(code)] * 9)
    target.unlink()
    with pytest.raises(InputError, match=rf"file\.bin: cannot be fetched \({code} .*\); try again later"):
        quick(url, target)
    assert len(site.requests) == 3 + 3


def test_what_a_server_says_cannot_act_on_the_terminal(site, target, caplog):
    caplog.set_level(logging.INFO)
    url = serve(site, raw(b"HTTP/1.1 500 \x1b[31mbad\x07\r\nContent-Length: 0\r\n\r\n"))
    assert quick(url, target).read_bytes() == DATA
    assert r"file.bin: 500 \x1b[31mbad\x07; trying again" in caplog.text
    assert "\x1b" not in caplog.text
    assert "HTTP Request" not in caplog.text


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_refusal_is_final(site, target, code):
    url = serve(site, refusing(code))
    with pytest.raises(InputError, match=rf"file\.bin: the server refuses \({code} .*another place"):
        quick(url, target)
    assert len(site.requests) == 1
    assert names(target) == []


def test_nobody_listens(tmp_path):
    with pytest.raises(InputError, match=r"cannot be fetched .*refused"):
        quick("http://127.0.0.1:1/file.bin", tmp_path / "file.bin")


def test_another_size_than_the_published_one_is_refused_before_the_file_arrives(site, target):
    url = serve(site)
    with pytest.raises(InputError, match="has 300000 bytes according to the server, but the published file has 300001"):
        quick(url, target, size=300_001)
    assert names(target) == []


def test_another_page_in_between_does_not_cost_what_arrived(site, target):
    login = sending(length=5, cut=5, ranges=False, tag=None)  # as the network of a hotel answers
    url = serve(site, sending(cut=100_000), login)
    with pytest.raises(InputError, match="has 5 bytes according to the server"):
        quick(url, target, size=len(DATA))
    assert quick(url, target, size=len(DATA)).read_bytes() == DATA
    assert site.ranges("file.bin")[-1] == "bytes=100000-"


def test_a_size_that_is_claimed_too_large_is_noticed(site, target):
    url = serve(site, *[sending(length=310_000)] * 20)
    with pytest.raises(InputError, match="cannot be fetched"):
        quick(url, target)
    assert not target.exists()


def test_a_size_that_is_claimed_too_small_is_noticed_by_the_checksum(site, target):
    url = serve(site, *[sending(length=290_000)] * 20)
    with pytest.raises(InputError, match="not the published file"):
        quick(url, target, checksum=SHA256)
    assert names(target) == []


def test_another_file_than_the_published_one_is_deleted(site, target):
    url = serve(site, data=b"<html>please log in</html>")
    with pytest.raises(InputError, match=rf"not the published file: its checksum is not {SHA256}; get that file"):
        quick(url, target, checksum=SHA256)
    assert names(target) == []
    assert len(site.requests) == 1


def test_a_truncated_file_that_is_there_is_replaced(site, target, caplog):
    target.parent.mkdir()
    target.write_bytes(DATA[:1000])
    assert quick(serve(site), target, size=len(DATA)).read_bytes() == DATA
    assert "1000 bytes instead of 300000" in caplog.text


def test_a_file_that_arrived_before_its_process_was_killed_is_only_checked(site, target):
    url = serve(site, sending(cut=200_000), *[refusing(503)] * 3)
    with pytest.raises(InputError):
        quick(url, target)
    target.with_name("file.bin.part").write_bytes(DATA)
    assert quick(url, target, checksum=SHA256).read_bytes() == DATA
    assert len(site.requests) == 4


def test_a_part_that_is_too_long_is_thrown_away(site, target):
    url = serve(site, sending(cut=200_000), *[refusing(503)] * 3)
    with pytest.raises(InputError):
        quick(url, target)
    target.with_name("file.bin.part").write_bytes(DATA + b"more")
    assert quick(url, target, checksum=SHA256).read_bytes() == DATA


def test_ctrl_c_keeps_what_arrived(site, target):
    url = serve(site, sending(cut=100_000, kept_waiting=site.released))
    code = "import sys; from bua.download import fetch; fetch(*sys.argv[1:], timeout=600)"
    process = subprocess.Popen([sys.executable, "-c", code, url, str(target)], stderr=subprocess.PIPE)
    part = target.with_name("file.bin.part")
    while process.poll() is None and not (part.exists() and part.stat().st_size == 100_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate()[1]
    assert quick(url, target, checksum=SHA256).read_bytes() == DATA
    assert site.ranges("file.bin") == [None, "bytes=100000-"]


def test_named_pipes_in_place_of_the_beginning_of_a_file_are_replaced(site, target):
    target.parent.mkdir()
    for suffix in ("part", "part.json"):
        os.mkfifo(target.with_name(f"file.bin.{suffix}"))
    assert quick(serve(site), target).read_bytes() == DATA
    assert names(target) == ["file.bin"]


def test_a_full_disk_is_one_line(site, target):
    url = serve(site)
    target.parent.mkdir()
    # Each write to this device fails as on a full disk. A first try noted that it may go on.
    target.with_name("file.bin.part.json").write_text(f'{{"url": "{url}", "validator": "x", "size": {len(DATA)}}}')
    target.with_name("file.bin.part").symlink_to("/dev/full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        with pytest.raises(NoSpace, match=r"file\.bin\.part: the disk is full; free some space") as error:
            quick(url, target)
    assert "\n" not in str(error.value)


def test_a_disk_that_is_too_small_is_noticed_before_the_file_arrives(site, target, monkeypatch):
    monkeypatch.setattr("bua.download.http.free_space", lambda _: 200_000)
    with pytest.raises(NoSpace, match=r"100 kB of disk space are missing"):
        quick(serve(site), target, size=len(DATA))
    with pytest.raises(InputError, match=r"100 kB of disk space are missing") as error:
        quick(serve(site), target)
    # Only the server says how large the file is. So it alone fails, and others are tried.
    assert not isinstance(error.value, NoSpace)
    assert not target.with_name("file.bin.part").exists()


def test_two_processes_do_not_fetch_the_same_file(site, target):
    target.parent.mkdir()
    with exclusive(target), pytest.raises(InputError, match="is writing to it"):
        quick(serve(site), target)


def test_checksums(tmp_path):
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    assert file_checksum(path, "md5") == "b1946ac92492d2347c6235b4d2611184"
    # `git hash-object hello`
    assert file_checksum(path, "git") == "ce013625030ba8dba906f756967f9e9ca394464a"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (99_960, "100 kB"),
        (999_999, "1.0 MB"),
        (13.5e9, "13.5 GB"),
    ],
)
def test_sizes_are_readable(size, text):
    assert readable(size) == text
