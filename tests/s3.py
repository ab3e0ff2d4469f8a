"""A server that speaks S3 on this machine, and a proxy before it that fails.

Run as a script it serves until its standard input ends, and prints its port.
"""

import contextlib
import http.client
import http.server
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from unittest import mock

ENVIRONMENT = {
  "AWS_ACCESS_KEY_ID": "key",
  "AWS_SECRET_ACCESS_KEY": "secret",
  "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def server() -> Iterator[str]:
  """Serves an empty bucket called "bucket"; gives the URL of the server."""
  command = [sys.executable, "-W", "ignore", __file__]
  with (
    mock.patch.dict(os.environ, ENVIRONMENT),
    subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
    ) as process,
  ):
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    request = urllib.request.Request(f"{url}/bucket", method="PUT")
    urllib.request.urlopen(request).close()
    try:
      yield url
    finally:
      process.kill()


# What a proxy does with a request: a status to answer with, None to pass it on,
# "drop" to close the connection, "lose" to pass it on and close, "hang".
Fault = Callable[[int, str, str], int | str | None]


@contextlib.contextmanager
def proxy(url: str, fault: Fault) -> Iterator[str]:
  """Forwards requests to a server, but for those that fail.

  Args:
    url: URL of the server.
    fault: what happens to a request, given its number, method and path.
  """
  lock, end = threading.Lock(), threading.Event()
  count = 0

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
      pass

    def handle_any(self):
      nonlocal count
      with lock:
        count += 1
        number = count
      size = int(self.headers.get("Content-Length") or 0)
      body = self.rfile.read(size)
      found = fault(number, self.command, self.path)
      if found == "hang":
        end.wait()
      if found in ("drop", "hang"):
        self.close_connection = True
        return
      if isinstance(found, int):
        self.answer(found, {}, b"")
        return
      status, headers, content = _forwarded(self, url, body)
      if found == "lose":
        self.close_connection = True
        return
      self.answer(status, headers, content)

    def answer(self, status, headers, content):
      self.send_response(status)
      for name, value in headers.items():
        if name.lower() not in ("content-length", "connection", "server"):
          self.send_header(name, value)
      length = headers.get("Content-Length", str(len(content)))
      self.send_header("Content-Length", length)
      self.end_headers()
      if self.command != "HEAD":
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

  class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
      pass

  with Server(("127.0.0.1", 0), Handler) as serving:
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    try:
      yield f"http://127.0.0.1:{serving.server_address[1]}"
    finally:
      end.set()
      serving.shutdown()
      thread.join()


def _forwarded(request, url, body):
  """Status, headers and content of a server's answer to a request."""
  connection = http.client.HTTPConnection(url.removeprefix("http://"))
  connection.request(request.command, request.path, body, dict(request.headers))
  response = connection.getresponse()
  return response.status, dict(response.headers), response.read()


if __name__ == "__main__":
  from moto.server import ThreadedMotoServer

  serving = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
  serving.start()
  print(serving.get_host_and_port()[1], flush=True)
  sys.stdin.read()
