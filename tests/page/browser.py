"""The system's Chromium, driven over the WebDriver protocol: it is JSON over HTTP, and a client of it a page long.

Selenium's would do as well, but it brings along trio, whose plugin for Hypothesis warns wherever warnings are errors.

Source: W3C WebDriver, level 2; Chrome DevTools Protocol for what that lacks.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--lang=en-US",
)  # fmt: skip
ENTER, TAB, BACKSPACE, RIGHT, CONTROL = "\ue007", "\ue004", "\ue003", "\ue014", "\ue009"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name of an element


class Browser:
    """A page in a window, and what it asked for and complained about.

    Args:
        folder: Where the browser keeps its profile.
    """

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = next(line for line in self.process.stdout if "on port" in line and "started" in line)
        port = line.strip().rstrip(".").rpartition(" ")[2]
        self.url = f"http://127.0.0.1:{port}/session"
        options = {"binary": str(CHROMIUM), "args": [*FLAGS, f"--user-data-dir={folder}"]}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        self.url += "/" + self.send("", capabilities={"alwaysMatch": wanted})["sessionId"]
        self.send("/timeouts", script=120_000)

    def send(self, path: str, **parameters: Any) -> Any:
        """A command of the protocol."""
        body = json.dumps(parameters).encode()
        with urlopen(Request(self.url + path, body, {"Content-Type": "application/json"}), timeout=180) as answer:  # noqa: S310
            return json.load(answer)["value"]

    def close(self) -> None:
        urlopen(Request(self.url, method="DELETE"), timeout=60).close()  # noqa: S310
        self.process.terminate()
        self.process.communicate()

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.send("/goog/cdp/execute", cmd=command, params=parameters)

    def open(self, page: Path, width: int = 1440, *, dark: bool = False) -> None:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.devtools("Emulation.setEmulatedMedia", features=scheme)
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.requests(), self.messages()
        self.send("/url", url=page.as_uri())

    def requests(self) -> list[str]:
        """What was asked for since the last call, but for data in the page itself."""
        events = [json.loads(entry["message"])["message"] for entry in self.send("/se/log", type="performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def messages(self) -> list[str]:
        """What came to the console since the last call."""
        return [entry["message"] for entry in self.send("/se/log", type="browser")]

    def js(self, script: str) -> Any:
        return self.send("/execute/sync", script=script, args=[])

    def later(self, promise: str) -> Any:
        """The value of a promise."""
        return self.send("/execute/async", script=f"({promise}).then(arguments[0])", args=[])

    def click(self, selector: str) -> None:
        self.send(f"/element/{self._element(selector)}/click")

    def type(self, selector: str, keys: str) -> None:
        self.send(f"/element/{self._element(selector)}/value", text=keys)

    def press(self, *keys: str) -> None:
        """Keys, one after another, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.send("/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def drag(self, x: float, y: float, by: int) -> None:
        """Press the mouse at a place in the window, and move it up or down before it is released."""
        actions = [
            {"type": "pointerMove", "x": int(x), "y": int(y), "duration": 0}, {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "x": int(x), "y": int(y) + by, "duration": 50}, {"type": "pointerUp", "button": 0},
        ]  # fmt: skip
        self.send("/actions", actions=[{"type": "pointer", "id": "mouse", "actions": actions}])

    def text(self, name: str) -> str:
        return str(self.js(f"return document.getElementById('{name}').textContent"))

    def slide(self, name: str, value: int) -> None:
        self.js(f"const e = document.getElementById('{name}'); e.value = {value}; e.dispatchEvent(new Event('input'))")

    def wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "waited for a minute"
            time.sleep(0.1)

    def _element(self, selector: str) -> str:
        return str(self.send("/element", using="css selector", value=selector)[ELEMENT])
