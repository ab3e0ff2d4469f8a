"""Where a store lies: a local folder, or a prefix in an object store by URL.

Both hold named objects that appear whole or not at all. `at` gives the place of
a path, or of a URL `s3://BUCKET/PATH`, `gs://BUCKET/PATH`, `memory://PATH`.
"""

import atexit
import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

from saejax import durable
from saejax.errors import InputError

KEPT = "finished buckets are kept"
_SECONDS = 30.0  # an object store that answers nothing for so long is dead
_BYTES_PER_SECOND = 1e6  # slowest transfer that is waited for
# TensorStore's own retries would go on for over a minute.
_RETRIES = {"max_retries": 3, "initial_delay": "100ms", "max_delay": "500ms"}
_FEW = 64  # objects that are looked for one by one, instead of in a listing
_DRIVERS = ("s3", "gs", "memory")


class Place(Protocol):
  """A folder of named objects; `str` is its path or URL."""

  @property
  def name(self) -> str:
    """The last part of the path."""
    ...

  def __truediv__(self, name: str) -> "Place":
    """The folder or object of this name."""
    ...

  def read(self, names: Iterable[str]) -> dict[str, bytes]:
    """Reads objects together; those that do not exist are left out.

    Raises:
      InputError: one cannot be read.
    """
    ...

  def write(self, name: str, content: bytes) -> None:
    """Writes or replaces an object, atomically and durably."""
    ...

  def add(self, name: str, content: bytes) -> bool:
    """Writes an object if there is none; returns whether there was none."""
    ...

  def remove(self, name: str) -> None:
    """Removes an object, if it is there."""
    ...

  def names(self, under: str = "") -> list[str]:
    """The names of all objects below a folder, sorted."""
    ...

  def fault(self, sizes: Mapping[str, int | None]) -> tuple[str, str] | None:
    """Looks for objects and compares their sizes, where these can be seen.

    Args:
      sizes: size by name; None where it is not known.

    Returns:
      The first object that is not as it should be, and what is wrong with it.
    """
    ...

  def kvstore(self, name: str) -> dict[str, Any]:
    """TensorStore's description of a folder."""
    ...

  def wait(self, future: Any, *, size: int = 0) -> Any:
    """The result of one of TensorStore's futures.

    Args:
      future: what to wait for.
      size: its bytes, which the deadline of an object store grows with.
    """
    ...

  def failures(
    self, what: str, kept: str = ""
  ) -> contextlib.AbstractContextManager[None]:
    """Turns the errors of writing into an InputError.

    Args:
      what: what is being written.
      kept: the part of the work that is kept; ends the remedy.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Local:
  """A folder on a disk; a `Place`.

  Attributes:
    folder: its path.
  """

  folder: pathlib.Path

  def __str__(self) -> str:
    return str(self.folder)

  def __truediv__(self, name: str) -> "Local":
    return Local(self.folder / name)

  @property
  def name(self) -> str:
    return self.folder.name

  def read(self, names: Iterable[str]) -> dict[str, bytes]:
    found = {}
    for name in names:
      try:
        found[name] = (self.folder / name).read_bytes()
      except (FileNotFoundError, NotADirectoryError):
        continue
      except OSError as error:
        rule = f"cannot be read ({error.strerror})"
        remedy = "restore it from a copy, or correct its permissions"
        raise InputError("path", self.folder / name, rule, remedy) from error
    return found

  def write(self, name: str, content: bytes) -> None:
    with self._draft(name, content) as draft:
      os.replace(draft, self.folder / name)

  def add(self, name: str, content: bytes) -> bool:
    with self._draft(name, content) as draft:
      try:
        os.link(draft, self.folder / name)
      except FileExistsError:
        return False
    return True

  @contextlib.contextmanager
  def _draft(self, name: str, content: bytes) -> Iterator[pathlib.Path]:
    """A synced file beside the one of a name, which gets that name."""
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes that write the same store have drafts of their own.
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
      with open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      yield draft
    finally:
      with contextlib.suppress(OSError):
        draft.unlink(missing_ok=True)
    durable.sync_folder(path.parent)

  def remove(self, name: str) -> None:
    (self.folder / name).unlink(missing_ok=True)

  def names(self, under: str = "") -> list[str]:
    files = (self.folder / under).rglob("*")
    return sorted(
      str(path.relative_to(self.folder)) for path in files if path.is_file()
    )

  def fault(self, sizes: Mapping[str, int | None]) -> tuple[str, str] | None:
    for name, size in sizes.items():
      file = self.folder / name
      if not file.is_file():
        return name, "the file is missing"
      if size is not None and file.stat().st_size != size:
        return name, f"the file must have {size} bytes"
    return None

  def kvstore(self, name: str) -> dict[str, Any]:
    path = (self.folder / name).resolve()
    return {"driver": "file", "path": str(path)}

  def wait(self, future: Any, *, size: int = 0) -> Any:
    return future.result()

  def failures(
    self, what: str, kept: str = ""
  ) -> contextlib.AbstractContextManager[None]:
    return durable.disk_errors(self.folder, what=what, kept=kept)


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


Path: TypeAlias = str | os.PathLike[str] | Local | Objects


def at(path: Path, *, endpoint: str | None = None) -> Local | Objects:
  """The place of a path or URL.

  Args:
    path: a folder, a URL, or a place.
    endpoint: URL of a server that speaks S3; by default that of the environment
      variable AWS_ENDPOINT_URL, and without it that of AWS.

  Raises:
    InputError: the scheme of the URL is another, or it has no path.

  >>> str(at("s3://bucket/rows/"))
  's3://bucket/rows'
  """
  if isinstance(path, Local | Objects):
    return path
  text = os.fspath(path)
  scheme, separator, rest = text.partition("://")
  if not separator:
    return Local(pathlib.Path(text))
  if scheme == "file":
    return Local(pathlib.Path(urllib.parse.unquote(rest)))
  rest = rest.strip("/")
  if scheme not in _DRIVERS or not rest:
    raise InputError(
      "path",
      text,
      "must be a folder or a URL s3://BUCKET/PATH, gs://BUCKET/PATH, "
      "file:///PATH or memory://PATH",
      "correct it",
    )
  if endpoint is None:
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
  return Objects(f"{scheme}://{rest}", endpoint if scheme == "s3" else "")


@functools.cache
def context() -> Any:
  """TensorStore's resources of this process, such as what memory:// holds."""
  import tensorstore as ts

  return ts.Context()


