"""Sources of texts: the Python documentation and datasets; files: see `formats`.

A source yields its texts once, each with a place, and then reads single texts by
place.
"""

import importlib
import os
import pathlib
import sysconfig
from collections.abc import Iterator
from typing import Protocol

from saejax.data.text import formats, records
from saejax.errors import InputError


class Source(Protocol):
  """A source of the texts of a corpus."""

  def texts(self) -> Iterator[tuple[int, str]]:
    """Yields every document once, as (place, text)."""
    ...

  def read(self, place: int) -> str:
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

  Args:
    corpus: "hf:NAME", "hf:NAME:CONFIG" or "hf:NAME:CONFIG:SPLIT".
    document: extracts the document of a record.

  Raises:
    InputError: datasets is not installed, or the dataset cannot be loaded.
  """

  def __init__(self, corpus: str, document: records.Document):
    name, config, part = (corpus.removeprefix("hf:").split(":") + ["", ""])[:3]
    self._name, self._document = corpus, document
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
        f"must be a dataset that can be loaded ({type(error).__name__}: "
        f"{error})",
        "correct hf:NAME:CONFIG:SPLIT, or check the network",
      ) from error

  def texts(self) -> Iterator[tuple[int, str]]:
    """Yields every document once, as (place, text)."""
    for place, record in enumerate(self._rows):
      text = self._document(record, f"row {place} of {self._name}")
      if text is not None:
        yield place, text

  def read(self, place: int) -> str:
    """Reads a document, see `Source.read`."""
    return self._document(self._rows[place], f"row {place}") or ""
