"""The file `metrics.jsonl`: one record per line, chained by checksums.

`sum` is the checksum of a line's record, `after` that of the line before it, so
that a changed byte and a lost, repeated or moved line are detected and named.
The records of other lines are still read. A last line without a line break was
torn by a kill and is dropped.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from saejax import durable

METRICS = "metrics.jsonl"
AFTER = "after"


class Parsed(NamedTuple):
  """The parsed content of a file of records.

  Attributes:
    records: intact records by step, each kind and step once.
    faults: a message for each damaged or misplaced line.
    last: checksum of the last intact line; "" if there is none.
    content: the bytes of the file.
  """

  records: list[dict[str, Any]]
  faults: list[str]
  last: str
  content: bytes


def line(record: Mapping[str, Any], after: str) -> tuple[bytes, str]:
  """Formats a record as a line; returns it and its checksum.

  Args:
    record: the record.
    after: checksum of the line before.
  """
  sealed = durable.seal({**record, AFTER: after})
  text = json.dumps(sealed, allow_nan=False) + "\n"
  return text.encode(), sealed[durable.SUM]


def parse(path: pathlib.Path) -> Parsed:
  """Parses the records of a file; a missing file has none.

  Args:
    path: the file.

  Raises:
    OSError: the file cannot be read.
  """
  content = path.read_bytes() if path.exists() else b""
  found: dict[tuple[Any, Any], dict[str, Any]] = {}
  faults, last = [], ""
  for number, text in enumerate(content.split(b"\n")[:-1], 1):
    record = _whole(text)
    if record is None:
      faults.append(f"line {number} is damaged")
      continue
    if record[AFTER] != last:
      faults.append(f"line {number} does not follow the line before it")
    last = record[durable.SUM]
    found.setdefault((record["kind"], record["step"]), record)
  records = sorted(found.values(), key=lambda r: r["step"])
  if not records and not faults:
    faults.append("it holds no record")
  total = records[-1].get("total_steps") if records else None
  if total and records[-1]["step"] < total:
    end = records[-1]["step"]
    faults.append(f"the records end at step {end:,} of {total:,}")
  return Parsed(records, faults, last, content)


def cut(path: pathlib.Path, step: int) -> Parsed:
  """Removes records after a step, by an atomic and durable replacement.

  Args:
    path: the file.
    step: last step to keep.

  Returns:
    The remaining records, with the faults of the file before, except those of
    its end.
  """
  before = parse(path)
  kept, left, last = [], [], ""
  for record in before.records:
    if record["step"] <= step:
      plain = {k: v for k, v in record.items() if k not in (AFTER, durable.SUM)}
      text, last = line(plain, last)
      kept.append(record)
      left.append(text)
  content = b"".join(left)
  if content != before.content:
    durable.write_file(path, content, field="run_dir")
  faults = [fault for fault in before.faults if fault.startswith("line ")]
  return Parsed(kept, faults, last, content)


def said(path: pathlib.Path, faults: list[str]) -> str:
  """Formats the faults of a file as one line.

  Args:
    path: the file.
    faults: the faults.
  """
  more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
  return f"{path}: {faults[0]}{more}; damaged records are left out"


def _whole(text: bytes) -> dict[str, Any] | None:
  """The record of a line; None where it is damaged."""
  try:
    record = json.loads(text)
  except (ValueError, RecursionError):
    return None
  if not isinstance(record, dict) or not durable.is_sealed(record):
    return None
  return record
