"""Files of a corpus, each read in the format of the file.

  .jsonl, .ndjson   JSON lines: one object, and so one document, per line
  .json             JSON lines if its first line is a whole object, else text
  others            UTF-8 text, one document per file

with .gz or .zst after any of them. Compressed files are decompressed once into a
temporary file that is deleted with the process, because documents are read in
the order of their digests and a compressed file has no random access.
"""

import bisect
import contextlib
import functools
import glob
import gzip
import importlib
import itertools
import json
import os
import pathlib
import struct
import tempfile
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from saejax import durable
from saejax.data.text import records
from saejax.errors import InputError

LINES = (".jsonl", ".ndjson")
PACKED = (".gz", ".zst")
_CHUNK = 1 << 20
_LENGTH = struct.Struct("<Q")


def paths(corpus: str) -> list[pathlib.Path]:
  """Returns the files of a file, folder or glob, sorted, without hidden ones.

  Args:
    corpus: path or glob.

  Raises:
    InputError: there are no files, or a folder cannot be read.
  """
  path = pathlib.Path(corpus).expanduser()
  with _readable(path):
    if path.is_file():
      return [path]
    if path.is_dir():
      matches = list(_below(path))
    else:
      matches = glob.glob(str(path), recursive=True)
    candidates = [pathlib.Path(p) for p in matches]
    # A dangling link is kept, so that reading it raises an error with its name.
    files = sorted(p for p in candidates if p.is_file() or p.is_symlink())
  if not files:
    raise InputError(
      "harvest.corpus",
      corpus,
      "must be python-docs, hf:NAME, or a file, folder or glob with at least one "
      "file",
      "correct the path or the name",
    )
  return files


def _below(folder: pathlib.Path) -> Iterator[str]:
  for where, inside, names in os.walk(folder, onerror=_raise):
    inside[:] = [name for name in inside if not name.startswith(".")]
    yield from (os.path.join(where, n) for n in names if not n.startswith("."))


def _raise(error: OSError) -> None:
  raise error


class Files:
  """Texts in files.

  The place of a text is its byte offset in the concatenation of all files; for
  texts of compressed files it is their offset in the temporary file, which
  follows the others.

  Args:
    paths: the files.
    document: extracts the document of a record, in files of JSON lines.
    all_lines: whether all files are JSON lines, regardless of their names.
  """

  def __init__(
    self,
    paths: Sequence[pathlib.Path],
    document: records.Document,
    *,
    all_lines: bool = False,
  ):
    self._paths, self._document, self._all_lines = paths, document, all_lines
    self._sniffed: dict[pathlib.Path, bool] = {}
    self._spool: Spool | None = None

  @functools.cached_property
  def _starts(self) -> list[int]:
    """Place of each file, and the end; empty files have a place of their own."""
    sizes = []
    for path in self._paths:
      with _readable(path):
        sizes.append(path.stat().st_size + 1)
    return list(itertools.accumulate(sizes, initial=0))

  @functools.cached_property
  def has_lines(self) -> bool:
    """Whether any of the files is JSON lines."""
    return any(self._is_lines(path) for path in self._paths)

  def _is_lines(self, path: pathlib.Path) -> bool:
    name = path.name.lower()
    for suffix in PACKED:
      name = name.removesuffix(suffix)
    if self._all_lines or name.endswith(LINES):
      return True
    if not name.endswith(".json"):
      return False
    if path not in self._sniffed:
      self._sniffed[path] = _begins_with_an_object(path)
    return self._sniffed[path]

  def texts(self) -> Iterator[tuple[int, str]]:
    """Yields every document once, as (place, text)."""
    for path, start in zip(self._paths, self._starts, strict=False):
      packed = path.suffix.lower() in PACKED
      for offset, document in self._texts_of(path):
        yield self._keep(document) if packed else start + offset, document

  def _texts_of(self, path: pathlib.Path) -> Iterator[tuple[int, str]]:
    if not self._is_lines(path):
      yield 0, text(path)
      return
    offset = 0
    for number, line in enumerate(_lines(path), 1):
      if line.strip():
        document = self._parse(line, f"{path} line {number}")
        if document is not None:
          yield offset, document
      offset += len(line)

  def _parse(self, line: bytes, where: str) -> str | None:
    record = durable.parse_json(
      line,
      where,
      kind=object,
      field="harvest.corpus",
      remedy="correct the file",
    )
    return self._document(record, where)

  def _keep(self, text: str) -> int:
    self._spool = self._spool or Spool()
    return self._starts[-1] + self._spool.add(text)

  def read(self, place: int) -> str:
    """Reads a document.

    Args:
      place: its place, from `texts`.

    Raises:
      InputError: the file cannot be read or has changed.
    """
    if place >= self._starts[-1] and self._spool is not None:
      return self._spool.read(place - self._starts[-1])
    number = bisect.bisect_right(self._starts, place) - 1
    path, offset = self._paths[number], place - self._starts[number]
    if not self._is_lines(path):
      return text(path)
    with _readable(path), path.open("rb") as file:
      file.seek(offset)
      line = file.readline()
    # Places of null documents are not given out, so the file has changed; the
    # empty text differs from the digest.
    return self._parse(line, f"{path} at byte {offset}") or ""


