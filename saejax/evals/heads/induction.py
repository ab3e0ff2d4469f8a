"""Induction heads: attention to what followed an earlier copy of a prefix.

A text of random tokens holds the same m tokens twice. At the last token t of the
second copy, an induction head attends to the token s that followed the first copy:

  ... p1 .. pm [s] ...... p1 .. pm=t ...

  score(head, m) = mean over texts of A[t, s]

A head that attends evenly has about 1 / (t + 1). The control breaks the prefix: in
the second copy the token before the last is another one, so that a head that needs
two equal tokens no longer finds s, and one that needs one still does. (The paper
corrupts the token two back from the one to be predicted, which this is.) Tokens of a
text are otherwise different, and s is not next to the second copy, where a head
that attends to the token before would score.

References:
  Olsson et al., In-context Learning and Induction Heads, 2022, arXiv:2209.11895.
  Kissane et al., Interpreting Attention Layer Outputs with Sparse Autoencoders,
  2024, arXiv:2406.17759.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, Int

from saejax.errors import InputError
from saejax.models import taps
from saejax.models.model import Model

PREFIXES = tuple(range(1, 10))
TEXTS, LENGTH = 400, 128
BACK = 1  # the corrupted token, before the last one of the prefix


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
  """Random texts with a repeated prefix.

  Attributes:
    ids: token ids.
    source: position after the first copy of the prefix.
    destination: last position of the second copy.
    prefix: number of tokens of the prefix.
  """

  ids: Int[np.ndarray, "N T"]
  source: Int[np.ndarray, "N"]
  destination: Int[np.ndarray, "N"]
  prefix: int

  @property
  def answer(self) -> Int[np.ndarray, "N"]:
    """The token that followed the first copy."""
    return self.ids[np.arange(len(self.ids)), self.source]

  @property
  def even(self) -> float:
    """Score of a head that attends evenly to all tokens up to its own."""
    return float(np.mean(1 / (self.destination + 1)))

  def corrupted(
    self,
    tokens: Int[np.ndarray, "v"],
    *,
    back: int = BACK,
    seed: int | Sequence[int] = 0,
  ) -> "Texts":
    """Returns the texts with one token of the second copy replaced.

    Args:
      tokens: ids to draw from.
      back: place of the token before the last one of the prefix; 0 is the last.
      seed: seed of the draw.

    Raises:
      InputError: the prefix has no such token.
    """
    if not 0 <= back < self.prefix:
      rule = f"must be in [0, {self.prefix}), a token of the prefix"
      raise InputError("back", back, rule, "use a longer prefix")
    rng, ids = np.random.default_rng(seed), self.ids.copy()
    for row, at in zip(ids, self.destination - back, strict=True):
      row[at] = rng.choice(np.setdiff1d(tokens, row))
    return dataclasses.replace(self, ids=ids)

  def score(self, pattern: Float[Array, "*l N H T T"]) -> np.ndarray:
    """Computes the score of each head, [*l, H].

    Args:
      pattern: attention patterns of the texts.
    """
    each = np.arange(len(self.ids))
    rows = np.moveaxis(np.asarray(pattern), -4, 0)  # [N, *l, H, T, T]
    found = [
      rows[i][..., t, s]
      for i, t, s in zip(each, self.destination, self.source, strict=True)
    ]
    return np.mean(found, axis=0)


def texts(
  tokens: Int[np.ndarray, "v"],
  prefix: int,
  *,
  count: int = TEXTS,
  length: int = LENGTH,
  first: int | None = None,
  seed: int | Sequence[int] = 0,
) -> Texts:
  """Draws texts with a repeated prefix.

  Args:
    tokens: ids to draw from, such as those of whole words.
    prefix: number of tokens of the prefix.
    count: number of texts.
    length: tokens of a text.
    first: token at position 0, such as BOS; a random one by default.
    seed: seed of the draw.

  Raises:
    InputError: the text is too short for two copies, or there are as few tokens
      as it has.
  """
  start = 0 if first is None else 1
  most = (length - start - 2) // 2
  if not 1 <= prefix <= most:
    rule = f"must be in [1, {most}] for length={length}"
    raise InputError("prefix", prefix, rule, "raise length")
  tokens = np.unique(tokens)
  if first is not None:
    tokens = np.setdiff1d(tokens, [first])
  if len(tokens) <= length:
    rule = f"must be more than length={length} different ids"
    raise InputError("tokens", len(tokens), rule, "lower length")
  rng = np.random.default_rng(seed)
  ids = np.stack([rng.permutation(tokens)[:length] for _ in range(count)])
  if first is not None:
    ids[:, 0] = first
  one = rng.integers(start, length - 2 * prefix - 1, size=count)
  two = np.array(
    [rng.integers(a + prefix + 2, length - prefix + 1) for a in one]
  )
  for row, a, b in zip(ids, one, two, strict=True):
    row[b : b + prefix] = row[a : a + prefix]
  return Texts(ids.astype(np.int32), one + prefix, two + prefix - 1, prefix)


@dataclasses.dataclass(frozen=True, eq=False)
class Induction:
  """Scores of heads by the length of the prefix.

  Attributes:
    prefixes: lengths.
    layers: numbers of the layers.
    score: scores.
    corrupted: scores with the prefix broken; NaN for a prefix of one token.
    even: score of even attention, by length.
  """

  prefixes: tuple[int, ...]
  layers: tuple[int, ...]
  score: Float[np.ndarray, "P L H"]
  corrupted: Float[np.ndarray, "P L H"]
  even: Float[np.ndarray, "P"]

  def best(self, count: int = 5) -> list[tuple[int, int]]:
    """Returns the heads of largest mean score, as (layer, head).

    Args:
      count: number of heads.
    """
    mean = self.score.mean(axis=0)
    order = np.argsort(-mean, axis=None)[:count]
    at = zip(*np.unravel_index(order, mean.shape), strict=True)
    return [(self.layers[int(l)], int(h)) for l, h in at]

  def record(self, count: int = 5) -> dict:
    """Returns the scores of the best heads, for results.json.

    Args:
      count: number of heads.
    """
    heads = {}
    for layer, head in self.best(count):
      own = (slice(None), self.layers.index(layer), head)
      heads[f"{layer}.{head}"] = {
        "score": self.score[own].tolist(),
        "corrupted": [
          None if np.isnan(v) else float(v) for v in self.corrupted[own]
        ],
      }
    return {
      "prefixes": list(self.prefixes),
      "even": self.even.tolist(),
      "heads": heads,
    }


def by_prefix(
  model: Model,
  tokens: Int[np.ndarray, "v"],
  *,
  layers: Sequence[int] | None = None,
  prefixes: Sequence[int] = PREFIXES,
  count: int = TEXTS,
  length: int = LENGTH,
  first: int | None = None,
  batch: int = 8,
  seed: int = 0,
) -> Induction:
  """Computes the scores of all heads, with their controls.

  Args:
    model: the model.
    tokens: ids to draw from.
    layers: numbers of the layers; all by default.
    prefixes: lengths of the prefix.
    count, length, first, seed: as for `texts`.
    batch: texts at once; patterns of all layers are in memory for these.

  Raises:
    InputError: as `texts`, or there is no such layer.
  """
  layers = tuple(range(model.layers) if layers is None else layers)

  def scores(given: Texts) -> np.ndarray:
    total = 0.0
    for start in range(0, count, batch):
      part = slice(start, start + batch)
      some = Texts(
        given.ids[part], given.source[part], given.destination[part], 0
      )
      mask = np.ones(some.ids.shape, bool)
      pattern = taps.patterns(model, some.ids, mask, layers)
      total = total + len(some.ids) * some.score(pattern)
    return np.asarray(total / count)

  clean, broken, even = [], [], []
  for prefix in prefixes:
    own = texts(
      tokens,
      prefix,
      count=count,
      length=length,
      first=first,
      seed=(seed, prefix),
    )
    clean.append(scores(own))
    none = np.full_like(clean[-1], np.nan)
    even.append(own.even)
    broken.append(
      scores(own.corrupted(tokens, seed=(seed, prefix, 1)))
      if prefix > BACK
      else none
    )
  return Induction(
    tuple(prefixes), layers, np.array(clean), np.array(broken), np.array(even)
  )
