"""Headless Chromium, driven through the DevTools protocol over a pipe."""

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
# The machine may be busy with other work.
PATIENCE = 300


class Browser:
    """A page in a browser.

    Attributes:
        complaints: What the console shows as an error: exceptions, calls of console.error, and failed requests.
        requests: Addresses of all requests.
    """

    def __init__(self, profile: Path):
        if CHROMIUM is None:
            pytest.skip("no Chromium on the PATH")
        # Chromium reads commands from file descriptor 3 and writes to 4. Ours are higher, so that none of them is lost
        # when they are copied there.
        (read, self._commands), (self._answers, write) = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (read, write)]

        def connect() -> None:
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        self._process = subprocess.Popen(
            [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=connect,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (read, write, *theirs):
            os.close(descriptor)
        self._numbers = itertools.count(1)
        self._received = b""
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._session = self.call("Target.attachToTarget", targetId=self._first_page(), flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")
        # Otherwise no element of a page without a window has the focus.
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def close(self) -> None:
        os.close(self._commands)
        os.close(self._answers)
        self._process.terminate()
        self._process.wait(timeout=PATIENCE)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Returns the result of a command."""
        number = next(self._numbers)
        command: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str, act: Callable[[], None] = lambda: None) -> None:
        """Waits until an expression is true. ``act`` is called before each look."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            act()
            if self.evaluate(f"Boolean({expression})"):
                return
            time.sleep(0.1)
        page = self.evaluate("document.body.innerText")
        raise AssertionError(f"{expression} was not true in {PATIENCE} s; {self.complaints}; the page: {page}")

    def choose_file(self, selector: str, path: Path) -> None:
        """Gives a file to an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def write(self, selector: str, text: str) -> None:
        """Replaces the text in a field, as typing does."""
        self.evaluate(
            f"(field => {{ field.focus(); field.select(); }})(document.querySelector({json.dumps(selector)}))"
        )
        self.call("Input.insertText", text=text)

    def point_at(self, selector: str) -> None:
        """Moves the mouse to the middle of an element."""
        middle = "(box => [box.x + box.width / 2, box.y + box.height / 2])(one.getBoundingClientRect())"
        x, y = self.evaluate(
            f"(one => {{ one.scrollIntoView({{block: 'center'}}); return {middle}; }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        """Writes an image of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {**size, "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _first_page(self) -> str:
        """Returns the id of the page that the browser starts with, as soon as it is there."""
        end = time.monotonic() + PATIENCE
        while not (pages := [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]):
            assert time.monotonic() < end, "Chromium opens no page"
            time.sleep(0.1)
        return pages[0]["targetId"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            received = os.read(self._answers, 1 << 20)
            assert received, "Chromium has stopped"
            self._received += received
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def _note(self, event: str | None, parameters: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.complaints.append(" ".join(str(one.get("value", one)) for one in parameters["args"]))
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif event == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(f"{parameters['entry']['text']} ({parameters['entry'].get('url')})")
        elif event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
