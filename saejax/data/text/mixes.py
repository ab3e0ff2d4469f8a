"""Mixes of corpora by weight: `mix:0.7*PATH1,0.3*PATH2`.

The documents of the parts take turns, so that at each point the parts are in
proportion to their weights, counted in characters, or in ids where documents are
ids: the next document is of the part with the smallest

    characters so far / weight.

The mix ends where the first part does, so that its shares hold to the end; the
rest of the others is left out. A document of an earlier part is left out of later
ones; documents of an array of ids and of JSON lines are never equal. The order
depends on contents and weights alone.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from saejax.data.text import sources
from saejax.errors import InputError

PREFIX = "mix:"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def parse(corpus: str) -> list[tuple[float, str]]:
  """Returns the weights and names of the parts; weights add up to 1.

  Args:
    corpus: name of the mix. A comma belongs to a path unless a number and "*"
      follow.

  Raises:
    InputError: a part has no weight, or one that is not positive.

  >>> parse("mix:3*a/*.txt,1*python-docs")
  [(0.75, 'a/*.txt'), (0.25, 'python-docs')]
  """
  found = []
  for part in re.split(rf",(?=\s*{_NUMBER}\*)", corpus.removeprefix(PREFIX)):
    match = re.fullmatch(rf"\s*({_NUMBER})\*(.+)", part.strip(), re.DOTALL)
    if match is None or match[2].startswith(PREFIX):
      raise InputError(
        "harvest.corpus",
        corpus,
        f"must have a weight and a corpus in each part, and has {part!r}",
        "write mix:0.7*PATH1,0.3*PATH2",
      )
    found.append((float(match[1]), match[2]))
  for weight, name in found:
    if not 0 < weight < math.inf:
      raise InputError(
        "harvest.corpus",
        corpus,
        f"must have positive weights, and that of {name} is {weight:g}",
        "give it a positive weight, or leave it out",
      )
  total = sum(weight for weight, _ in found)
  return [(weight / total, name) for weight, name in found]


def unique(digests: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Returns which documents of each part are in no earlier part.

  Args:
    digests: [documents, 32] uint8, for each part.
  """
  keys = np.ascontiguousarray(np.concatenate(digests)).view(">u8")
  part = np.repeat(np.arange(len(digests)), [len(d) for d in digests])
  order = np.lexsort([part, *(keys[:, i] for i in (3, 2, 1, 0))])
  first = np.ones(len(keys), bool)
  first[1:] = (keys[order][1:] != keys[order][:-1]).any(axis=-1)
  kept = np.empty(len(keys), bool)
  kept[order] = first
  return [kept[part == i] for i in range(len(digests))]


def order(
  lengths: Sequence[np.ndarray], weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the part and the number in it of each document of the mix.

  Args:
    lengths: length of each document, for each part.
    weights: weight of each part.

  >>> order([np.array([2, 2, 2]), np.array([1, 1])], [0.5, 0.5])
  (array([0, 1, 1]), array([0, 0, 1]))
  """
  before = [
    np.cumsum(own) - own if len(own) else own
    for own in map(np.asarray, lengths)
  ]
  time = [b / weight for b, weight in zip(before, weights, strict=True)]
  end = min(
    own.sum() / weight for own, weight in zip(lengths, weights, strict=True)
  )
  part = np.repeat(np.arange(len(time)), [len(t) for t in time])
  number = np.concatenate([np.arange(len(t)) for t in time])
  all_times = np.concatenate(time)
  found = np.lexsort([number, part, all_times])
  found = found[all_times[found] < end]
  return part[found], number[found]


@dataclasses.dataclass(frozen=True)
class Mixed:
  """Documents of several sources.

  Attributes:
    parts: the sources.
    part: part of each document.
    place: its place in the part's source.
  """

  parts: Sequence[sources.Source]
  part: np.ndarray
  place: np.ndarray

  def texts(self) -> Any:
    """Yields every document once, as (place, document)."""
    for place in range(len(self.part)):
      yield place, self.read(place)

  def read(self, place: int) -> Any:
    """Reads a document, see `sources.Source.read`."""
    return self.parts[self.part[place]].read(int(self.place[place]))
