"""Files of word pairs by relation, for the study of crystals."""

import pathlib

import numpy as np

from saejax.errors import InputError
from saejax.evals.dictionary import crystals

LEAST = 4  # pairs of a relation


def read(path: pathlib.Path) -> tuple[list[str], list[str], list[str]]:
  """Reads a file of word pairs, see `parsed`.

  Args:
    path: the file.

  Raises:
    InputError: it cannot be read; as `parsed`.
  """
  try:
    lines = path.read_text(encoding="utf-8").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    rule = f"must be a file of text in UTF-8 ({error})"
    raise InputError("pairs", path, rule, "give its path") from error
  return parsed(lines, str(path))


def parsed(
  lines: list[str], name: str = "pairs"
) -> tuple[list[str], list[str], list[str]]:
  """Reads word pairs: relation, word, word, separated by tabs.

  Args:
    lines: lines of the file; empty ones are skipped.
    name: name of the file in errors.

  Returns:
    (relations, first words, second words).

  Raises:
    InputError: a line has other fields, with its number, or there are none.

  >>> parsed(["plural\\tcat\\tcats"])
  (['plural'], ['cat'], ['cats'])
  """
  found = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    fields = line.rstrip("\r\n").split("\t")  # a space before a word counts
    if len(fields) != 3 or not all(field.strip() for field in fields):
      rule = "must be a relation and two words, with tabs between them"
      raise InputError("pairs", f"{name}, line {number}", rule, "correct it")
    found.append(fields)
  if not found:
    raise InputError("pairs", name, "must have a pair", "add some")
  relation, first, second = zip(*found, strict=True)
  return [one.strip() for one in relation], list(first), list(second)


def components(relation: list[str], given: int) -> int:
  """Returns the components of LDA: those given, or as many as there can be.

  Args:
    relation: relation of each pair.
    given: number of components; 0 for the most, up to that of the paper.

  Raises:
    InputError: there are fewer than two relations, one has fewer than four pairs,
      or more components are given than relations less one.
  """
  names, sizes = np.unique(relation, return_counts=True)
  if len(names) < 2 or sizes.min() < LEAST:
    shown = f"{names[sizes.argmin()]}: {sizes.min()} pairs"
    rule = f"must have at least two relations, of at least {LEAST} pairs each"
    raise InputError("pairs", shown, rule, "add some")
  if given >= len(names):
    rule = f"must be at most {len(names) - 1}: one less than the relations"
    raise InputError("components", given, rule, "lower it")
  return given or min(crystals.COMPONENTS, len(names) - 1)
