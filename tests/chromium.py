"""A headless Chromium that a test drives, over the two pipes of its DevTools protocol.

The protocol is JSON, so the standard library is all of the driver: no package that must fit the
browser's version, and no port that another process could take.
"""

import base64
import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from shutil import which

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
# the browser's own calls home would be noise in a test that counts requests
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe"),
)
# gives the browser its pipes at the two numbers that it expects
START = (
    "import os, sys; r, w, *c = sys.argv[1:]; os.dup2(int(r), 3); os.dup2(int(w), 4); "
    "os.execvp(c[0], c)"
)


def find_chromium() -> str | None:
    return next((path for path in map(which, NAMES) if path), None)


class Chromium:
    """One browser with one page; `problems` and `requests` are what the page did since `open`."""

    def __init__(self, path: str, profile: Path, timeout_s: float = 60) -> None:
        self.timeout_s = timeout_s
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._unread = b""
        # far above the two numbers, which the pipes could otherwise land on
        theirs_in, self._out = (_high(fd) for fd in os.pipe())
        self._in, theirs_out = (_high(fd) for fd in os.pipe())
        command = [sys.executable, "-c", START, str(theirs_in), str(theirs_out)]
        self._process = subprocess.Popen(
            [*command, path, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        self._session = None
        with contextlib.suppress(OSError, RuntimeError):
            self.send("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, **parameters):
        """What the browser answers; RuntimeError where it answers with an error."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self.timeout_s
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _read(self, deadline: float) -> dict:
        while b"\0" not in self._unread:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._in], [], [], left)[0]:
                raise RuntimeError(f"Chromium did not answer within {self.timeout_s} s")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("Chromium ended")
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict) -> None:
        what, given = event.get("method"), event.get("params", {})
        if what == "Runtime.exceptionThrown":
            self.problems.append(str(given["exceptionDetails"]))
        elif what == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.problems.append(str(given["args"]))
        elif what == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.problems.append(given["entry"]["text"])
        elif what == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])

    def open(self, url: str, width: int = 1280, height: int = 900, phone: bool = False) -> None:
        self.problems.clear()
        self.requests.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone, maxTouchPoints=2)
        self.send("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({json.dumps(url)}) && document.readyState", "complete")
        self.frames()

    def do(self, script: str):
        """The value of a JavaScript expression; a promise's value, once it has one."""
        done = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"]["exception"].get("description", str(done)))
        return done["result"].get("value")

    def wait(self, script: str, value) -> None:
        deadline = time.monotonic() + self.timeout_s
        while (found := self.do(script)) != value:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{script} is {found!r} and did not become {value!r}")
            time.sleep(0.02)

    def frames(self) -> None:
        """Return once the page has drawn what was asked of it."""
        self.do("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(1))))")

    def mouse(self, kind: str, x: float, y: float, **more) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def move(self, x: float, y: float) -> None:
        self.mouse("mouseMoved", x, y)
        self.frames()

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.mouse("mouseMoved", x0, y0)
        self.mouse("mousePressed", x0, y0, button="left", buttons=1, clickCount=1)
        for i in range(1, 5):
            x, y = x0 + (x1 - x0) * i / 4, y0 + (y1 - y0) * i / 4
            self.mouse("mouseMoved", x, y, button="left", buttons=1)
        self.mouse("mouseReleased", x1, y1, button="left", clickCount=1)
        self.frames()

    def double_click(self, x: float, y: float) -> None:
        self.mouse("mouseMoved", x, y)
        for count in (1, 2):
            self.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=count)
            self.mouse("mouseReleased", x, y, button="left", clickCount=count)
        self.frames()

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        self.send("Input.dispatchTouchEvent", type=kind, touchPoints=touches)

    def key(self, name: str) -> None:
        self.send("Input.dispatchKeyEvent", type="keyDown", key=name)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=name)
        self.frames()

    def prefer(self, scheme: str) -> None:
        """Let the system's colour scheme be "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])
        self.frames()

    def screenshot(self, path: Path, full: bool = True) -> None:
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(shot["data"]))


def _high(fd: int) -> int:
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(fd)
    return moved
