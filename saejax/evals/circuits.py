"""Identifies attention heads of a circuit from integer codes of their outputs.

A tiny SAE (`recipes.circuits`) maps each head's output on each prompt to a code,
the index of its largest latent. A head is likely in the circuit if its codes on
prompts that the model can solve (positive) do not occur on prompts that it
cannot solve (negative). With set differences,

  node score(h) = |codes of h on positives - codes of h on negatives|
  edge count(h, g) = |pairs (code of h, code of g) on positives - on negatives|

Raw counts favour heads with many codes, regardless of the class. `normalise`
divides by the number of codes of a head, and `null_scores` gives the null
distribution. On three small sets of random codes, nodes had an AUC of 0.5, but
edges 0.34 to 0.58, since edge scores too depend on the number of codes of a
head.

References:
  O'Neill and Bui, Sparse Autoencoders Enable Scalable and Reliable Circuit
  Identification in Language Models, 2024, arXiv:2405.12522.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Bool, Float, Int

from saejax.sae.sae import SAE

Codes = Int[np.ndarray, "prompts heads"]
Scores = Float[np.ndarray, "heads"]


def codes(
  sae: SAE, x: Float[Array, "prompts heads d"]
) -> Int[np.ndarray, "prompts heads"]:
  """Computes the index of the largest latent of each output.

  The code is 0 where every latent is 0.

  Args:
    sae: SAE of the heads' outputs.
    x: outputs of the heads.
  """
  largest = jax.jit(lambda sae, x: jnp.argmax(sae.encode(x), axis=-1))
  return np.asarray(largest(sae, x))


def unique_code_scores(
  positive: Codes, negative: Codes, *, normalise: bool = False
) -> Scores:
  """Counts the codes of each head that occur on positive prompts only.

  Args:
    positive, negative: codes on prompts of each class.
    normalise: whether to divide by the number of the head's codes in both
      classes.

  >>> unique_code_scores(np.array([[0], [1], [2]]), np.array([[2]])).tolist()
  [2.0]
  """
  scores = []
  for own, others in zip(positive.T, negative.T, strict=True):
    own, others = set(own.tolist()), set(others.tolist())
    scores.append(len(own - others) / (len(own | others) if normalise else 1))
  return np.asarray(scores, np.float64)


def edge_counts(
  positive: Codes, negative: Codes
) -> Int[np.ndarray, "heads heads"]:
  """Counts the pairs of codes of two heads that occur on positive prompts only.

  The counts of a head with itself are 0. Sets are used, whose memory grows with
  the prompts, in place of an array of H^2 n^2 numbers.

  Args:
    positive, negative: codes on prompts of each class.
  """
  heads = positive.shape[1]
  counts = np.zeros((heads, heads), np.int64)
  for h in range(heads):
    for g in range(heads):
      if h != g:
        own, others = (
          set(zip(c[:, h].tolist(), c[:, g].tolist(), strict=True))
          for c in (positive, negative)
        )
        counts[h, g] = len(own - others)
  return counts


def edge_scores(
  positive: Codes, negative: Codes, *, entries: int | None = None
) -> Scores:
  """Scores each head by its number of occurrences among the strongest edges.

  Ordered pairs of heads are sorted by their edge counts, ties in index order, and
  concatenated to a list of heads with two entries per pair. A head's score is its
  number of occurrences among the first entries of this list.

  Args:
    positive, negative: codes on prompts of each class.
    entries: number of entries; half the square of the number of heads by
      default.
  """
  counts = edge_counts(positive, negative)
  heads = len(counts)
  order = np.argsort(-counts.reshape(-1), kind="stable")
  order = order[order // heads != order % heads]
  listed = np.stack([order // heads, order % heads], axis=-1).reshape(-1)
  first = listed[: heads * heads // 2 if entries is None else entries]
  return np.bincount(first, minlength=heads).astype(np.float64)


def null_scores(
  score: Callable[[Codes, Codes], Scores],
  positive: Codes,
  negative: Codes,
  *,
  shuffles: int = 50,
  seed: int = 0,
) -> Float[np.ndarray, "shuffles heads"]:
  """Computes scores with the classes of the prompts shuffled.

  Args:
    score: scores heads from the codes of both classes.
    positive, negative: codes on prompts of each class.
    shuffles: number of shuffles.
    seed: seed of the shuffles.
  """
  rng = np.random.default_rng(seed)
  prompts = np.concatenate([positive, negative])
  out = []
  for _ in range(shuffles):
    mixed = rng.permutation(prompts)
    out.append(score(mixed[: len(positive)], mixed[len(positive) :]))
  return np.stack(out)


def above_chance(
  score: Callable[[Codes, Codes], Scores],
  positive: Codes,
  negative: Codes,
  *,
  shuffles: int = 50,
  seed: int = 0,
) -> Scores:
  """Standardises scores by their null distribution.

  The result is in standard deviations above the mean of `null_scores`. A head
  whose null scores do not vary gets its difference from their mean.

  Args:
    score: scores heads from the codes of both classes.
    positive, negative: codes on prompts of each class.
    shuffles: number of shuffles.
    seed: seed of the shuffles.
  """
  null = null_scores(score, positive, negative, shuffles=shuffles, seed=seed)
  spread = null.std(axis=0)
  difference = score(positive, negative) - null.mean(axis=0)
  return difference / np.where(spread > 0, spread, 1.0)


def roc_auc(scores: Scores, truth: Bool[np.ndarray, "heads"]) -> float:
  """Computes the area under the ROC curve of the heads' scores.

  It is the probability that a head of the circuit scores above another head.
  Ties count half, so that it is invariant under increasing functions of the
  scores, such as their softmax.

  Args:
    scores: scores of the heads.
    truth: whether each head is in the circuit.

  Raises:
    ValueError: no head, or every head, is in the circuit.

  >>> roc_auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, False]))
  1.0
  """
  truth = np.asarray(truth, bool)
  inside = int(truth.sum())
  outside = len(truth) - inside
  if not inside or not outside:
    raise ValueError(
      "truth must have heads inside and outside the circuit, got "
      f"{inside} and {outside}"
    )
  ranks = scipy.stats.rankdata(scores)
  above = ranks[truth].sum() - inside * (inside + 1) / 2
  return float(above / (inside * outside))
