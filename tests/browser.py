"""A real browser for tests: Chromium without a window, driven by DevTools commands on a pipe."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser",
                                                "google-chrome"))), None)
in_browser = pytest.mark.skipif(
    CHROMIUM is None or os.name != "posix",  # elsewhere a pipe cannot be handed over like this
    reason="needs Chromium, which .ci/run installs")
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--disable-default-apps", "--host-resolver-rules=MAP * ~NOTFOUND",
            "--remote-debugging-pipe")
# Chromium reads commands from descriptor 3 and answers on 4.
ON_3_AND_4 = """
import fcntl, os, sys
here = [fcntl.fcntl(int(word), fcntl.F_DUPFD, 10) for word in sys.argv[1:3]]
for number, place in zip(here, (3, 4)):
    os.dup2(number, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
KEYS = {"ArrowUp": 38, "ArrowDown": 40, "ArrowLeft": 37, "ArrowRight": 39, " ": 32}
PATIENCE = 60.0  # seconds for an answer


class Browser:
    """One page in Chromium, which reaches no network: open, evaluate, press keys, click."""

    def __init__(self, folder, *switches):
        to_read, for_chromium = os.pipe()
        from_here, to_write = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_3_AND_4, str(from_here), str(for_chromium), CHROMIUM,
             *SWITCHES, *switches, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(from_here, for_chromium), stderr=subprocess.DEVNULL)
        os.close(from_here)
        os.close(for_chromium)
        self.to_write, self.to_read, self.rest = to_write, to_read, b""
        self.ids, self.errors, self.session = itertools.count(1), [], None
        pages = self.call("Target.getTargets")["targetInfos"]
        page = next(one for one in pages if one["type"] == "page")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        os.close(self.to_write)
        self.process.terminate()
        self.process.wait()
        os.close(self.to_read)

    def call(self, method, **params):
        """The result of a command of the DevTools protocol."""
        number = next(self.ids)
        command = {"id": number, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.to_write, json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"])
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]

    def _message(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            assert select.select([self.to_read], [], [], end - time.monotonic())[0], "no answer"
            part = os.read(self.to_read, 1 << 20)
            assert part, "Chromium ended"
            self.rest += part
        first, _, self.rest = self.rest.partition(b"\0")
        return json.loads(first)

    def open(self, path, query=""):
        self.call("Page.navigate", url=path.as_uri() + query)
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression):
        """The value of a JavaScript expression, after any promise is kept."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True,
                          returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression, seconds=30.0):
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"still not true after {seconds:g} s: {expression}"
            time.sleep(0.02)
        return value

    def key(self, name, kind):
        """kind: keyDown or keyUp, as from a keyboard."""
        self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name.replace(" ", "Space"),
                  windowsVirtualKeyCode=KEYS[name])

    def click(self, selector):
        """The left mouse button on the middle of the first such element."""
        x, y = self.evaluate(
            f"(() => {{ const one = document.querySelector({selector!r}); one.scrollIntoView("
            "{block: 'center'}); const box = one.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screen(self, width, height, *, dark=False, touch=False):
        """The size of the window in pixels, its colours, and whether fingers touch it."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def picture(self, path):
        """What is on the page, all of it, as a PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))
