"""Pages in a real browser without a window."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str:
    """Return the path of a Chromium; the test is skipped if there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


def page_in_browser(url: str, profile: Path) -> str:
    """Return the elements of a page after 30 seconds, without a network."""
    ran = subprocess.run(
        [browser(), "--headless", "--no-sandbox", "--use-angle=swiftshader",
         "--enable-unsafe-swiftshader", "--host-resolver-rules=MAP * ~NOTFOUND",
         "--window-size=1400,6000", f"--user-data-dir={profile}",
         "--virtual-time-budget=30000", "--dump-dom", url],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    return ran.stdout


class Browser:
    """A Chromium that a test clicks and types in, through chromedriver (W3C WebDriver).

    Args:
        folder: for the profile and the downloads.
    """

    def __init__(self, folder: Path) -> None:
        driver = shutil.which("chromedriver")
        if driver is None:
            pytest.skip("no chromedriver on this machine")
        with socket.socket() as place:
            place.bind(("127.0.0.1", 0))
            port = place.getsockname()[1]
        self._driver = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL)
        self._url = f"http://127.0.0.1:{port}"
        options = {
            "binary": browser(),
            "args": ["--headless", "--no-sandbox", "--use-angle=swiftshader",
                     "--enable-unsafe-swiftshader", "--window-size=1400,1600",
                     "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                     f"--user-data-dir={folder / 'profile'}"],
            "prefs": {"download.default_directory": str(folder)},
        }  # fmt: skip
        asked = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        try:
            self.wait(lambda: self._call("GET", "/status")["ready"])
            self._url += f"/session/{self._call('POST', '/session', asked)['sessionId']}"
        except BaseException:
            self._driver.kill()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait()

    def open(self, url: str) -> None:
        """Open a page."""
        self._call("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """Return what a script returns on the page."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def find(self, path: str) -> str | None:
        """Return the first element at an XPath; None if there is none."""
        found = self._call("POST", "/elements", {"using": "xpath", "value": path})
        return next(iter(found[0].values())) if found else None

    def click(self, path: str) -> None:
        """Click the element at an XPath as soon as there is one."""
        self._call("POST", f"/element/{self.wait(lambda: self.find(path))}/click", {})

    def enter(self, path: str, text: str) -> None:
        """Replace the text of a field."""
        element = self.wait(lambda: self.find(path))
        everything = "\ue009a\ue000"  # Control and a
        self._call("POST", f"/element/{element}/value", {"text": everything + text})

    def screenshot(self) -> bytes:
        """Return a PNG of the window."""
        return base64.b64decode(self._call("GET", "/screenshot"))

    def wait(self, ready: Callable[[], Any], seconds: float = 180) -> Any:
        """Return the first true result of a function."""
        end = time.monotonic() + seconds
        while True:
            try:
                if found := ready():
                    return found
            except urllib.error.URLError as error:
                if time.monotonic() > end:
                    raise TimeoutError from error
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.2)

    def _call(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            self._url + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=180) as answer:
            return json.load(answer)["value"]
