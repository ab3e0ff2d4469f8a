"""Where texts lie: files, the Python documentation, JSON lines, data sets.

A source goes through its texts once, naming a place for each, and afterwards
reads single texts by place.
"""

import glob
import importlib
import json
import os
import pathlib
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from saejax.errors import InputError


class Source(Protocol):
  """Where the texts of a corpus lie."""

  def texts(self) -> Iterator[tuple[int, str]]:
    """Every document once, with the place from which `read` finds it again."""
    ...

  def read(self, place: int) -> str:
    """The document at a place."""
    ...


def paths(corpus: str) -> list[pathlib.Path]:
  """The files of a file, folder or glob, sorted; hidden ones left out."""
  path = pathlib.Path(corpus)
  if path.is_file():
    return [path]
  if path.is_dir():
    found = path.rglob("*")
    keep = [
      p
      for p in found
      if not any(part.startswith(".") for part in p.relative_to(path).parts)
    ]
  else:
    keep = [pathlib.Path(p) for p in glob.glob(corpus, recursive=True)]
  files = sorted(p for p in keep if p.is_file())
  if not files:
    raise InputError(
      "harvest.corpus",
      corpus,
      "must be python-docs, a folder or glob of text files, a .jsonl file or "
      "hf:NAME, and name at least one file",
      "correct the path or the name",
    )
  return files


class Files:
  """Text files, one document a file; the place is the index of the path."""

  def __init__(self, paths: list[pathlib.Path]):
    self.paths = paths

  def texts(self) -> Iterator[tuple[int, str]]:
    for place in range(len(self.paths)):
      yield place, self.read(place)

  def read(self, place: int) -> str:
    path = self.paths[place]
    try:
      return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
      raise InputError(
        "harvest.corpus",
        path,
        f"must be UTF-8 text (byte {error.start} is not)",
        "use a glob that picks the text files, such as 'folder/**/*.txt'",
      ) from error
    except OSError as error:
      raise _unreadable(path, error) from error


def _unreadable(path: pathlib.Path, error: OSError) -> InputError:
  return InputError(
    "harvest.corpus",
    path,
    f"must be readable ({error.strerror})",
    "correct the path or its permissions",
  )


# Tests, installed packages, and the file of the topics, which follow one by one.
_NOT_DOCS = {
  "test",
  "tests",
  "idle_test",
  "site-packages",
  "dist-packages",
  "pydoc_data",
}


class PythonDocs(Files):
  """The standard library's modules, then pydoc's topics by name."""

  def __init__(self):
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    paths = []
    for folder, inside, files in os.walk(root):
      inside[:] = [name for name in inside if name not in _NOT_DOCS]
      paths += [
        pathlib.Path(folder, name) for name in files if name.endswith(".py")
      ]
    super().__init__(sorted(paths))
    topics = importlib.import_module("pydoc_data.topics").topics
    self._topics = [topics[name] for name in sorted(topics)]

  def texts(self) -> Iterator[tuple[int, str]]:
    for place in range(len(self.paths) + len(self._topics)):
      yield place, self.read(place)

  def read(self, place: int) -> str:
    if place >= len(self.paths):
      return self._topics[place - len(self.paths)]
    return super().read(place)


class JsonLines:
  """One JSON object a line; the place is the byte offset of the line.

  Args:
    path: the file.
    field: of each object.
    value: takes a document out of an object; the text in the field.
  """

  def __init__(
    self,
    path: pathlib.Path,
    field: str,
    value: Callable[[Any, str, str], str] | None = None,
  ):
    self._path, self._field = path, field
    self._value = value or _field

  def texts(self) -> Iterator[tuple[int, str]]:
    place = 0
    with self._open() as file:
      for number, line in enumerate(file, 1):
        if line.strip():
          yield place, self._text(line, f"line {number}")
        place += len(line)

  def read(self, place: int) -> str:
    with self._open() as file:
      file.seek(place)
      return self._text(file.readline(), f"the line at byte {place}")

  def _open(self) -> BinaryIO:
    try:
      return self._path.open("rb")
    except OSError as error:
      raise _unreadable(self._path, error) from error

  def _text(self, line: bytes, where: str) -> str:
    try:
      record = json.loads(line)
    except ValueError as error:
      raise InputError(
        "harvest.corpus",
        self._path,
        f"{where} must be a JSON object ({error})",
        "correct the file",
      ) from error
    return self._value(record, self._field, f"{where} of {self._path.name}")


class HuggingFace:
  """A Hugging Face dataset, memory-mapped; the place is the row."""

  def __init__(self, corpus: str, field: str):
    name, config, part = (corpus.removeprefix("hf:").split(":") + ["", ""])[:3]
    self._name, self._field = corpus, field
    try:
      datasets = importlib.import_module("datasets")
    except ImportError as error:
      raise InputError(
        "harvest.corpus",
        corpus,
        "needs the package datasets, which is not installed",
        "run: pip install 'saejax[datasets]'",
      ) from error
    try:
      self._rows = datasets.load_dataset(
        name, config or None, split=part or "train"
      )
    except Exception as error:  # the hub raises errors of many packages
      raise InputError(
        "harvest.corpus",
        corpus,
        f"must be a data set that can be loaded ({type(error).__name__}: "
        f"{error})",
        "correct the name, or hf:NAME:CONFIG:SPLIT, or the network",
      ) from error

  def texts(self) -> Iterator[tuple[int, str]]:
    for place, record in enumerate(self._rows):
      yield place, _field(record, self._field, f"row {place} of {self._name}")

  def read(self, place: int) -> str:
    return _field(self._rows[place], self._field, f"row {place}")


def _field(record: Any, field: str, where: str) -> str:
  value = record.get(field) if isinstance(record, dict) else None
  if not isinstance(value, str):
    known = sorted(record) if isinstance(record, dict) else "no object"
    raise InputError(
      "harvest.field",
      field,
      f"must name a text in every document; {where} has {known}",
      "set harvest.field to the field that holds the text",
    )
  return value


def token_ids(record: Any, field: str, where: str) -> str:
  """A list of token ids as text: numbers with blanks between them."""
  value = record.get(field) if isinstance(record, dict) else None
  whole = isinstance(value, list) and all(
    type(i) is int and 0 <= i < 2**31 for i in value
  )
  if not isinstance(value, list) or not whole:
    raise InputError(
      "harvest.corpus",
      where,
      f"every line must be an object whose {field!r} is a list of token ids",
      "write the file with data.text.corpus.write_ids",
    )
  return " ".join(map(str, value))
