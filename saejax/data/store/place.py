"""Where a store lies: a local folder, or a prefix in an object store by URL.

Both hold named objects that appear whole or not at all. `at` gives the place of
a path, or of a URL `s3://BUCKET/PATH`, `gs://BUCKET/PATH`, `memory://PATH`.
"""

import atexit
import contextlib
import dataclasses
import errno
import os
import pathlib
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

from saejax import durable
from saejax.data.store.objects import Objects as Objects
from saejax.data.store.objects import context as context
from saejax.errors import InputError

KEPT = "finished buckets are kept"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
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
    path = self.folder / name
    with self._draft(name, content) as draft:
      try:
        os.link(draft, path)
      except FileExistsError:
        return False
      except OSError as error:
        if error.errno not in _NO_LINKS:
          raise
        if path.exists():
          return False
        os.replace(draft, path)  # on a file system without hard links
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
