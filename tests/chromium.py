"""Drives headless Chromium, where it is installed, over its debugging pipe."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

PATH = shutil.which("chromium")


class Tab:
  """An open page. Requests other than of the page itself are in `requests`."""

  def __init__(self, sent: int, got: int):
    self._sent, self._got = sent, got
    self._buffer, self._number, self._session = b"", 0, None
    self.requests: list[str] = []
    self.errors: list[str] = []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    attach = {"targetId": target, "flatten": True}
    session = self.call("Target.attachToTarget", **attach)["sessionId"]
    self._session = session
    for domain in ("Page", "Runtime", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """The result of a method of the protocol."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._sent, json.dumps(message).encode() + b"\0")
    while True:
      found = self._read()
      if found.get("id") == self._number:
        if "error" in found:
          raise RuntimeError(f"{method}: {found['error']}")
        return found["result"]

  def _read(self) -> dict[str, Any]:
    while b"\0" not in self._buffer:
      more = os.read(self._got, 2**20)
      if not more:
        raise RuntimeError("Chromium has ended")
      self._buffer += more
    line, _, self._buffer = self._buffer.partition(b"\0")
    found = json.loads(line)
    if found.get("method") == "Network.requestWillBeSent":
      self.requests.append(found["params"]["request"]["url"])
    if found.get("method") == "Runtime.exceptionThrown":
      self.errors.append(json.dumps(found["params"]))
    return found

  def open(self, path: pathlib.Path) -> None:
    """Opens a file and waits until it is loaded."""
    self.call("Page.navigate", url=path.as_uri())
    while self._read().get("method") != "Page.loadEventFired":
      pass

  def value(self, expression: str) -> Any:
    """The value of an expression, which may be a promise."""
    found = self.call(
      "Runtime.evaluate",
      expression=expression,
      returnByValue=True,
      awaitPromise=True,
    )
    if "exceptionDetails" in found:
      raise RuntimeError(json.dumps(found["exceptionDetails"]))
    return found["result"].get("value")

  def press(self, key: str) -> None:
    """Presses a key, and lets events that follow happen."""
    text = {"text": key} if len(key) == 1 else {}
    self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
    self.call("Input.dispatchKeyEvent", type="keyUp", key=key)
    self.settle()

  def click(self, selector: str, which: int = 0) -> None:
    """Clicks into the middle of an element."""
    one = f"document.querySelectorAll({json.dumps(selector)})[{which}]"
    x, y = self.value(
      f"{one}.scrollIntoView({{block: 'center'}}), (r => [r.x + r.width / 2,"
      f" r.y + r.height / 2])({one}.getClientRects()[0])"
    )
    for kind in ("mousePressed", "mouseReleased"):
      self.call(
        "Input.dispatchMouseEvent",
        type=kind,
        x=x,
        y=y,
        button="left",
        clickCount=1,
      )
    self.settle()

  def settle(self) -> None:
    """Waits for two frames."""
    frame = "requestAnimationFrame"
    self.value(f"new Promise(f => {frame}(() => {frame}(() => f(1))))")

  def screen(self, width: int, height: int, *, dark: bool = False) -> None:
    """Sets the size of the screen, as of a phone, and light or dark."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 600,
    )
    scheme = {
      "name": "prefers-color-scheme",
      "value": "dark" if dark else "light",
    }
    self.call("Emulation.setEmulatedMedia", features=[scheme])

  def screenshot(self, path: str | os.PathLike[str]) -> None:
    """Writes a PNG of what is on the screen."""
    data = self.call("Page.captureScreenshot", format="png")["data"]
    pathlib.Path(path).write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def tab() -> Iterator[Tab]:
  """A tab of a browser of its own, which ends with the block."""
  assert PATH, "Chromium is not installed"
  to_read, to_write = os.pipe()
  back_read, back_write = os.pipe()
  # The browser reads descriptor 3 and writes 4.
  move = f'exec "$0" "$@" 3<&{to_read} 4>&{back_write}'
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    process = subprocess.Popen(
      [
        *("bash", "-c", move, PATH, "--headless=new", "--no-sandbox"),
        *("--disable-gpu", "--hide-scrollbars", "--no-first-run"),
        *(f"--user-data-dir={profile}", "--remote-debugging-pipe"),
      ],
      pass_fds=(to_read, back_write),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(back_write)
    try:
      yield Tab(to_write, back_read)
    finally:
      process.kill()
      process.wait()
      os.close(to_write)
      os.close(back_read)
