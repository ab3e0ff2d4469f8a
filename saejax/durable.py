"""Small files that results depend on: written durably, read strictly.

Writes are atomic, and synced before a file gets its name. JSON is canonical
when written; reading raises a one-line error where it is damaged, nested too
deep or of another type. Each line of a journal carries a checksum, which may
depend on the lines before.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

from saejax.errors import InputError

SUM = "sum"  # name of a line's own checksum
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


# --- writing -----------------------------------------------------------------


def write_file(
  path: str | os.PathLike[str], content: bytes, *, field: str = "path"
) -> None:
  """Writes or replaces a file, atomically and durably.

  Args:
    path: the file; its folder is made where it is missing.
    content: the bytes.
    field: the setting that errors name, such as "run_dir".

  Raises:
    InputError: the disk is full or not writable; an earlier file is unchanged.
  """
  with replacing(path, field=field) as file:
    file.write(content)


@contextlib.contextmanager
def replacing(
  path: str | os.PathLike[str], *, field: str = "path"
) -> Iterator[IO[bytes]]:
  """Yields a file to write, which becomes `path` at the end; see `write_file`.

  Args:
    path: the file; its folder is made where it is missing.
    field: the setting that errors name.

  Raises:
    InputError: the disk is full or not writable; an earlier file is unchanged.
  """
  path = pathlib.Path(path)
  # Draft names do not depend on the process: kills leave at most one draft.
  draft = path.with_name(path.name + ".tmp")
  with disk_errors(path.parent, field=field, what=path.name):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(draft, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      os.replace(draft, path)
    except OSError:
      with contextlib.suppress(OSError):
        draft.unlink(missing_ok=True)
      raise
    sync_folder(path.parent)


def sync_file(path: str | os.PathLike[str]) -> None:
  """Makes the bytes of a file durable.

  Args:
    path: the file.
  """
  with open(path, "rb") as file:
    os.fsync(file.fileno())


def sync_folder(path: str | os.PathLike[str]) -> None:
  """Makes new and removed names in a folder durable.

  Args:
    path: the folder.
  """
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


@contextlib.contextmanager
def disk_errors(
  path: str | os.PathLike[str],
  *,
  field: str = "path",
  what: str = "its files",
  kept: str = "",
) -> Iterator[None]:
  """Turns disk errors into an InputError.

  TensorStore reports the system's error as text, Python as OSError.

  Args:
    path: the folder, as the error names it.
    field: the setting that named the folder.
    what: what is being written.
    kept: the part of the work that is kept; ends the remedy.
  """
  try:
    yield
  except OSError as error:
    found = _disk_error(path, field, what, kept, error.errno, error.strerror)
    raise found from error
  except ValueError as error:
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if isinstance(error, InputError) or code is None:
      raise
    number = int(code.group(1))
    text = os.strerror(number)
    raise _disk_error(path, field, what, kept, number, text) from error


def _disk_error(
  path: str | os.PathLike[str],
  field: str,
  what: str,
  kept: str,
  code: int | None,
  text: str | None,
) -> InputError:
  if code in _FULL:
    rule = f"the disk must have room for {what}"
    remedy = "free space or raise the limit, and repeat the same command"
  else:
    rule = f"must be a folder that {what} can be written to"
    remedy = "name another folder or change its permissions"
  kept = f"; {kept}" if kept else ""
  return InputError(field, path, f"{rule} ({text})", remedy + kept)


def size(count: float) -> str:
  """Formats bytes with three digits and a unit, never rounded to 0.

  Args:
    count: number of bytes.

  >>> size(512), size(3_800_000), size(2**40)
  ('512 bytes', '3.80 MB', '1.10 TB')
  """
  at = 0
  while count >= 999.5 and at + 1 < len(_UNITS):
    count, at = count / 1000, at + 1
  digits = 0 if not at or count >= 99.95 else 1 if count >= 9.995 else 2
  return f"{count:.{digits}f} {_UNITS[at]}"


# --- checksums ---------------------------------------------------------------


def canonical(record: Any) -> str:
  """Returns JSON with sorted keys and no blanks, equal for equal records.

  Args:
    record: the record.

  >>> canonical({"b": 1, "a": [2]})
  '{"a":[2],"b":1}'
  """
  return json.dumps(
    record, sort_keys=True, separators=(",", ":"), allow_nan=False
  )


def digest(record: Any) -> str:
  """Returns the SHA-256 of the canonical JSON.

  Args:
    record: the record.
  """
  return hashlib.sha256(canonical(record).encode()).hexdigest()


def checksum(path: str | os.PathLike[str]) -> tuple[int, str]:
  """Computes the size in bytes and the SHA-256 of a file.

  Args:
    path: the file.
  """
  with open(path, "rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
    return file.tell(), found


def seal(record: Mapping[str, Any], before: str = "") -> dict[str, Any]:
  """The record with "sum": SHA-256 of itself and of the sum before it.

  Args:
    record: a line of a journal.
    before: the sum of the line before, for lines that are chained.
  """
  return {**record, SUM: _sum(record, before)}


def is_sealed(record: Mapping[str, Any], before: str = "") -> bool:
  """Returns whether a record has the checksum that `seal` adds.

  Args:
    record: the record, with its checksum.
    before: checksum of the record before it.
  """
  try:
    return record.get(SUM) == _sum(record, before)
  except (ValueError, RecursionError):  # NaN, which is never written
    return False


def _sum(record: Mapping[str, Any], before: str) -> str:
  rest = {name: value for name, value in record.items() if name != SUM}
  return digest([before, rest])


def write_sealed(
  path: str | os.PathLike[str],
  record: Mapping[str, Any],
  *,
  field: str = "path",
) -> None:
  """Writes a JSON file with the checksum of its record, durably; see `seal`.

  Args:
    path: the file.
    record: the record.
    field: name of the setting for the path, for errors.

  Raises:
    InputError: the file cannot be written.
  """
  text = json.dumps(seal(record), indent=2, allow_nan=False) + "\n"
  write_file(path, text.encode(), field=field)


# --- reading -----------------------------------------------------------------


def read_sealed(
  path: str | os.PathLike[str],
  *,
  field: str = "path",
  remedy: str = "restore it from a copy, or make it again",
) -> dict[str, Any]:
  """Reads a record written by `write_sealed`, without its checksum.

  Args:
    path: the file.
    field: name of the setting for the path, for errors.
    remedy: remedy, for errors.

  Raises:
    InputError: as `read_json`, or the record is not the one that was written.
  """
  record = read_json(path, field=field, remedy=remedy)
  if not is_sealed(record):
    rule = "must have the checksum of its content: it was damaged or edited"
    raise InputError(field, path, rule, remedy)
  return {name: value for name, value in record.items() if name != SUM}


def read_json(
  path: str | os.PathLike[str],
  *,
  kind: type = dict,
  field: str = "path",
  remedy: str = "restore it from a copy, or make it again",
) -> Any:
  """Reads a JSON file whose value has the type `kind`.

  Args:
    path: the file.
    kind: dict or list.
    field: the setting that errors name.
    remedy: remedy for a damaged file.

  Raises:
    InputError: it cannot be read, is not JSON, is nested too deep, or is of
      another type.
  """
  try:
    content = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise InputError(
      field, path, f"cannot be read ({error.strerror})", remedy
    ) from error
  return parse_json(content, path, kind=kind, field=field, remedy=remedy)


def parse_json(
  content: bytes | str,
  path: str | os.PathLike[str],
  *,
  kind: type = dict,
  field: str = "path",
  remedy: str = "restore it from a copy, or make it again",
) -> Any:
  """Parses JSON text that was read from a file.

  Args:
    content: the text.
    path: the file, for errors.
    kind: required type of the value.
    field: name of the setting for the path, for errors.
    remedy: remedy, for errors.

  Raises:
    InputError: the text is not JSON, or its value has another type.
  """
  try:
    found = json.loads(content)
  except RecursionError:
    rule = "must be JSON, and is nested too deep"
    raise InputError(field, path, rule, remedy) from None
  except ValueError as error:
    rule = f"must be JSON ({error})"
    raise InputError(field, path, rule, remedy) from error
  if not isinstance(found, kind):
    names = {dict: "an object", list: "a list"}
    rule = f"must hold {names.get(kind, kind.__name__)}, holds "
    rule += names.get(type(found), type(found).__name__)
    raise InputError(field, path, rule, remedy)
  return found
