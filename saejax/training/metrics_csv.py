"""The file `metrics.csv`: the training metrics as a table.

  step,tokens,seconds,member,loss,l0,dead
  10,5120,3.2,k8-seed0,0.21,8.0,0.0

One row per logged step and member, the columns in the order in which metrics
first occur. A metric that a member does not have is an empty cell; values that
are not finite are "nan", "inf" and "-inf", as pandas and NumPy read them.

`metrics.jsonl` holds the same values with checksums. The table is made from it
whenever a run is opened, so that a torn row or one that a resumed run writes
again does not outlive the kill.
"""

import csv
import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from saejax import durable

TABLE = "metrics.csv"
KIND = "train"  # of the records that are in the table
_FIRST = ("step", "tokens", "seconds", "member")


class CsvFile:
  """The table of a run, to which records are appended.

  Args:
    path: the file; replaced, atomically.
    records: records so far, with values as floats; other kinds than "train" are
      left out.

  Raises:
    InputError, OSError: the disk is full or the file not writable.
  """

  def __init__(self, path: pathlib.Path, records: Iterable[Mapping[str, Any]]):
    self._path = path
    self._names: list[str] = []
    rows = [row for record in records for row in _rows(record)]
    self._replace(rows)

  def add(self, record: Mapping[str, Any]) -> None:
    """Appends the rows of a record; one that is not of training has none.

    Args:
      record: the record, with values as floats.

    Raises:
      InputError, OSError: as the class.
    """
    rows = _rows(record)
    if any(name not in self._names for row in rows for name in row):
      with open(self._path, newline="") as file:
        before = list(csv.DictReader(file))
      self._file.close()
      self._replace([*before, *rows])
      return
    data = _text(self._names, rows).encode()
    while data:  # an unbuffered write may take only a part
      data = data[self._file.write(data) :]

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the table anew, with the columns of these rows."""
    self._names = list(dict.fromkeys([*_FIRST, *(n for r in rows for n in r)]))
    head = dict(zip(self._names, self._names, strict=True))
    text = _text(self._names, [head, *rows])
    durable.write_file(self._path, text.encode(), field="run_dir")
    self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115


def _rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The rows of a record, one per member."""
  if record["kind"] != KIND:
    return []
  first = {
    "step": record["step"],
    "tokens": record["tokens"],
    "seconds": record["timing"]["seconds"],
  }
  return [
    {**first, "member": member, **scalars}
    for member, scalars in record["members"].items()
  ]


def _text(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
  out = io.StringIO()
  csv.DictWriter(out, names, lineterminator="\n").writerows(rows)
  return out.getvalue()
