import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Tests in parallel processes share the cores. If each had a thread on every core, most of the time would be lost.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import bua  # noqa: F401  imported before any test imports torch, since it sets how OpenMP's threads wait

# Each run tries the same examples, however busy the machine is. `pytest --hypothesis-profile default` tries new ones.
settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fixed")

# A shell starts a program in the background with Ctrl-C ignored. So do the programs that this one starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real and golden data, which is next to the repository and not part of it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("BUA_SHARED_DATA", default))
    if not path.is_dir():
        pytest.skip(f"there is no golden data at {path}; set BUA_SHARED_DATA to its folder")
    return path
