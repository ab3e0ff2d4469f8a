"""Corpora: ordered documents, read lazily, identified by their content.

A corpus is indexed in one streaming pass that stores a digest and a place for
each document and no text. Documents are ordered by digest. This order is
deterministic, does not depend on file names, mixes the sources of a corpus, and
puts exact duplicates next to each other; the first of them is kept.

The digest alone assigns a document to the training or the held-out part, so
that the part of a document does not change when the corpus grows.
"""

import array
import dataclasses
import hashlib
import itertools
import json
import pathlib
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from saejax.data.text import formats, id_arrays, mixes, records, rules, sources
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
    digests: SHA-256 of each document, in order, [documents, 32] uint8.
    places: argument of `source.read` for each document, [documents] int64.
    lengths: characters of each document, or its ids, [documents] int64.
    details: further identity of the corpus, for `describe`.
    highest: highest token id where documents are token ids, -1 if there are
      none; None where documents are texts.
  """

  name: str
  source: sources.Source
  digests: np.ndarray
  places: np.ndarray
  lengths: np.ndarray
  details: dict[str, Any]
  highest: int | None = None

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, index: int) -> str:
    document = self._read(index)
    if isinstance(document, str):
      return document
    return " ".join(map(str, document.tolist()))

  def _read(self, index: int) -> sources.Document:
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

    Where documents are token ids, a token that the corpus excludes from the rows
    is ~id, see `rules.shown`.

    Args:
      index: number of the document.
      encode: encodes a text; not used where documents are token ids.
    """
    document = self._read(index)
    if self.highest is not None:
      return _ids(document)
    return encode(str(document))

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
      - "hf:NAME:CONFIG:SPLIT:first=N": its first N documents, streamed, for
        datasets that are too large for the disk;
      - "ids:FILE": token ids written by `write_ids`, which are not encoded, or
        an array of ids, see `id_arrays`;
      - "mix:0.7*CORPUS,0.3*CORPUS": several of these, see `mixes`.
    field: name of the text field, for JSON lines and Hugging Face datasets.
    skip_null: whether to leave out documents whose field is null.

  Raises:
    InputError: there are no documents, a file is not text, a document does not
      have the field or has null in it, or a mix has a weight that is not
      positive.
  """
  if corpus.startswith(mixes.PREFIX):
    return _mix(corpus, field, skip_null)
  details: dict[str, Any] = {}
  name = pathlib.Path(corpus).name
  document = records.Text(field, skip_null)
  if corpus == "python-docs":
    source = sources.PythonDocs()
    details = {"python": platform.python_version()}
  elif corpus.startswith(IDS):
    source = id_arrays.IdArrays(corpus.removeprefix(IDS))
    if not source.is_binary:
      source = formats.Files(source.paths, records.token_ids, all_lines=True)
    details = {"ids": True}
  elif corpus.startswith("hf:"):
    source, name = sources.HuggingFace(corpus, document), corpus
    details = {"field": field}
  else:
    source = formats.Files(formats.paths(corpus), document)
    details = {"field": field} if source.has_lines else {}
  return _index(name, source, details)


def write_ids(
  path: str | pathlib.Path,
  documents: Iterable[Sequence[int] | np.ndarray],
  *,
  rows: Iterable[Sequence[bool] | np.ndarray] | None = None,
) -> str:
  """Writes documents of token ids, such as a model's own samples.

  The file has one object {"ids": [...]} per line, with "rows": [0, 1, ...] where
  rows are given.

  Args:
    path: the file.
    documents: ids of each document, without the special tokens that the harvest
      adds to each window.
    rows: which tokens of each document may be rows, such as an assistant's, see
      `turns.tokens`; None for all.

  Returns:
    The name of the corpus, "ids:FILE".

  Raises:
    ValueError: rows and documents differ in number or length.
  """
  with open(path, "w", encoding="utf-8") as file:
    kept = itertools.repeat(None) if rows is None else rows
    for ids, own in zip(documents, kept, strict=rows is not None):
      record: dict[str, list[int]] = {"ids": [int(i) for i in ids]}
      if own is not None:
        record["rows"] = [int(bool(i)) for i in own]
        if len(record["rows"]) != len(record["ids"]):
          raise ValueError(
            f"rows must have {len(record['ids'])} entries as its document, got "
            f"{len(record['rows'])}"
          )
      file.write(json.dumps(record) + "\n")
  return f"{IDS}{path}"


def _mix(corpus: str, field: str, skip_null: bool) -> Corpus:
  """Several corpora in turn, see `mixes`."""
  weights, names = zip(*mixes.parse(corpus), strict=True)
  parts = [documents(name, field=field, skip_null=skip_null) for name in names]
  highest = [part.highest for part in parts]
  known = [value for value in highest if value is not None]
  if known and len(known) < len(parts):
    raise InputError(
      "harvest.corpus",
      corpus,
      "must be of texts or of token ids, and has both",
      "encode the texts, or mix others",
    )
  kept = mixes.unique([part.digests for part in parts])
  rows = [np.flatnonzero(own) for own in kept]
  lengths = [part.lengths[own] for part, own in zip(parts, rows, strict=True)]
  of, number = mixes.order(lengths, weights)
  of_part = lambda name: np.concatenate(
    [getattr(part, name)[own] for part, own in zip(parts, rows, strict=True)]
  )
  starts = np.cumsum([0, *map(len, rows)])[of]
  at = starts + number
  if not len(at):
    raise _no_documents(corpus)
  sources_ = [part.source for part in parts]
  return Corpus(
    name="mix",
    source=mixes.Mixed(sources_, of, of_part("places")[at]),
    digests=of_part("digests")[at],
    places=np.arange(len(at), dtype=np.int64),
    lengths=of_part("lengths")[at],
    details={
      "mix": [
        {"weight": weight, **part.describe()}
        for weight, part in zip(weights, parts, strict=True)
      ]
    },
    highest=max(known) if known else None,
  )


def _index(
  name: str, source: sources.Source, details: dict[str, Any]
) -> Corpus:
  digests, places = bytearray(), array.array("q")
  lengths = array.array("q")
  highest = -1 if details.get("ids") else None
  for place, document in source.texts():
    digests += _digest(document)
    places.append(place)
    if highest is not None:
      document = _ids(document)
      highest = max(highest, int(rules.shown(document).max(initial=-1)))
    lengths.append(len(document))
  if not places:
    raise _no_documents(name)
  # One 32-byte string per row, which compares as the digest does.
  flat = np.frombuffer(bytes(digests), "V32").reshape(-1)
  keys = np.frombuffer(bytes(digests), ">u8").reshape(-1, 4)
  order = np.lexsort([keys[:, i] for i in (3, 2, 1, 0)])
  flat = flat[order]
  first = np.ones(len(flat), bool)
  first[1:] = flat[1:] != flat[:-1]
  return Corpus(
    name=name,
    source=source,
    digests=flat[first].view(np.uint8).reshape(-1, 32),
    places=np.asarray(places, np.int64)[order][first],
    lengths=np.asarray(lengths, np.int64)[order][first],
    details=details,
    highest=highest,
  )


def _no_documents(name: str) -> InputError:
  return InputError(
    "harvest.corpus",
    name,
    "must have at least one document",
    "give a folder, glob, .jsonl file or dataset that is not empty",
  )


def _ids(document: sources.Document) -> np.ndarray:
  """Ids of a document of ids, which JSON lines give as text."""
  if isinstance(document, str):
    return np.asarray(document.split(), np.int32)
  return document


def _digest(document: sources.Document) -> bytes:
  if isinstance(document, np.ndarray):  # many: text would take 20 times longer
    return hashlib.sha256(document.astype("<i4").tobytes()).digest()
  # JSON may have lone surrogates, which strict UTF-8 cannot encode.
  return hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()


def _is_held_out(digests: np.ndarray, fraction: float) -> np.ndarray:
  # The last eight bytes, so that order (first bytes) and part are independent.
  tail = np.ascontiguousarray(digests[:, 24:]).view(">u8")[:, 0]
  return tail.astype(np.float64) / 2.0**64 < fraction
