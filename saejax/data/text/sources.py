"""Sources of texts: the Python documentation and datasets; files: see `formats`.

A source yields its texts once, each with a place, and then reads single texts by
place.
"""

import importlib
import os
import pathlib
import sysconfig
from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np

from saejax.data.text import formats, records
from saejax.errors import InputError

Document: TypeAlias = str | np.ndarray  # a text, or ids [T] int32


class Source(Protocol):
  """A source of the documents of a corpus."""

  def texts(self) -> Iterator[tuple[int, Document]]:
    """Yields every document once, as (place, document)."""
    ...

  def read(self, place: int) -> Document:
    """Reads a document.

    Args:
      place: its place, from `texts`.
    """
    ...


# Tests, installed packages, and the file of the topics, which are read singly.
_NOT_DOCS = {
  "test",
  "tests",
  "idle_test",
  "site-packages",
  "dist-packages",
  "pydoc_data",
}


class PythonDocs:
  """The modules of the standard library, then pydoc's topics by name."""

  def __init__(self):
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    paths = []
    for folder, inside, names in os.walk(root):
      inside[:] = [name for name in inside if name not in _NOT_DOCS]
      paths += [
        pathlib.Path(folder, name) for name in names if name.endswith(".py")
      ]
    self._paths = sorted(paths)
    topics = importlib.import_module("pydoc_data.topics").topics
    self._topics = [topics[name] for name in sorted(topics)]

  def texts(self) -> Iterator[tuple[int, str]]:
    """Yields every document once, as (place, text)."""
    for place in range(len(self._paths) + len(self._topics)):
      yield place, self.read(place)

  def read(self, place: int) -> str:
    """Reads a document, see `Source.read`."""
    if place >= len(self._paths):
      return self._topics[place - len(self._paths)]
    return formats.text(self._paths[place])


class HuggingFace:
  """A Hugging Face dataset, memory-mapped; the place is the row.

  With a limit it is streamed, in its order, up to this many documents, whose
  texts are kept in a temporary file; the place is the offset in it.

  Args:
    corpus: "hf:NAME", "hf:NAME:CONFIG" or "hf:NAME:CONFIG:SPLIT", and
      ":first=LIMIT" behind it where it is streamed.
    document: extracts the document of a record.

  Raises:
    InputError: datasets is not installed, the dataset cannot be loaded, or the
      limit is no number.
  """

  def __init__(self, corpus: str, document: records.Document):
    parts = corpus.removeprefix("hf:").split(":")
    self._limit: int | None = None
    if parts[-1].startswith("first="):
      self._limit = _limit(corpus, parts.pop().removeprefix("first="))
    name, config, part = (parts + ["", ""])[:3]
    self._name, self._document = corpus, document
    self._spool: formats.Spool | None = None
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
        name,
        config or None,
        split=part or "train",
        streaming=self._limit is not None,
      )
    except Exception as error:  # the hub raises errors of many packages
      raise self._unloaded(error) from error

  def texts(self) -> Iterator[tuple[int, str]]:
    """Yields every document once, as (place, text)."""
    left = self._limit
    rows = enumerate(self._records())
    while left is None or left > 0:
      place, record = next(rows, (0, None))
      if record is None:
        return
      text = self._document(record, f"row {place} of {self._name}")
      if text is None:
        continue
      if left is not None:
        self._spool = self._spool or formats.Spool()
        left, place = left - 1, self._spool.add(text)
      yield place, text

  def _records(self) -> Iterator[Any]:
    rows = iter(self._rows)
    while True:
      try:
        yield next(rows)
      except StopIteration:
        return
      except Exception as error:  # of the network, while streaming
        raise self._unloaded(error) from error

  def read(self, place: int) -> str:
    """Reads a document, see `Source.read`."""
    if self._spool is not None:
      return self._spool.read(place)
    return self._document(self._rows[place], f"row {place}") or ""

  def _unloaded(self, error: Exception) -> InputError:
    return InputError(
      "harvest.corpus",
      self._name,
      f"must be a dataset that can be loaded ({type(error).__name__}: {error})",
      "correct hf:NAME:CONFIG:SPLIT, or check the network",
    )


def _limit(corpus: str, number: str) -> int:
  if not number.isdecimal() or int(number) < 1:
    raise InputError(
      "harvest.corpus",
      corpus,
      f"must have a number of documents of at least 1, and has {number!r}",
      "write hf:NAME:CONFIG:SPLIT:first=100000",
    )
  return int(number)
