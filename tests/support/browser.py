"""A headless Chromium, driven through a pipe in the DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 120
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-extensions", "--mute-audio"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no test leaves this machine
    *("--allow-file-access-from-files", "--remote-debugging-pipe", "about:blank"),
)
_ON_3_AND_4 = 'exec "$@" 3<&"$COMMANDS" 4>&"$EVENTS"'


def find_browser() -> str | None:
    """Return the path of a browser of this machine, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


class Browser:
    """One page of a running browser.

    Attributes:
        errors: What the pages wrote to the console as errors, and uncaught exceptions.
        requests: The addresses that were requested.
        events: The names of the events that have come.
    """

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events = commands, events
        self._numbers = itertools.count(1)
        self._unread = b""
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.events: set[str] = set()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = str(session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """Send a command and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, address: str, *, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        """Load a page in a window of this size and wait until it is loaded."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.resize(width, height)
        self.events.clear()
        self.send("Page.navigate", url=address)
        while "Page.loadEventFired" not in self.events:
            self._next()

    def resize(self, width: int, height: int) -> None:
        """Change the size of the window, in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    def run(self, script: str) -> Any:
        """Return the value of an expression; a promise is waited for."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + SECONDS
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < until, f"never true: {condition}"
            self.run("new Promise(done => setTimeout(done, 20))")

    def press(self, key: str, text: str = "") -> None:
        """Press a key; ``text`` is what it writes."""
        named = {"key": key, "code": key, "windowsVirtualKeyCode": _CODES.get(key, ord(key[0].upper()))}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **named)
        self.send("Input.dispatchKeyEvent", type="keyUp", **named)

    def type(self, text: str) -> None:
        """Write into the field that has the focus."""
        self.send("Input.insertText", text=text)

    def drag(self, x: float, y: float, to_x: float) -> None:
        """Drag the mouse along a line."""
        for kind, at in (("mousePressed", x), ("mouseMoved", to_x), ("mouseReleased", to_x)):
            self.send(
                "Input.dispatchMouseEvent", type=kind, x=at, y=y, button="left", buttons=1, clickCount=1
            )

    def screenshot(self, path: Path) -> None:
        """Save what the window shows, as PNG or JPEG."""
        kind = {"format": "jpeg", "quality": 82} if path.suffix == ".jpg" else {"format": "png"}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **kind)["data"]))

    def _next(self) -> dict[str, Any]:
        """Return the next answer or event, and note what an event reports."""
        while b"\0" not in self._unread:
            readable, _, _ = select.select([self._events], [], [], SECONDS)
            piece = os.read(self._events, 1 << 20) if readable else b""
            assert piece, "the browser is silent, or has ended"
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, params: dict[str, Any]) -> None:
        self.events.add(event)
        if event == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in {"error", "assert"}:
            self.errors.append(str(params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif event == "Page.javascriptDialogOpening":
            self.errors.append(f"a dialog: {params['message']}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


_CODES = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9, "/": 191}


@contextmanager
def running_browser(path: str, profile: Path) -> Iterator[Browser]:
    """Start a browser and end it, by its pid, in the end."""
    commands_end, commands = os.pipe()
    events, events_end = os.pipe()
    with subprocess.Popen(
        ["bash", "-c", _ON_3_AND_4, "bash", path, f"--user-data-dir={profile}", *_OPTIONS],
        env=os.environ | {"COMMANDS": str(commands_end), "EVENTS": str(events_end)},
        pass_fds=(commands_end, events_end),
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(commands_end)
        os.close(events_end)
        try:
            yield Browser(commands, events)
        finally:
            os.close(commands)  # the browser ends when its pipe is closed
            try:
                process.wait(SECONDS)
            finally:
                process.kill()
                os.close(events)
