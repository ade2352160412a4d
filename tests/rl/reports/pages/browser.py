"""A headless Chromium for tests, driven over the DevTools protocol through a pair of pipes: click, type, measure."""

import base64
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

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-extensions --remote-debugging-pipe""".split()
KEYS = {
    "ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Escape": 27, "Home": 36, "End": 35,
    "PageDown": 34, "PageUp": 33, "Tab": 9, "Backspace": 8,
}  # fmt: skip


class Failed(Exception):
    """The page or the browser did not do what it was told."""


class Page:
    """One tab. Selectors are CSS."""

    def __init__(self, process: "subprocess.Popen[bytes]", down: int, up: int) -> None:
        self._process, self._down, self._up = process, down, up
        self._number, self._rest = 0, b""
        self.said: list[str] = []
        """Uncaught errors and console messages of the page."""
        target = self._send("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
        attached = self._send("Target.attachToTarget", {"targetId": target, "flatten": True}, session=None)
        self._session = attached["sessionId"]
        self._send("Performance.enable", {"timeDomain": "threadTicks"})
        for domain in ("Page", "Runtime", "Log"):
            self._send(f"{domain}.enable", {})

    def _send(self, method: str, parameters: dict[str, Any], session: str | None = "own", within_s: float = 60) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = self._session
        os.write(self._down, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + within_s
        while True:
            answer = self._read(deadline)
            if answer.get("method") == "Runtime.exceptionThrown":
                details = answer["params"]["exceptionDetails"]
                self.said.append(str(details.get("exception", {}).get("description", details["text"])))
            elif answer.get("method") == "Log.entryAdded":
                self.said.append(answer["params"]["entry"]["text"])
            elif answer.get("method") == "Page.javascriptDialogOpening":
                self.said.append("a dialog opened")
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise Failed(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if time.monotonic() > deadline:
                raise Failed("the browser does not answer")
            block = os.read(self._up, 1 << 20)
            if not block:
                raise Failed(f"the browser has ended with {self._process.wait()}")
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited. Raises Failed where it throws."""
        found = self._send("Runtime.evaluate", {"expression": script, "awaitPromise": True, "returnByValue": True})
        if "exceptionDetails" in found:
            raise Failed(str(found["exceptionDetails"].get("exception", {}).get("description", found)))
        return found["result"].get("value")

    def open(self, file: Path, state: str = "") -> float:
        """Open a file; returns the seconds until it was drawn and showed its first trajectory."""
        self._send("Page.navigate", {"url": "about:blank"})
        started = time.monotonic()
        self._send("Page.navigate", {"url": file.resolve().as_uri() + ("#" + state if state else "")})
        self.until(
            "document.querySelector('#page[data-drawn]')"
            " && (!document.querySelector('.pane') || document.querySelector('.pane .body, .pane .empty'))"
        )
        return time.monotonic() - started

    def show(self, file: Path) -> None:
        """Open a file that is no page of trajectories."""
        self._send("Page.navigate", {"url": "about:blank"})
        self._send("Page.navigate", {"url": file.resolve().as_uri()})
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def until(self, script: str, within_s: float = 20) -> Any:
        """Wait for an expression to be true; returns its value."""
        deadline = time.monotonic() + within_s
        while not (value := self.run(f"(v => v instanceof Node ? true : v)({script})")):
            if time.monotonic() > deadline:
                raise Failed(f"never true: {script}\n" + "\n".join(self.said))
            time.sleep(0.02)
        return value

    def size(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self._send("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", {"features": [scheme]})

    def click(self, selector: str) -> None:
        """Click in the middle of the first element that is in sight, or is brought there."""
        box = self.run(
            f"""(() => {{
                const node = document.querySelector({json.dumps(selector)});
                node.scrollIntoView({{block: "nearest"}});
                const box = node.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            event = {"type": kind, "x": box[0], "y": box[1], "button": "left", "clickCount": 1}
            self._send("Input.dispatchMouseEvent", event)

    def press(self, *keys: str) -> None:
        """Press keys one after the other, by their DOM names."""
        for key in keys:
            code = KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)
            event = {"key": key, "windowsVirtualKeyCode": code, "code": key if len(key) > 1 else ""}
            text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            self._send("Input.dispatchKeyEvent", {"type": "keyDown", **event, **text})
            self._send("Input.dispatchKeyEvent", {"type": "keyUp", **event})

    def type(self, text: str) -> None:
        self._send("Input.insertText", {"text": text})

    def thread_s(self) -> float:
        """Processor seconds that the page's main thread has taken, whatever else the machine does."""
        found = self._send("Performance.getMetrics", {})["metrics"]
        return next(one["value"] for one in found if one["name"] == "TaskDuration")

    def picture(self, file: Path, whole: bool = False) -> None:
        found = self._send("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
        file.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser with a profile of its own, ended with all it started."""
    assert CHROMIUM
    down, up = os.pipe(), os.pipe()

    def take_pipes() -> None:
        """Chromium reads commands from descriptor 3 and writes answers to 4."""
        spare = [os.dup(down[0]), os.dup(up[1])]
        high = [os.dup2(one, 60 + i) for i, one in enumerate(spare)]
        for target, one in zip((3, 4), high, strict=True):
            os.dup2(one, target)

    log = (profile.parent / "chromium.log").open("wb")
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(3, 4), preexec_fn=take_pipes, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    os.close(down[0])
    os.close(up[1])
    try:
        yield Page(process, down[1], up[0])
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
        os.close(down[1])
        os.close(up[0])
        log.close()
