"""A headless Chromium, driven over its DevTools protocol through a pipe: JSON messages that end with a NUL.

    with Browser(executable, folder) as browser:
        page = browser.open("file:///…/index.html", width=390, height=844)
        page.value("document.title")

Nothing but the standard library is needed. A page keeps what its console said and every address that it asked for.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

WIDTHS = (390, 1280)
"""Of a telephone, and of a screen."""
CUT = """
[...document.querySelectorAll('table, svg, pre, td, th')].filter((one) => one.checkVisibility()
  && Boolean(one.closest('.rows')) === LANDSCAPE && (one.getBoundingClientRect().right > innerWidth + 1
    || (one.cellIndex !== undefined && one.scrollWidth > one.clientWidth + 1)))
  .map((one) => one.outerHTML.slice(0, 200))
"""
"""What is wider than the page, in the part that is printed LANDSCAPE or the rest."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync",
    "--hide-scrollbars", "--force-color-profile=srgb", "--no-default-browser-check",
)  # fmt: skip


def executable() -> str | None:
    """Return where a Chromium is; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One process, until the end of a `with`."""

    def __init__(self, path: str, profile: Path) -> None:
        self.path, self.profile = path, profile
        self.events: list[dict[str, Any]] = []
        self._pid, self._count, self._rest = 0, 0, b""

    def __enter__(self) -> Self:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Above 3 and 4, which the browser expects: neither may be in the other's way.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]
        arguments = [self.path, *_FLAGS, f"--user-data-dir={self.profile}"]
        arguments += ["--no-sandbox"] * (os.geteuid() == 0)  # which root cannot have
        quiet = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        moves = [(os.POSIX_SPAWN_DUP2, end, place) for end, place in zip(high, (3, 4), strict=True)]
        self._pid = os.posix_spawn(self.path, arguments, dict(os.environ), file_actions=[quiet, *moves])
        for end in (theirs_in, theirs_out, *high):
            os.close(end)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, TimeoutError):
            self.send("Browser.close")
        deadline = time.monotonic() + 10
        while os.waitpid(self._pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
                break
            time.sleep(0.02)
        os.close(self._out)
        os.close(self._in)

    def send(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Ask for something and return the answer; what the browser says meanwhile goes to `events`."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read(60)
            if found.get("id") == self._count:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]
            self.events.append(found)

    def wait(self, method: str, session: str, seconds: float = 60) -> None:
        """Wait for an event."""
        while not any(one.get("method") == method and one.get("sessionId") == session for one in self.events):
            self.events.append(self._read(seconds))

    def _read(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], seconds)[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise OSError("the browser is gone")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def open(self, address: str, *, width: int, height: int = 900, dark: bool = False, script: bool = True) -> Page:
        """Open a page of this size and wait until it has loaded."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        page.media(dark=dark)
        page.send("Emulation.setScriptExecutionDisabled", value=not script)
        self.events.clear()
        page.send("Page.navigate", url=address)
        self.wait("Page.loadEventFired", session)
        return page


class Page:
    """One page."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser, self.target, self.session = browser, target, session

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **parameters)

    def close(self) -> None:
        self.browser.send("Target.closeTarget", targetId=self.target)

    def media(self, *, dark: bool = False, paper: bool = False) -> None:
        """Prefer dark colours, or be printed."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="print" if paper else "screen", features=[scheme])

    def value(self, expression: str) -> Any:
        """Return what an expression of JavaScript is in the page, a promise's value included."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"]["exception"].get("description"))
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < deadline, f"never came: {expression}"
            time.sleep(0.02)

    def point_at(self, selector: str) -> None:
        """Bring an element into view and move the mouse onto its middle."""
        place = self.value(
            f"(() => {{ const one = document.querySelector({selector!r}); one.scrollIntoView({{block: 'center'}});"
            " const at = one.getBoundingClientRect(); return [at.x + at.width / 2, at.y + at.height / 2]; })()"
        )
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])

    def click(self, selector: str) -> None:
        """Press and release the mouse on an element."""
        self.point_at(selector)
        at = self.value(
            f"(() => {{ const at = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [at.x + at.width / 2, at.y + at.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def key(self, name: str) -> None:
        """Press a key."""
        codes = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37, "End": 35, "Home": 36, "Tab": 9}
        for kind in ("keyDown", "keyUp"):
            more = {"text": "\r"} if name == "Enter" and kind == "keyDown" else {}
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=codes[name], **more
            )

    def write(self, selector: str, text: str) -> None:
        """Type into a field, in place of what is there."""
        self.value(f"(() => {{ const one = document.querySelector({selector!r}); one.focus(); one.select(); }})()")
        self.send("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select, as a user does."""
        events = "for (const kind of ['input', 'change']) one.dispatchEvent(new Event(kind, {bubbles: true}));"
        self.value(f"(() => {{ const one = document.querySelector({selector!r}); one.value = {value!r}; {events} }})()")

    def complaints(self) -> list[str]:
        """Return what the console said, errors that nobody caught and what the content policy stopped."""
        self.value("0")  # whatever was said before has arrived by then
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            parameters = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                found.append(f"console.{parameters['type']}: {parameters['args']}")
            elif event["method"] == "Log.entryAdded":
                found.append(parameters["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Return every address that was asked for."""
        self.value("0")
        return [
            event["params"]["request"]["url"]
            for event in self.browser.events
            if event.get("method") == "Network.requestWillBeSent" and event.get("sessionId") == self.session
        ]

    def blocked(self) -> list[str]:
        """Return the addresses of which nothing went out: the content policy forbade it."""
        self.value("0")
        sent = {
            event["params"]["requestId"]: event["params"]["request"]["url"]
            for event in self.browser.events
            if event.get("method") == "Network.requestWillBeSent"
        }
        return [
            sent[event["params"]["requestId"]]
            for event in self.browser.events
            if event.get("method") == "Network.loadingFailed" and event["params"].get("blockedReason") == "csp"
        ]

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Save what is seen, or the whole page, as PNG."""
        clip: dict[str, Any] = {}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "scale": 1, **{k: size[k] for k in ("width", "height")}},
            }
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png", **clip)["data"]))

    def paper(self, path: Path) -> None:
        """Save the page as it is printed, on A4."""
        self.send("Emulation.setEmulatedMedia", media="print")
        found = self.send(
            "Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True
        )
        path.write_bytes(base64.b64decode(found["data"]))
