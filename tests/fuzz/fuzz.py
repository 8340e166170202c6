"""Runs the fuzzers with new random seeds for as long as one likes, and keeps the cases that fail.

    make fuzz MINUTES=60
    python tests/fuzz/fuzz.py --minutes 60 --only features,images --output output/fuzz
    python tests/fuzz/fuzz.py --replay output/fuzz/read-tsv-123

Cases run in child processes, so that a crash, a hang or the use of much memory is a finding too. Ctrl-C ends the run
with the table of cases. Exit code: 0 if nothing was found, 1 if something was.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from cases import SCRATCH, Finding, make_case, read_files, run_case, write_files
from targets import KINDS, TARGETS

BATCH_SECONDS = 5.0  # a child runs the cases of one target for so long
EXAMPLES_KEPT = 3  # of findings at the same place
SHOW_EVERY_SECONDS = 10.0


class Ended(NamedTuple):
    """How a case ended: its outcome, or the reason and the place of a finding."""

    seed: int
    outcome: str
    reason: str = ""
    place: str = ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="how long to run (%(default)s)")
    parser.add_argument(
        "--only", help=f"kinds or targets, divided by commas: {', '.join(KINDS)}, or {', '.join(TARGETS)}"
    )
    parser.add_argument("--output", type=Path, default=Path("output/fuzz"), help="folder for findings (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="a case that takes longer is a hang (%(default)s)")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="run a case that was kept once more")
    args = parser.parse_args(argv)
    if args.replay:
        return replay(args.replay)
    wanted = set((args.only or ",".join(KINDS)).split(","))
    names = [name for name, target in TARGETS.items() if wanted & {name, target.kind}]
    if unknown := wanted - set(TARGETS) - set(KINDS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: no such kind or target")
    with tempfile.TemporaryDirectory(prefix="bua_fuzz_", dir=SCRATCH) as scratch:
        findings = Fuzzing(args.output, args.seconds, scratch).run(names, args.minutes * 60)
    return 1 if findings else 0


class Fuzzing:
    """Runs batches of cases in children, counts their outcomes, and keeps what was found.

    Args:
        output: Folder for the findings; created when there is one.
        limit: Seconds after which a case counts as a hang.
        scratch: Folder for the folders of cases, so that nothing is left of those that crash.
    """

    def __init__(self, output: Path, limit: float, scratch: str):
        self.output, self.limit, self.scratch = output, limit, scratch
        self.outcomes: dict[str, Counter[str]] = {}
        self.places: Counter[tuple[str, str]] = Counter()

    def run(self, names: list[str], seconds: float) -> int:
        """Runs the targets in turn, at least one batch of cases, and returns the number of findings."""
        begin = shown = time.monotonic()
        try:
            for name in names:
                self.outcomes[name] = Counter()
                make_case(TARGETS[name], 0)  # makes the undamaged files once, for all children
            while True:
                name = min(names, key=lambda name: (self.outcomes[name].total(), name))
                name = random.choice([name, random.choice(names)])
                for ended in self._batch(name):
                    self._count(name, ended)
                    if time.monotonic() - shown > SHOW_EVERY_SECONDS:
                        shown = time.monotonic()
                        self._show_progress(shown - begin)
                if time.monotonic() - begin >= seconds:
                    break
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
        self._show_table(time.monotonic() - begin)
        return sum(counts["found"] for counts in self.outcomes.values())

    def _batch(self, name: str) -> Iterator[Ended]:
        """Runs cases of a target in a child, and yields how they ended."""
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=_run_batch, args=(name, random.getrandbits(63), self.scratch, sender), daemon=True
        )
        child.start()
        sender.close()
        begun: int | None = None
        try:
            while receiver.poll(self.limit):
                begun, ended = receiver.recv()
                if ended is not None:
                    yield ended
                    begun = None
            if begun is not None:
                yield Ended(begun, "found", f"ran longer than {self.limit:g} s", "hang")
        except EOFError:
            child.join()
            if begun is not None:
                yield Ended(begun, "found", f"ended its process: {_exit(child.exitcode)}", "crash")
        finally:
            child.kill()
            child.join()
            for left in Path(self.scratch).iterdir():
                shutil.rmtree(left, ignore_errors=True)

    def _count(self, name: str, ended: Ended) -> None:
        self.outcomes[name][ended.outcome] += 1
        if ended.outcome != "found":
            return
        self.places[name, ended.place] += 1
        if self.places[name, ended.place] > EXAMPLES_KEPT:
            return
        folder = self.output / f"{name}-{ended.seed}"
        write_files(folder / "case", make_case(TARGETS[name], ended.seed)[0])
        (folder / "finding.json").write_text(json.dumps({"target": name, **ended._asdict()}, indent=1) + "\n")
        print(f"\n{folder}: {ended.reason.splitlines()[-1]:.200} ({ended.place})", file=sys.stderr)

    def _show_progress(self, seconds: float) -> None:
        total = sum(counts.total() for counts in self.outcomes.values())
        found = sum(counts["found"] for counts in self.outcomes.values())
        line = f"{seconds / 60:.1f} minutes: {total:,} cases, {found:,} findings at {len(self.places)} places"
        print(f"\r{line}", end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)

    def _show_table(self, seconds: float) -> None:
        outcomes = sorted({outcome for counts in self.outcomes.values() for outcome in counts} - {"found"})
        columns = ["cases", "found", *outcomes]
        print(f"{'':28}" + "".join(f"{column:>11}" for column in columns))
        kinds = {kind: Counter[str]() for kind in KINDS}
        for name, counts in self.outcomes.items():
            kinds[TARGETS[name].kind] += counts
        for name, counts in [*self.outcomes.items(), *((kind, counts) for kind, counts in kinds.items() if counts)]:
            counts = counts + Counter({"cases": counts.total()})
            print(f"{name:28}" + "".join(f"{counts[column]:11,}" for column in columns))
        self._show_progress(seconds)
        print(file=sys.stderr)
        for (name, place), count in self.places.most_common():
            print(f"{count:7,} x {name}: {place}")


def replay(folder: Path) -> int:
    """Runs a case that was kept, in this process, and prints how it ends."""
    finding = json.loads((folder / "finding.json").read_text())
    target = TARGETS[finding["target"]]
    files = read_files(folder / "case")
    try:
        print(run_case(target, files, make_case(target, finding["seed"])[1]))
    except Finding:
        traceback.print_exc()
        return 1
    return 0


def _run_batch(name: str, seed: int, scratch: str, sender: Connection) -> None:
    """Runs cases of a target until the time of a batch is over. The random seed is sent before each case, and its
    outcome after it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders write to it
    end = time.monotonic() + BATCH_SECONDS
    while time.monotonic() < end:
        sender.send((seed, None))
        try:
            ended = Ended(seed, run_case(TARGETS[name], *make_case(TARGETS[name], seed), scratch))
        except Finding as finding:
            text = "".join(traceback.format_exception(finding.__cause__ or finding))
            ended = Ended(seed, "found", text + str(finding), _place(finding))
        sender.send((seed, ended))
        seed += 1


def _place(finding: Finding) -> str:
    """Returns the kind of a finding and the last line of bua that it passed, so that equal findings are kept once."""
    error = finding.__cause__
    if error is None:
        return re.sub(r"[0-9]+|'.*?'|\".*?\"", "_", str(finding))[:80]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}bua{os.sep}" in frame.filename]
    where = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def _exit(code: int | None) -> str:
    return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name


if __name__ == "__main__":
    sys.exit(main())
