"""The tests of this folder run on a GPU, or on the pretended one, which replaces much of PyTorch in its process.

BUA_TEST_DEVICE says which: "cuda" (``make test-gpu``) or "pretended". Without it, each file is one test, which runs the
file on the pretended device in a new process.
"""

import os
import subprocess
import sys

import pytest
import torch

CHOICES = ("pretended", "cuda")
CHOSEN = os.environ.get("BUA_TEST_DEVICE")

if CHOSEN == "pretended":
    import pretended_install

    pretended_install.install()


def pytest_configure(config):
    config.addinivalue_line("markers", "refused: the pretended device refuses something in this test")
    if CHOSEN is not None and CHOSEN not in CHOICES:
        raise pytest.UsageError(f"BUA_TEST_DEVICE is {CHOSEN!r}; use one of {CHOICES}")
    if CHOSEN == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("BUA_TEST_DEVICE=cuda: no GPU was found")


def pytest_pycollect_makemodule(module_path, parent):
    return None if CHOSEN else FileInNewProcess.from_parent(parent, path=module_path)


class FileInNewProcess(pytest.File):
    """A file of tests that is run in a process of its own."""

    def collect(self):
        yield NewProcess.from_parent(self, name="on_the_pretended_device")


class NewProcess(pytest.Item):
    def runtest(self):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(self.path)]
        environment = {**os.environ, "BUA_TEST_DEVICE": "pretended"}
        done = subprocess.run(command, env=environment, cwd=self.config.rootpath, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)

    def reportinfo(self):
        return self.path, None, f"{self.path.name} on the pretended device"


@pytest.fixture(autouse=True)
def nothing_is_refused(request):
    """Fails a test in which the pretended device refused something, even if the project caught the error."""
    if CHOSEN != "pretended" or request.node.get_closest_marker("refused"):
        yield
        return
    from pretended_waits import waits

    waits.errors.clear()
    yield
    assert not waits.errors, "\n".join(waits.errors)
