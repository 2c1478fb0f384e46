"""A page in Debian's chromium without a window, spoken to over a pipe (the DevTools protocol); no driver is needed."""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

PROGRAM = shutil.which("chromium")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
_PATIENCE_S = 120


@contextlib.contextmanager
def opened(page: pathlib.Path, profile: pathlib.Path, width: int, height: int = 900):
    """The page in a window `width` px wide, its pictures decoded. `profile`: a new folder for the browser's files."""
    profile.mkdir(parents=True, exist_ok=True)
    pipes = [str(profile / name) for name in ("commands", "answers")]
    for path in pipes:
        os.mkfifo(path)
    # Opened for both, an end does not wait for the other one. The browser reads its file 3 and writes its file 4.
    write, read = (os.open(path, os.O_RDWR) for path in pipes)
    command = [PROGRAM, *_FLAGS, f"--user-data-dir={profile / 'own'}", "about:blank"]
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" 3<"$0"/commands 4>"$0"/answers', str(profile), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    browser = Browser(process, write, read)
    try:
        browser.open(page, width, height)
        yield browser
    finally:
        if process.poll() is None:
            browser.ask("Browser.close", whole=True)
        process.wait(_PATIENCE_S)
        os.close(write)
        os.close(read)


class Browser:
    """One tab. `problems`: what the page has written to the console, and what could not be loaded or was refused."""

    def __init__(self, process: subprocess.Popen, write: int, read: int):
        self._process, self._write, self._read, self._rest, self._number = process, write, read, b"", 0
        self._session: str | None = None
        self._loaded = False
        self.problems: list[str] = []

    def open(self, page: pathlib.Path, width: int, height: int) -> None:
        """Waits until the page and its pictures are there."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not self._loaded:
            self._message()
        self.run("Promise.all([...document.images].map(image => image.decode().catch(() => 0)))")

    def run(self, script: str):
        """The value of an expression, awaited if it is a promise. AssertionError if it throws."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, path: pathlib.Path, whole: bool = True) -> None:
        """A PNG of the page, all of it or what the window shows."""
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def ask(self, method: str, whole: bool = False, **params):
        """The result of a command, to the page or to the `whole` browser. AssertionError if there is none."""
        self._number += 1
        call = {"id": self._number, "method": method, "params": params}
        session = {"sessionId": self._session} if self._session and not whole else {}
        os.write(self._write, json.dumps(call | session).encode() + b"\0")
        while (message := self._message()).get("id") != self._number:
            pass
        assert "result" in message, message
        return message["result"]

    def _message(self) -> dict:
        deadline = time.monotonic() + _PATIENCE_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], 1.0)
            assert ready or self._process.poll() is None, "the browser is gone"
            assert ready or time.monotonic() < deadline, "the browser does not answer"
            self._rest += os.read(self._read, 1 << 20) if ready else b""
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        self._notice(message.get("method"), message.get("params", {}))
        return message

    def _notice(self, event: str | None, about: dict) -> None:
        self._loaded |= event == "Page.loadEventFired"
        if event == "Log.entryAdded":
            self.problems.append(about["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            self.problems.append(f"console.{about['type']}")
        elif event == "Runtime.exceptionThrown":
            self.problems.append(about["exceptionDetails"]["text"])
        elif event == "Network.loadingFailed":
            self.problems.append(about["errorText"])
        elif event == "Network.requestWillBeSent" and not about["request"]["url"].startswith(("file:", "data:")):
            self.problems.append(f"asks for {about['request']['url']}")
