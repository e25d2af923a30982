"""A page in headless Chromium as a phone or a screen shows it, by the browser's own protocol over a pipe.

`--window-size=390` does not do: Chromium's new headless mode has no window narrower than 500 pixels.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

WIDER = """[...document.querySelectorAll("body *")].filter(e => {
    const r = e.getBoundingClientRect();
    if (!r.width || r.right <= innerWidth + 0.5) return false;
    for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
        if (["auto", "scroll", "hidden"].includes(getComputedStyle(p).overflowX)) return false;
    return true;
}).map(e => e.tagName + "#" + e.id + "." + (e.className.baseVal ?? e.className))"""
"""What sticks out of the page to the right, and no box that scrolls holds it."""


class Page:
    """What one tab shows."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = os.fdopen(read, "rb", buffering=0), os.fdopen(write, "wb", buffering=0)
        self._numbers, self._waiting, self._session = itertools.count(1), b"", ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._waiting:
                found = self._read.read(1 << 20)
                assert found, "the browser has ended"
                self._waiting += found
            text, self._waiting = self._waiting.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, address: str, width: int, dark: bool = False, height: int = 844) -> None:
        """Show an address `width` pixels wide, and wait until it is loaded."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        self._ask("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Return the value of a script's expression."""
        return self._ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def until(self, script: str, seconds: float = 100.0) -> None:
        """Wait until an expression is true."""
        ends = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < ends, f"never true: {script}"
            time.sleep(0.05)

    def picture(self, path: Path, whole: bool = True) -> None:
        """Take a picture (PNG), of all of the page or of what is seen at once."""
        taken = self._ask(
            "Page.captureScreenshot", captureBeyondViewport=whole, **({"clip": self._all()} if whole else {})
        )
        path.write_bytes(base64.b64decode(taken["data"]))

    def _all(self) -> dict[str, float]:
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 6000), "scale": 1}


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Open a browser with an empty profile folder and one page."""
    (down, to), (back, up) = os.pipe(), os.pipe()

    def pipes() -> None:
        a, b = os.dup(down), os.dup(up)
        os.dup2(a, 3)
        os.dup2(b, 4)

    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={profile}"], preexec_fn=pipes, pass_fds=(3, 4), stderr=subprocess.DEVNULL
    )
    os.close(down)
    os.close(up)
    try:
        yield Page(back, to)
    finally:
        process.terminate()
        process.wait(60)
