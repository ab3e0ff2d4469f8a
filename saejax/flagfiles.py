"""Checks flagfiles: checksums of those that runs wrote, and circular includes.

`run.flags` ends with a comment that holds the SHA-256 of the lines above it, so
that a file that was damaged does not repeat another run. Flagfiles written by
hand need none.
"""

import hashlib
import locale
import pathlib
import re
from collections.abc import Iterator, Sequence

from saejax.errors import InputError

RUN_FLAGS = "run.flags"  # must have a checksum
_SUM = re.compile(rb"# sha256 of the lines above: ([0-9a-f]{64})\n")
_FLAG = re.compile(r"--?flagfile(?:=(.*))?")


def sealed(text: str, encoding: str = "utf-8") -> bytes:
  """Returns lines of flags with their checksum as the last line.

  Args:
    text: the lines.
    encoding: encoding of the result.
  """
  content = text.encode(encoding)
  last = f"# sha256 of the lines above: {_digest(content)}\n"
  return content + last.encode()


def check(arguments: Sequence[str]) -> None:
  """Checks the flagfiles that a command line names, and those they name.

  Files that cannot be read are left to the parser.

  Args:
    arguments: the arguments of the command line.

  Raises:
    InputError: a flagfile includes itself, or its checksum is wrong.
  """
  for path in _named(arguments):
    _check(path, ())


def values(path: pathlib.Path) -> dict[str, str]:
  """Reads the flags of a file that a run wrote, as text by name.

  Args:
    path: the file.

  Raises:
    InputError: its checksum is wrong.
    OSError: it cannot be read.
  """
  content = path.read_bytes()
  _check_sum(path, content)
  text = content.decode(locale.getencoding())
  pairs = (line.removeprefix("--").split("=", 1) for line in text.splitlines())
  return {pair[0]: pair[1] for pair in pairs if pair[1:]}


def _check(path: pathlib.Path, outer: tuple[pathlib.Path, ...]) -> None:
  if path in outer:
    circle = " -> ".join(str(p) for p in (*outer[outer.index(path) :], path))
    rule = f"must not name itself ({circle})"
    raise InputError("--flagfile", path, rule, "remove the line that does")
  try:
    content = path.read_bytes()
  except OSError:
    return
  _check_sum(path, content)
  lines = content.decode(errors="replace").splitlines()
  for inner in _named([line.strip() for line in lines]):
    _check(inner, (*outer, path))


def _check_sum(path: pathlib.Path, content: bytes) -> None:
  start = content.rfind(b"\n", 0, -1) + 1
  found = _SUM.fullmatch(content[start:])
  if found is None and path.name != RUN_FLAGS:
    return
  if found is None or found[1].decode() != _digest(content[:start]):
    raise InputError(
      "--flagfile",
      path,
      "must be unchanged, and its checksum does not match its lines",
      f"copy it to a name other than {RUN_FLAGS}, without its last line, to "
      "change flags",
    )


def _named(arguments: Sequence[str]) -> Iterator[pathlib.Path]:
  """The flagfiles in a list of arguments, with = or in the next one."""
  for i, argument in enumerate(arguments):
    if argument == "--":
      return
    if found := _FLAG.fullmatch(argument):
      value = (
        found[1] if found[1] is not None else "".join(arguments[i + 1 :][:1])
      )
      if value:
        yield pathlib.Path(value).expanduser()


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
