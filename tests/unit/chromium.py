"""Chromium without a window, driven by its own protocol over a pipe, and axe-core, which finds what keeps people out.

https://chromedevtools.github.io/devtools-protocol/: JSON messages, each followed by NUL, on file descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import pytest

AXE = Path(__file__).with_name("axe.txt")
"""The package that carries axe-core: pip's requirement of it. It is only unpacked: what else it needs is large."""


class Chromium:
    """A running browser with one page, and what that page did."""

    def __init__(self, send: IO[bytes], receive: IO[bytes]) -> None:
        self._send, self._receive = send, receive
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._unread: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._unread.append(answer)

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self._unread.clear()
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self._unread):
            self._unread.append(self._next())

    def show(self, width: int, height: int, scheme: str) -> None:
        """Set the size of the window, and whether the reader prefers `light` or `dark`."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression, awaited. The page's own policy does not apply to it."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def picture(self) -> bytes:
        """Return the whole page as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def paper(self) -> bytes:
        """Return the page as a PDF."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)["data"])

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "the browser has ended"
            data += byte
        message: dict[str, Any] = json.loads(data)
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(params))
        return message


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """Start Chromium with its files in `profile`; the test is skipped where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium here (apt-get install chromium)")
    to_browser, from_browser = os.pipe(), os.pipe()

    def pipes() -> None:
        # From high numbers, as a pipe may be on 3 or 4 itself.
        for fd, end in ((103, to_browser[0]), (104, from_browser[1])):
            os.dup2(end, fd)
        os.dup2(103, 3)
        os.dup2(104, 4)

    flags = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run", "--disable-gpu"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    flags += ["--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars"]
    environment = {**os.environ, "HOME": str(profile), "TZ": "UTC"}
    with (profile / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *flags], stdout=log, stderr=log, env=environment, close_fds=False, preexec_fn=pipes
        )
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        with open(to_browser[1], "wb") as send, open(from_browser[0], "rb") as receive:
            yield Chromium(send, receive)
    finally:
        process.terminate()
        process.wait()


def axe_core() -> str:
    """Return axe-core's script, downloaded once per machine; the test is skipped where that is impossible."""
    store = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rigup-tests"
    kept = store / hashlib.sha256(AXE.read_bytes()).hexdigest()[:16]
    if not kept.is_dir():
        beside = store / f"{kept.name}.{os.getpid()}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-d", str(beside)]
        done = subprocess.run([*pip, "-r", str(AXE)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"axe-core cannot be downloaded: {done.stderr.strip()[-200:]}")
        try:
            beside.rename(kept)
        except OSError:
            # Another test was faster.
            shutil.rmtree(beside)
    (wheel,) = kept.glob("*.whl")
    return ZipFile(wheel).read("axe_playwright_python/axe.min.js").decode()
