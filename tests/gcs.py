"""A server that speaks what stores need of Google Cloud Storage's JSON API.

Objects with generations, conditional writes, ranges, and listings between two
names in pages of a few, as in
https://cloud.google.com/storage/docs/json_api/v1/objects.
"""

import contextlib
import http.server
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator
from unittest import mock

PAGE = 3  # names of a listing's page
_OBJECT = re.compile(r"/storage/v1/b/bucket/o/(.+)")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  # name -> (generation, content); generations of all objects rise.
  objects: dict[str, tuple[int, bytes]]
  lock: threading.Lock
  writes: list[int]

  def log_message(self, *_) -> None:
    pass

  def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
    if status >= 400:
      content = json.dumps({"error": {"code": status}}).encode()
    self.send_response(status)
    self.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    self.wfile.write(content)

  def _asked(self) -> tuple[str, dict[str, str]]:
    url = urllib.parse.urlsplit(self.path)
    return url.path, dict(urllib.parse.parse_qsl(url.query))

  def _refused(self, query: dict[str, str], name: str) -> bool:
    """Whether the condition of a request on the generation is not met."""
    wanted = query.get("ifGenerationMatch")
    there = self.objects.get(name, (0, b""))[0]
    return wanted is not None and int(wanted) != there

  def do_GET(self) -> None:
    path, query = self._asked()
    if path == "/storage/v1/b/bucket/o":
      return self._list(query)
    found = _OBJECT.fullmatch(path)
    name = urllib.parse.unquote(found[1]) if found else ""
    with self.lock:
      generation, content = self.objects.get(name, (0, b""))
    if not generation:
      return self._answer(404)
    headers = {"x_goog_generation": str(generation)}
    if part := _RANGE.fullmatch(self.headers.get("Range", "")):
      if part[1]:
        start, stop = int(part[1]), int(part[2] or len(content) - 1) + 1
      else:  # the last bytes
        start, stop = max(len(content) - int(part[2]), 0), len(content)
      stop = min(stop, len(content))
      if start >= stop:
        return self._answer(416, **headers)
      headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
      return self._answer(206, content[start:stop], **headers)
    return self._answer(200, content, **headers)

  def _list(self, query: dict[str, str]) -> None:
    first, last = query.get("startOffset", ""), query.get("endOffset")
    after = query.get("pageToken", "")
    with self.lock:
      names = sorted(
        name
        for name in self.objects
        if name >= first and name > after and (last is None or name < last)
      )
    page = {"items": [{"name": name} for name in names[:PAGE]]}
    if len(names) > PAGE:
      page["nextPageToken"] = names[PAGE - 1]
    self._answer(200, json.dumps(page).encode())

  def do_POST(self) -> None:
    path, query = self._asked()
    content = self.rfile.read(int(self.headers["Content-Length"]))
    if path != "/upload/storage/v1/b/bucket/o":
      return self._answer(404)
    name = query["name"]
    with self.lock:
      if self._refused(query, name):
        return self._answer(412)
      self.writes.append(len(content))
      generation = len(self.writes)
      self.objects[name] = generation, content
    made = {"name": name, "generation": str(generation)}
    return self._answer(200, json.dumps(made).encode())

  def do_DELETE(self) -> None:
    path, query = self._asked()
    found = _OBJECT.fullmatch(path)
    name = urllib.parse.unquote(found[1]) if found else ""
    with self.lock:
      if self._refused(query, name):
        return self._answer(412)
      there = self.objects.pop(name, None)
    return self._answer(404 if there is None else 204)


@contextlib.contextmanager
def server() -> Iterator[None]:
  """Serves an empty bucket called "bucket" to gs:// URLs of this process."""

  class Handler(_Handler):
    objects, lock, writes = {}, threading.Lock(), []

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
    threading.Thread(target=found.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{found.server_port}"
    # No credentials are looked for at Google's own servers.
    known = {
      "TENSORSTORE_GCS_HTTP_URL": url,
      "GCE_METADATA_ROOT": "127.0.0.1:1",
    }
    with mock.patch.dict(os.environ, known):
      yield
    found.shutdown()
