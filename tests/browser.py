"""A headless Chromium, driven through its DevTools protocol: opens pages, evaluates expressions, keeps the errors."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import websocket

SECONDS = 240.0  # for one answer: a page takes a second on an idle machine, and CI's cores are shared
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --disable-renderer-backgrounding "
    "--remote-debugging-port=0 --remote-allow-origins=*"
).split()


def chromium() -> str:
    """The path of Chromium or Chrome; where there is none the test is skipped, or fails where CI requires a browser."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    if found := next((path for name in names if (path := shutil.which(name))), None):
        return found
    if os.environ.get("RLHFLOW_REQUIRE_BROWSER") == "1":
        pytest.fail("RLHFLOW_REQUIRE_BROWSER=1 but there is no chromium on the PATH")
    pytest.skip("no chromium on the PATH (Debian: apt-get install chromium)")


class Browser:
    """One page of a running Chromium; `errors` and `requests` hold what happened since they were last emptied."""

    def __init__(self, address: str) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._socket = websocket.create_connection(address, timeout=SECONDS, suppress_origin=True)
        self._sent = 0
        self._loaded = False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; events that arrive before it are kept."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while (message := self._receive()).get("id") != self._sent:
            pass
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def open(self, url: str) -> None:
        """Open a page and wait until all of it is there, formulas too."""
        self._loaded = False
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        while not self._loaded:
            self._receive()
        self.run("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => true) : true")

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + SECONDS
        while not (value := self.run(expression)):
            assert time.monotonic() < end, f"after {SECONDS:.0f} s still not true: {expression}"
            time.sleep(0.05)
        return value

    def resize(self, width: int, height: int = 900) -> None:
        """Show the page in a window of this size, in CSS pixels; below 500 as a phone does."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv())
        method, found = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(found["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "assert"):
            self.errors.append(str(found["args"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.errors.append(f"{found['entry']['text']} {found['entry'].get('url', '')}")
        return message


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A Chromium with a profile of its own, ended on the way out."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium(), *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, **quiet, start_new_session=True)
        try:
            port = _port(Path(profile, "DevToolsActivePort"), process.poll)
            with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=SECONDS) as answer:
                page = next(each for each in json.load(answer) if each["type"] == "page")
            yield Browser(page["webSocketDebuggerUrl"])
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # Debian's chromium is a shell script, and the browser its child
            process.wait(SECONDS)


def _port(file: Path, ended: Callable[[], int | None]) -> str:
    end = time.monotonic() + SECONDS
    while not (file.is_file() and (lines := file.read_text().splitlines())):
        assert ended() is None, f"chromium ended with status {ended()} before it listened"
        assert time.monotonic() < end, f"chromium did not listen within {SECONDS:.0f} s"
        time.sleep(0.1)
    return lines[0]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """The address of a web server on loopback that serves a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