def one(place: Place, name: str) -> bytes | None:
  """Reads one object; None where there is none.

  Args:
    place: where it is.
    name: its name.
  """
  return place.read([name]).get(name)


def absolute(place: Local | Objects) -> Local | Objects:
  """The place with a path from the root.

  Args:
    place: the place.
  """
  if isinstance(place, Local):
    return Local(place.folder.absolute())
  return place


def local(place: Place, name: str) -> pathlib.Path | None:
  """A folder on this machine with the objects of a folder; None without any.

  It is the folder itself, or a copy that lasts as long as the process.

  Args:
    place: where the folder is.
    name: its name.
  """
  if isinstance(place, Local):
    folder = place.folder / name
    return folder if folder.is_dir() else None
  files = place.read(place.names(name))
  if not files:
    return None
  copy = pathlib.Path(tempfile.mkdtemp(prefix="saejax-"))
  atexit.register(shutil.rmtree, copy, ignore_errors=True)
  for file, content in files.items():
    (copy / file).parent.mkdir(parents=True, exist_ok=True)
    (copy / file).write_bytes(content)
  return copy / name


def write_all(place: Place, files: Mapping[str, bytes]) -> None:
  """Writes objects that are not there with this content.

  Args:
    place: where.
    files: contents by name, in the order of writing.
  """
  there = place.read(files)
  for name, content in files.items():
    if there.get(name) != content:
      place.write(name, content)


def _after(prefix: str) -> str:
  """The first string after all that have a prefix; empty for no end."""
  return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""


def _short(text: str) -> str:
  return text if len(text) <= 200 else text[:200] + "..."
