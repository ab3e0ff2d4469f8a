"""Word senses: whether the strongest latent changes with the sense of a word.

For a pair of contexts of one word, the prompts are

  "{context} The {word} means"

and m_1, m_2 are the largest latents at the word in these suffixes, m = argmax_i z_i.
A pair is predicted to have one sense iff m_1 = m_2. With "same sense" the positive
class,

  TP same, equal    FN same, unequal    FP different, equal    TN different, unequal

Only the argmax counts: one dense latent, as of a position, makes all pairs equal.
On balanced pairs "always equal" has recall 1, F1 2/3 and specificity 0, and
"always different" has F1 0 and specificity 1, so read specificity with F1. Early
layers are not expected to separate senses at the suffix.

An SAE may have no latent at a word. The reference implementation takes latent 0
there; here it is a value of its own, -1, equal to itself alone, and such contexts
are counted.

References:
  Minegishi et al., Rethinking Evaluation of Sparse Autoencoders through the
  Representation of Polysemous Words, 2025, arXiv:2501.06254.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from saejax.errors import InputError
from saejax.evals.words import sense_pairs
from saejax.evals.words.word_rows import Encode
from saejax.features import reading

_BATCH_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Senses:
  """Counts of pairs by sense and by the strongest latent.

  Attributes:
    tp, fn, fp, tn: numbers of pairs, see the module.
    silent: share of contexts without an active latent at the word.
    cosine: for each matrix of rows, the mean cosine of the rows m_1 and m_2 over
      pairs of the same sense, and over pairs of different ones; pairs with a
      silent context are left out, NaN where none is left.
    l0: mean number of active latents at the word.
    mse: mean of |x - x_hat|^2 / d at the word; NaN where it is not computed.
  """

  tp: int
  fn: int
  fp: int
  tn: int
  silent: float
  cosine: Mapping[str, tuple[float, float]]
  l0: float = np.nan
  mse: float = np.nan

  @property
  def accuracy(self) -> float:
    """Share of pairs that are predicted correctly."""
    pairs = self.tp + self.fn + self.fp + self.tn
    return (self.tp + self.tn) / pairs

  @property
  def precision(self) -> float:
    """TP / (TP + FP); 0 where no pair is equal."""
    return self.tp / max(self.tp + self.fp, 1)

  @property
  def recall(self) -> float:
    """TP / (TP + FN)."""
    return self.tp / (self.tp + self.fn)

  @property
  def f1(self) -> float:
    """2 TP / (2 TP + FP + FN)."""
    return 2 * self.tp / (2 * self.tp + self.fp + self.fn)

  @property
  def specificity(self) -> float:
    """TN / (TN + FP)."""
    return self.tn / (self.tn + self.fp)

  def record(self) -> dict[str, float]:
    """Returns all numbers, without those that are NaN."""
    names = ("tp", "fn", "fp", "tn", "accuracy", "precision", "recall", "f1",
             "specificity", "silent", "l0", "mse")  # fmt: skip
    found = {name: getattr(self, name) for name in names}
    for name, (same, different) in self.cosine.items():
      found[f"{name}_cosine_same"] = same
      found[f"{name}_cosine_different"] = different
    return {name: v for name, v in found.items() if not np.isnan(v)}


def strongest(
  encode: Encode,
  x: Float[np.ndarray, "P d"],
  *,
  batch_rows: int = _BATCH_ROWS,
) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "P"]]:
  """Computes the largest latent of rows, and the number of active ones.

  Args:
    encode: the latents of rows, such as `jax.jit(sae.encode)`.
    x: rows.
    batch_rows: rows that are encoded at once.

  Returns:
    (argmax of z_i over active latents, -1 where none is; number of active ones).
  """
  latent, active = [], []
  for start in range(0, len(x), batch_rows):
    part = np.asarray(x[start : start + batch_rows])
    padded, _ = reading.pad(part, batch_rows)
    z = np.asarray(encode(padded))[: len(part)]
    count = (z != 0).sum(axis=-1)
    top = np.where(z != 0, z, -np.inf).argmax(axis=-1)
    latent.append(np.where(count > 0, top, -1))
    active.append(count)
  return np.concatenate(latent), np.concatenate(active)


def score(
  first: Int[np.ndarray, "P"],
  second: Int[np.ndarray, "P"],
  same: Bool[np.ndarray, "P"],
  *,
  rows: Mapping[str, Float[np.ndarray, "n d"]] | None = None,
) -> Senses:
  """Scores the strongest latents of pairs.

  Args:
    first, second: strongest latent of both contexts, -1 for none.
    same: whether a pair has one sense.
    rows: matrices with a row per latent, such as {"encoder": W_enc, "decoder":
      W_dec}, for cosines.

  Raises:
    InputError: numbers of pairs differ, or all pairs have one label.
  """
  first, second = np.asarray(first), np.asarray(second)
  same = np.asarray(same, bool)
  if not first.shape == second.shape == same.shape:
    raise InputError(
      "same",
      same.shape,
      f"must have a label for each pair, {first.shape} and {second.shape}",
      "give both latents and the label of each pair",
    )
  sense_pairs.check_labels(same)
  equal = first == second
  heard = (first >= 0) & (second >= 0)
  cosine = {}
  for name, W in (rows or {}).items():
    own = _cosines(np.asarray(W, np.float64), first, second)
    cosine[name] = (_mean(own[heard & same]), _mean(own[heard & ~same]))
  return Senses(
    tp=int((same & equal).sum()),
    fn=int((same & ~equal).sum()),
    fp=int((~same & equal).sum()),
    tn=int((~same & ~equal).sum()),
    silent=float(np.mean(np.concatenate([first, second]) < 0)),
    cosine=cosine,
  )


def evaluate(
  encode: Encode,
  first: Float[np.ndarray, "P d"],
  second: Float[np.ndarray, "P d"],
  same: Bool[np.ndarray, "P"],
  *,
  reconstruct: Encode | None = None,
  rows: Mapping[str, Float[np.ndarray, "n d"]] | None = None,
) -> Senses:
  """Scores an SAE on the activations of pairs at their word.

  Args:
    encode: the latents of rows, such as `jax.jit(sae.encode)`.
    first, second: activations at the word in both contexts.
    same, rows: as for `score`.
    reconstruct: reconstructions of rows, for the MSE; None leaves it out.

  Raises:
    InputError: as `score`.
  """
  (m1, count1), (m2, count2) = (strongest(encode, x) for x in (first, second))
  found = score(m1, m2, same, rows=rows)
  mse = np.nan
  if reconstruct is not None:
    errors = [
      np.square(x - np.asarray(reconstruct(x))) for x in (first, second)
    ]
    mse = float(np.mean(errors))
  l0 = float(np.mean(np.concatenate([count1, count2])))
  return dataclasses.replace(found, l0=l0, mse=mse)


def _cosines(
  W: Float[np.ndarray, "n d"],
  first: Int[np.ndarray, "P"],
  second: Int[np.ndarray, "P"],
) -> Float[np.ndarray, "P"]:
  a, b = W[first], W[second]
  norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
  return np.sum(a * b, axis=-1) / np.where(norms > 0, norms, 1)


def _mean(values: np.ndarray) -> float:
  return float(values.mean()) if len(values) else np.nan