class Spool:
  """Texts in an unnamed temporary file; a place is the offset of a text."""

  def __init__(self):
    with self._disk_errors():
      self._file = tempfile.TemporaryFile()  # noqa: SIM115  as long as this
    self._end = 0
    weakref.finalize(self, self._file.close)

  def _disk_errors(self) -> contextlib.AbstractContextManager[None]:
    place = os.environ.get("TMPDIR", "/tmp")
    what = "unpacked texts"
    return durable.disk_errors(place, field="harvest.corpus", what=what)

  def add(self, text: str) -> int:
    """Keeps a text and returns its place.

    Args:
      text: the text.
    """
    content, place = text.encode(), self._end
    with self._disk_errors():
      self._file.write(_LENGTH.pack(len(content)) + content)
      self._file.flush()
    self._end += _LENGTH.size + len(content)
    return place

  def read(self, place: int) -> str:
    """Reads a text.

    Args:
      place: its place, from `add`.
    """
    handle = self._file.fileno()
    (length,) = _LENGTH.unpack(os.pread(handle, _LENGTH.size, place))
    content = b""
    while len(content) < length:  # the system reads 2 GiB at most
      at = place + _LENGTH.size + len(content)
      content += os.pread(handle, length - len(content), at)
    return content.decode()


# --- bytes -------------------------------------------------------------------


def text(path: pathlib.Path) -> str:
  """Reads a text file, decompressed.

  Args:
    path: the file.

  Raises:
    InputError: the file cannot be read or is not UTF-8 text.
  """
  content = b"".join(_chunks(path))
  wrong = content.find(0)  # archives of text files may be valid UTF-8
  try:
    if wrong < 0:
      return content.decode("utf-8")
  except UnicodeDecodeError as error:
    wrong = error.start
  raise InputError(
    "harvest.corpus",
    path,
    f"must be UTF-8 text (byte {wrong} is not)",
    "use a glob that picks the text files, such as 'folder/**/*.txt'",
  )


def _begins_with_an_object(path: pathlib.Path) -> bool:
  """Whether the first line that is not blank is a whole JSON object."""
  with contextlib.closing(_lines(path)) as lines:
    first = next((line for line in lines if line.strip()), b"")
  try:
    return isinstance(json.loads(first), dict)
  except (ValueError, RecursionError):
    return False


def _lines(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the lines of a file with their line ends."""
  rest: list[bytes] = []
  for chunk in _chunks(path):
    *whole, last = chunk.split(b"\n")
    for part in whole:
      yield b"".join((*rest, part, b"\n"))
      rest = []
    rest.append(last)
  if any(rest):
    yield b"".join(rest)


def _chunks(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the decompressed content of a file.

  Raises:
    InputError: the file cannot be read or decompressed.
  """
  suffix = path.suffix.lower()
  unpack = {".gz": _gzip, ".zst": _zstandard}.get(suffix, _plain)
  with _readable(path), path.open("rb") as file:
    yield from unpack(file)


def _plain(file: BinaryIO) -> Iterable[bytes]:
  return iter(lambda: file.read(_CHUNK), b"")


def _gzip(file: BinaryIO) -> Iterable[bytes]:
  unpacked = gzip.GzipFile(fileobj=file)
  return iter(lambda: unpacked.read(_CHUNK), b"")


def _zstandard(file: BinaryIO) -> Iterator[bytes]:
  library = _import_zstandard(file.name)
  # Archives of text are often compressed with windows of 2 GiB.
  unpacker = library.ZstdDecompressor(max_window_size=2**31)
  frame = None
  for chunk in _plain(file):
    while chunk:
      if frame is None or frame.eof:
        frame = unpacker.decompressobj()
      try:
        yield frame.decompress(chunk)
      except library.ZstdError as error:
        raise zlib.error(str(error)) from error
      chunk = frame.unused_data if frame.eof else b""
  if frame is not None and not frame.eof:
    raise EOFError("the file ends inside a frame")


def _import_zstandard(path: str) -> Any:
  try:
    return importlib.import_module("zstandard")
  except ImportError as error:
    raise InputError(
      "harvest.corpus",
      path,
      "needs the package zstandard, which is not installed",
      "run: pip install 'saejax[zstd]'",
    ) from error


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
  """Converts errors of reading and decompressing a file to InputError."""
  try:
    yield
  except OSError as error:
    named = error.filename or path
    raise unreadable(named, error.strerror or str(error)) from error
  except (EOFError, zlib.error) as error:
    raise unreadable(path, str(error)) from error


def unreadable(path: Any, reason: str) -> InputError:
  """Returns the error for a file of a corpus that cannot be read.

  Args:
    path: the file.
    reason: description of the failure.
  """
  return InputError(
    "harvest.corpus",
    path,
    f"must be readable ({reason})",
    "correct the path, its permissions or the file",
  )
