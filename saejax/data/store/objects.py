"""A prefix in an object store, as the place of a store."""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from saejax.errors import InputError

_SECONDS = 30.0  # an object store that answers nothing for so long is dead
_BYTES_PER_SECOND = 1e6  # slowest transfer that is waited for
# TensorStore's own retries would go on for over a minute.
_RETRIES = {"max_retries": 3, "initial_delay": "100ms", "max_delay": "500ms"}
_FEW = 64  # objects that are looked for one by one, instead of in a listing


@dataclasses.dataclass(frozen=True)
class Objects:
  """A prefix in an object store; a `Place`.

  Attributes:
    url: `s3://BUCKET/PATH`, `gs://BUCKET/PATH` or `memory://PATH`.
    endpoint: URL of a server that speaks S3; empty for that of AWS.
  """

  url: str
  endpoint: str = ""

  def __str__(self) -> str:
    return self.url

  def __truediv__(self, name: str) -> "Objects":
    return Objects(f"{self.url}/{name}", self.endpoint)

  def __getstate__(self) -> dict[str, Any]:
    return {"url": self.url, "endpoint": self.endpoint}

  @property
  def name(self) -> str:
    return self.url.rsplit("/", 1)[-1]

  @functools.cached_property
  def _store(self) -> Any:
    import tensorstore as ts  # only where there is a store

    spec = self.kvstore("")
    return self.wait(ts.KvStore.open(spec, context=context()))

  def read(self, names: Iterable[str]) -> dict[str, bytes]:
    with self.failures("reads"):
      reads = {name: self._store.read(name) for name in names}
      found = {name: self.wait(future) for name, future in reads.items()}
    return {
      name: result.value
      for name, result in found.items()
      if result.state == "value"
    }

  def write(self, name: str, content: bytes) -> None:
    self.wait(self._store.write(name, content), size=len(content))

  def add(self, name: str, content: bytes) -> bool:
    missing = self.wait(self._store.read(name))
    if missing.state == "missing":
      stamp = self.wait(
        self._store.write(name, content, if_equal=missing.stamp.generation),
        size=len(content),
      )
      if stamp.generation:  # empty where another was first
        return True
      # Or where the answer to a write that succeeded was lost.
      return self.read([name]).get(name) == content
    return False

  def remove(self, name: str) -> None:
    self.wait(self._store.write(name, None))

  def names(self, under: str = "") -> list[str]:
    import tensorstore as ts

    prefix = f"{under}/" if under else ""
    keys = ts.KvStore.KeyRange(prefix, _after(prefix))
    with self.failures("lists"):
      return sorted(k.decode() for k in self.wait(self._store.list(keys)))

  def fault(self, sizes: Mapping[str, int | None]) -> tuple[str, str] | None:
    # The checksums of chunks cover the sizes.
    if len(sizes) > _FEW:
      there = frozenset(self.names())
    else:
      with self.failures("reads"):
        heads = {
          name: self._store.read(name, byte_range=slice(0, 1)) for name in sizes
        }
        found = {name: self.wait(head) for name, head in heads.items()}
      there = {name for name, head in found.items() if head.state == "value"}
    missing = [name for name in sizes if name not in there]
    return (missing[0], "the object is missing") if missing else None

  def kvstore(self, name: str) -> dict[str, Any]:
    scheme, _, rest = self.url.partition("://")
    path = "/".join(filter(None, (rest, name))) + "/"
    if scheme == "memory":
      return {"driver": "memory", "path": path}
    bucket, _, path = path.partition("/")
    if scheme == "gs":
      return {
        "driver": "gcs",
        "bucket": bucket,
        "path": path,
        "gcs_request_retries": _RETRIES,
      }
    spec = {
      "driver": "s3",
      "bucket": bucket,
      "path": path,
      "s3_request_retries": _RETRIES,
    }
    if "AWS_ACCESS_KEY_ID" in os.environ:
      # Other sources of credentials log a line each where they are missing.
      spec["aws_credentials"] = {"type": "environment"}
    if self.endpoint:
      region = os.environ.get("AWS_REGION", "us-east-1")
      spec |= {"endpoint": self.endpoint, "aws_region": region}
    return spec

  def wait(self, future: Any, *, size: int = 0) -> Any:
    return future.result(timeout=_SECONDS + size / _BYTES_PER_SECOND)

  @contextlib.contextmanager
  def failures(self, what: str, kept: str = "") -> Iterator[None]:
    try:
      yield
    except InputError:
      raise
    except (TimeoutError, ValueError) as error:
      raise self._failure(what, kept, error) from error

  def _failure(self, what: str, kept: str, error: Exception) -> InputError:
    text = " ".join(str(error).split())
    kept = f"; {kept}" if kept else ""
    if isinstance(error, TimeoutError):
      rule = f"must answer {what} within {_SECONDS:.0f} s"
      remedy = "see whether the server runs, and repeat the same command"
    elif re.search("PERMISSION_DENIED|UNAUTHENTICATED|HTTP code: 40[13]", text):
      rule = f"must permit {what} ({_short(text)})"
      remedy = (
        "correct the credentials of the environment or the bucket's rules"
      )
    elif "NOT_FOUND" in text or "HTTP code: 404" in text:
      rule = f"must exist for {what} ({_short(text)})"
      remedy = "make the bucket, or correct the URL"
    else:
      rule = f"must be reachable for {what} ({_short(text)})"
      remedy = "see whether the server runs, and repeat the same command"
    return InputError("path", self.url, rule, remedy + kept)


@functools.cache
def context() -> Any:
  """TensorStore's resources of this process, such as what memory:// holds."""
  import tensorstore as ts

  return ts.Context()


def _after(prefix: str) -> str:
  """The first string after all that have a prefix; empty for no end."""
  return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""


def _short(text: str) -> str:
  return text if len(text) <= 200 else text[:200] + "..."
