"""Corpora: ordered documents, read lazily, identified by their content.

A corpus is indexed in one streaming pass that stores a digest and a place for
each document and no text. Documents are ordered by digest. This order is
deterministic, does not depend on file names, mixes the sources of a corpus, and
puts exact duplicates next to each other; the first of them is kept.

The digest alone assigns a document to the training or the held-out part, so
that the part of a document does not change when the corpus grows.
"""

import dataclasses
import hashlib
import json
import pathlib
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from saejax.data.text import formats, records, sources
from saejax.errors import InputError

TRAIN = "train"
HELD_OUT = "held_out"
IDS = "ids:"  # before the path of a corpus of token ids


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
  """Documents in a fixed order; `corpus[i]` reads document i.

  Attributes:
    name: name given to `documents`, without the folders of a path.
    source: source of the texts.
    digests: SHA-256 of each text, ascending, [documents, 32] uint8.
    places: argument of `source.read` for each document, [documents] int64.
    details: further identity of the corpus, for `describe`.
    highest: highest token id where documents are token ids, -1 if there are
      none; None where documents are texts.
  """

  name: str
  source: sources.Source
  digests: np.ndarray
  places: np.ndarray
  details: dict[str, Any]
  highest: int | None = None

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, index: int) -> str:
    document = self.source.read(int(self.places[index]))
    if _digest(document) != self.digests[index].tobytes():
      raise InputError(
        "harvest.corpus",
        self.name,
        f"document {index} changed while the corpus was in use",
        "do not change the corpus during a run, and run again",
      )
    return document

  def encode(
    self, index: int, encode: Callable[[str], np.ndarray]
  ) -> np.ndarray:
    """Returns the token ids of a document.

    Args:
      index: number of the document.
      encode: encodes a text; not used where documents are token ids.
    """
    if self.highest is None:
      return encode(self[index])
    return np.asarray(self[index].split(), np.int32)

  @property
  def fingerprint(self) -> str:
    """SHA-256 of the documents' digests in order."""
    return hashlib.sha256(self.digests.tobytes()).hexdigest()

  def describe(self) -> dict[str, Any]:
    """Returns the identity of the corpus for a store's metadata."""
    return {
      "name": self.name,
      "documents": len(self),
      "fingerprint": self.fingerprint,
      **self.details,
    }

  def part(self, part: str, held_out_fraction: float) -> np.ndarray:
    """Returns the numbers of the documents in a part.

    Args:
      part: "train" or "held_out".
      held_out_fraction: expected fraction of held-out documents.
    """
    held_out = _is_held_out(self.digests, held_out_fraction)
    return np.flatnonzero(held_out if part == HELD_OUT else ~held_out)


def split(document: str, held_out_fraction: float = 0.1) -> str:
  """Returns the part that a document's hash assigns it to.

  Args:
    document: the text.
    held_out_fraction: expected fraction of held-out documents.

  Returns:
    "train" or "held_out".
  """
  digest = np.frombuffer(_digest(document), np.uint8)[None]
  return HELD_OUT if _is_held_out(digest, held_out_fraction)[0] else TRAIN


def documents(
  corpus: str, *, field: str = "text", skip_null: bool = False
) -> Corpus:
  """Opens a corpus by name.

  Args:
    corpus: one of
      - "python-docs": the standard library of the running Python, without tests
        and installed packages, and its pydoc topics;
      - a folder (all files in it that are not hidden), a glob or a file, with
        one document per line of JSON lines or per UTF-8 text file, see
        `formats`;
      - "hf:NAME", "hf:NAME:CONFIG" or "hf:NAME:CONFIG:SPLIT": a Hugging Face
        dataset;
      - "ids:FILE": token ids written by `write_ids`, which are not encoded.
    field: name of the text field, for JSON lines and Hugging Face datasets.
    skip_null: whether to leave out documents whose field is null.

  Raises:
    InputError: there are no documents, a file is not text, or a document does
      not have the field or has null in it.
  """
  details: dict[str, Any] = {}
  name = pathlib.Path(corpus).name
  document = records.Text(field, skip_null)
  if corpus == "python-docs":
    source = sources.PythonDocs()
    details = {"python": platform.python_version()}
  elif corpus.startswith(IDS):
    paths = formats.paths(corpus.removeprefix(IDS))
    source = formats.Files(paths, records.token_ids, all_lines=True)
    details = {"ids": True}
  elif corpus.startswith("hf:"):
    source, name = sources.HuggingFace(corpus, document), corpus
    details = {"field": field}
  else:
    source = formats.Files(formats.paths(corpus), document)
    details = {"field": field} if source.has_lines else {}
  return _index(name, source, details)


def write_ids(
  path: str | pathlib.Path, documents: Iterable[Sequence[int] | np.ndarray]
) -> str:
  """Writes documents of token ids, such as a model's own samples.

  The file has one object {"ids": [...]} per line.

  Args:
    path: the file.
    documents: ids of each document, without the special tokens that the harvest
      adds to each window.

  Returns:
    The name of the corpus, "ids:FILE".
  """
  with open(path, "w", encoding="utf-8") as file:
    for ids in documents:
      file.write(json.dumps({"ids": [int(i) for i in ids]}) + "\n")
  return f"{IDS}{path}"


def _index(
  name: str, source: sources.Source, details: dict[str, Any]
) -> Corpus:
  digests, places = bytearray(), []
  highest = -1 if details.get("ids") else None
  for place, document in source.texts():
    digests += _digest(document)
    places.append(place)
    if highest is not None:
      highest = max(highest, *map(int, document.split()), -1)
  if not places:
    raise InputError(
      "harvest.corpus",
      name,
      "must have at least one document",
      "give a folder, glob, .jsonl file or dataset that is not empty",
    )
  # One 32-byte string per row, which compares as the digest does.
  flat = np.frombuffer(bytes(digests), "V32").reshape(-1)
  keys = np.frombuffer(bytes(digests), ">u8").reshape(-1, 4)
  order = np.lexsort([keys[:, i] for i in (3, 2, 1, 0)])
  flat, ordered_places = flat[order], np.asarray(places, np.int64)[order]
  first = np.ones(len(flat), bool)
  first[1:] = flat[1:] != flat[:-1]
  return Corpus(
    name=name,
    source=source,
    digests=flat[first].view(np.uint8).reshape(-1, 32),
    places=ordered_places[first],
    details=details,
    highest=highest,
  )


def _digest(document: str) -> bytes:
  # JSON may have lone surrogates, which strict UTF-8 cannot encode.
  return hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()


def _is_held_out(digests: np.ndarray, fraction: float) -> np.ndarray:
  # The last eight bytes, so that order (first bytes) and part are independent.
  tail = np.ascontiguousarray(digests[:, 24:]).view(">u8")[:, 0]
  return tail.astype(np.float64) / 2.0**64 < fraction
