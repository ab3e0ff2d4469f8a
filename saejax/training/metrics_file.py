"""`metrics.jsonl`: records in lines, each with a checksum and a link.

`sum` is the checksum of a line's record, `after` that of the line before it, so
that a changed byte and a line lost, doubled or moved are found and named. The
records of other lines are read all the same. A last line without its end was
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
  """What a file of records holds.

  Attributes:
    records: the whole ones by step, each kind and step once.
    faults: a line for each that is damaged or out of place.
    last: checksum of the last whole line; "" where there is none.
    content: the bytes of the file.
  """

  records: list[dict[str, Any]]
  faults: list[str]
  last: str
  content: bytes


def line(record: Mapping[str, Any], after: str) -> tuple[bytes, str]:
  """The line of a record, and its checksum."""
  sealed = durable.seal({**record, AFTER: after})
  text = json.dumps(sealed, allow_nan=False) + "\n"
  return text.encode(), sealed[durable.SUM]


def parse(path: pathlib.Path) -> Parsed:
  """The records of a file; none where it is missing.

  Raises:
    OSError: it cannot be read.
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
  """Leaves the records up to a step, by a durable replacement.

  Returns:
    What is left. Its faults are those of the file as it was, but for its end.
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
  """The faults of a file in one line."""
  more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
  return f"{path}: {faults[0]}{more}; records that are not whole are left out"


def _whole(text: bytes) -> dict[str, Any] | None:
  """The record of a line; None where it is not as it was written."""
  try:
    record = json.loads(text)
  except (ValueError, RecursionError):
    return None
  if not isinstance(record, dict) or not durable.is_sealed(record):
    return None
  return record
