"""What the tests of this folder share: limits on waits, and the comparison with the CPU's results."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

PRETENDED = os.environ.get("BUA_TEST_DEVICE") == "pretended"

# The largest difference from the CPU, relative to the largest value, in fp32.
LARGEST_DIFFERENCE = 1e-4
# The least mean of the regions' cosines in bf16, and the least one of a region. Networks of a few channels, as in these
# tests, round more than large ones.
MEAN_COSINE, LEAST_COSINE = 0.9999, 0.9995


@contextlib.contextmanager
def at_most(waits: float, part: str, units: int = 1) -> Iterator[None]:
    """Fails if the block makes the host wait for the device more often than ``waits`` times a unit, such as an image.

    Only the pretended device counts.
    """
    if PRETENDED:
        from pretended_waits import waits as all_waits

        with all_waits.counted() as found:
            yield
        check_waits(found, waits, part, units)
    else:
        yield


def count_waits(function: Callable[[], object]) -> Counter:
    """Returns the waits during ``function()`` by (kind, call site). On a GPU, nothing is counted."""
    if not PRETENDED:
        function()
        return Counter()
    from pretended_waits import waits as all_waits

    with all_waits.counted() as found:
        function()
    return found


def check_waits(found: Counter, waits: float, part: str, units: int) -> None:
    """Checks the waits in ``units`` images, steps or checkpoints.

    If BUA_WAITS names a file, a line of JSON with their number, and where they are, is added to it.
    """
    from pretended_waits import table, total

    number = total(found)
    if os.environ.get("BUA_WAITS"):
        with Path(os.environ["BUA_WAITS"]).open("a") as file:
            sites = {f"{kind}, {site}": round(count / units, 2) for (kind, site), count in found.most_common()}
            line = {"part": part, "waits": round(number / units, 2), "limit": waits, "sites": sites}
            file.write(json.dumps(line) + "\n")
    if number > waits * units:
        message = f"{part}: {number / units:.1f} waits, the limit is {waits:g}; those of {units}:\n{table(found)}"
        pytest.fail(message, pytrace=False)


def check_more_waits(more: Counter, fewer: Counter, waits: float, part: str, units: int) -> None:
    """Checks by how many waits one run exceeds another, which has ``units`` fewer steps or checkpoints."""
    if PRETENDED:
        check_waits(more - fewer, waits, part, units)


def assert_same_values(found: np.ndarray, expected: np.ndarray) -> None:
    """Checks results in fp32 against those of the CPU."""
    assert found.shape == expected.shape
    if expected.size:
        assert np.abs(found - expected).max() <= LARGEST_DIFFERENCE * np.abs(expected).max()


def assert_same_direction(found: np.ndarray, expected: np.ndarray) -> None:
    """Checks results [N, D] in bf16 against those of the CPU in fp32."""
    assert found.shape == expected.shape
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (found * expected).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)
    assert cosines.mean() >= MEAN_COSINE
    assert cosines.min() >= LEAST_COSINE
