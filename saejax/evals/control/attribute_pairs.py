"""Pairs of prompts that test whether an attribute is exchanged alone (RAVEL).

For a target attribute A, with a base and a source prompt about entities,

  cause      both prompts ask for A, with different answers: wanted is the source's
  isolation  both ask for another attribute, with different answers: wanted is the
             base's

The kind of a pair and the wanted answer come from two label functions, given with
the pairs, and not from whether two first tokens are equal. Entities of the training
pairs are not in the test pairs.

References:
  Huang et al., RAVEL, 2024, arXiv:2402.17700.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

from saejax.errors import InputError

Labels = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs of prompts, as numbers of rows of a table of prompts.

  Attributes:
    base, source: the prompts.
    cause: whether a pair is of the kind cause; else isolation.
    wanted: number of the answer.
  """

  base: Int[np.ndarray, "P"]
  source: Int[np.ndarray, "P"]
  cause: Bool[np.ndarray, "P"]
  wanted: Int[np.ndarray, "P"]

  def __len__(self) -> int:
    return len(self.base)


def from_source(label: Int[np.ndarray, "R"]) -> Labels:
  """Returns the label function of cause: the source's answer.

  Args:
    label: number of the answer of each prompt.
  """
  return lambda base, source: label[source]


def from_base(label: Int[np.ndarray, "R"]) -> Labels:
  """Returns the label function of isolation: the base's answer.

  Args:
    label: number of the answer of each prompt.
  """
  return lambda base, source: label[base]


def draw_pairs(
  entity: Int[np.ndarray, "R"],
  asked: Int[np.ndarray, "R"],
  label: Int[np.ndarray, "R"],
  *,
  target: int,
  count: int,
  test: float = 0.3,
  seed: int = 0,
  cause: Labels | None = None,
  isolation: Labels | None = None,
) -> tuple[Pairs, Pairs]:
  """Draws pairs for training and for a test with other entities.

  Args:
    entity: entity of each prompt.
    asked: attribute that each prompt asks for.
    label: number of the answer of each prompt.
    target: the attribute to exchange.
    count: number of pairs of each kind, in both parts together.
    test: share of the entities, and of the pairs, of the test.
    seed: seed of the draw.
    cause, isolation: wanted answers of pairs (base rows, source rows); by
      default `from_source` and `from_base`.

  Raises:
    InputError: a part has no pair of a kind.
  """
  rng = np.random.default_rng(seed)
  entity, asked, label = (np.asarray(a) for a in (entity, asked, label))
  wanted = (isolation or from_base(label), cause or from_source(label))
  names = rng.permutation(np.unique(entity))
  held = np.isin(entity, names[: round(test * len(names))])
  parts = []
  for rows, share in ((~held, 1 - test), (held, test)):
    kinds = []
    for is_cause in (True, False):
      kind = (asked == target) == is_cause
      base, source = _pairs(
        rng, np.flatnonzero(rows & kind), asked, label, round(share * count)
      )
      flags = np.full(len(base), is_cause)
      kinds.append((base, source, flags, wanted[is_cause](base, source)))
    order = rng.permutation(sum(len(kind[0]) for kind in kinds))
    columns = (np.concatenate(c)[order] for c in zip(*kinds, strict=True))
    parts.append(Pairs(*columns))
  return parts[0], parts[1]


def _pairs(rng, rows, asked, label, count) -> tuple[np.ndarray, np.ndarray]:
  """Random rows that ask for one attribute and have different answers."""
  possible = []
  for kind in np.unique(asked[rows]):
    among = rows[asked[rows] == kind]
    if len(np.unique(label[among])) > 1:
      possible += [(base, among) for base in among]
  if not possible or count < 1:
    raise InputError(
      "label",
      f"{len(rows)} prompts, {count} pairs",
      "must differ for two prompts of one attribute, in training and in the test,"
      " for the target and for another attribute",
      "add entities, or raise test or count",
    )
  found = []
  for i in rng.integers(len(possible), size=count):
    base, among = possible[i]
    found.append((base, rng.choice(among[label[among] != label[base]])))
  base, source = np.array(found).T
  return base, source
