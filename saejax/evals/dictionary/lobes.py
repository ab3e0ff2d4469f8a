"""Lobes: do latents that are active together have decoder rows near each other?

Latents are clustered twice: by their co-occurrence in blocks (`cooccurrence`), and by
the angles of their decoder rows. Two tests of spatial locality, each with its null:

  information  adjusted mutual information of both clusterings; null: one of both
               with its labels permuted
  prediction   balanced accuracy on held-out latents of a softmax regression of the
               functional lobe on the unit decoder row; null: random unit rows

Each has z = (observed - mean of the null) / its standard deviation. Latents that
are never on have no lobe.

References:
  Li et al., The Geometry of Concepts: Sparse Autoencoder Feature Structure, 2024,
  arXiv:2410.19750, section 4.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from saejax.errors import InputError
from saejax.evals import matching, metrics, null
from saejax.evals.dictionary import cooccurrence, softmax_probe, spectral
from saejax.evals.dictionary.cooccurrence import Counts
from saejax.evals.null import Null
from saejax.evals.probing import probe

TEST = 0.2  # share of latents that are held out
DRAWS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Lobes:
  """Two clusterings of the live latents, and whether they agree.

  Attributes:
    latents: numbers of the latents that are on in any block.
    functional: lobe of each by co-occurrence.
    geometric: cluster of each by the angles of decoder rows.
    information: adjusted mutual information of the two, and its null.
    prediction: balanced accuracy of the prediction of the functional lobe from
      the decoder row, and its null.
    affinity: kind of the affinity of co-occurrence.
    count: number of clusters asked for.
  """

  latents: Int[np.ndarray, "n"]
  functional: Int[np.ndarray, "n"]
  geometric: Int[np.ndarray, "n"]
  information: Null
  prediction: Null
  affinity: str
  count: int

  def record(self) -> dict[str, Any]:
    """Returns the numbers, for results.json."""
    sizes = [np.bincount(x).tolist() for x in (self.functional, self.geometric)]
    found: dict[str, Any] = {
      "latents": len(self.latents),
      "affinity": self.affinity,
      "count": self.count,
      "sizes_functional": sizes[0],
      "sizes_geometric": sizes[1],
    }
    for name in ("information", "prediction"):
      test = getattr(self, name)
      found |= {
        name: float(test.observed),
        f"{name}_null": float(test.mean),
        f"{name}_z": float(test.z),
        f"{name}_p": float(test.p),
      }
    return found


def lobes(
  counts: Counts,
  W_dec: Float[np.ndarray, "n d"],
  count: int,
  *,
  affinity: str = "phi",
  draws: int = DRAWS,
  seed: int = 42,
) -> Lobes:
  """Clusters latents by function and by geometry, and tests their agreement.

  Args:
    counts: of the latents, from `cooccurrence`.
    W_dec: decoder rows of all latents of the SAE, in the units of the model (see
      `pairs.directions`).
    count: number of lobes.
    affinity: jaccard, dice, overlap, simple or phi.
    draws: draws of each null.
    seed: of clusterings, the division of latents and the nulls.

  Raises:
    InputError: fewer latents are on than there are lobes, a counted latent has no
      row, or as `cooccurrence.affinity` and `spectral.cluster`.
  """
  used = counts.live
  if len(used.latents) < max(count, 2):
    raise InputError(
      "count",
      count,
      f"must be at most the {len(used.latents)} latents that are on in a block",
      "ask for fewer lobes, lower the threshold, or count more blocks",
    )
  if used.latents[-1] >= len(W_dec):
    rule = f"must have a row for latent {used.latents[-1]}"
    raise InputError("W_dec", W_dec.shape, rule, "give rows of all latents")
  W = matching.unit(W_dec[used.latents])
  functional = spectral.cluster(
    cooccurrence.affinity(used, affinity), count, seed=seed
  )
  geometric = spectral.cluster(spectral.angular(W), count, seed=seed)
  return Lobes(
    latents=used.latents,
    functional=functional,
    geometric=geometric,
    information=information(functional, geometric, draws=draws, seed=seed),
    prediction=prediction(W, functional, draws=draws, seed=seed),
    affinity=affinity,
    count=count,
  )


def information(
  a: Int[np.ndarray, "n"],
  b: Int[np.ndarray, "n"],
  *,
  draws: int = DRAWS,
  seed: int = 0,
) -> Null:
  """Computes adjusted mutual information, and that with permuted labels.

  Args:
    a, b: labels of two clusterings of the same items.
    draws: permutations.
    seed: of the permutations.
  """
  permuted = null.permuted(b, count=draws, seed=seed)
  values = np.array([metrics.ami(a, labels) for labels in permuted])
  return Null(metrics.ami(a, b), values)


def prediction(
  W: Float[np.ndarray, "n d"],
  lobe: Int[np.ndarray, "n"],
  *,
  draws: int = DRAWS,
  seed: int = 0,
) -> Null:
  """Computes the accuracy of the lobe from rows, and from random unit rows.

  Args:
    W: unit rows.
    lobe: label of each row.
    draws: draws of random rows.
    seed: of the division into training and test rows, and the random rows.
  """
  train = probe.split(np.arange(len(W)), test=TEST, seed=seed)
  values = [
    _accuracy(null.random_directions(W, seed=seed + 1 + i), lobe, train)
    for i in range(draws)
  ]
  return Null(_accuracy(W, lobe, train), np.array(values))


def _accuracy(
  W: Float[np.ndarray, "n d"],
  lobe: Int[np.ndarray, "n"],
  train: Bool[np.ndarray, "n"],
) -> float:
  """Balanced accuracy on held-out rows of a softmax regression."""
  model, kinds = softmax_probe.fit(W[train], lobe[train])
  predicted = kinds[model.score(W[~train]).argmax(axis=-1)]
  return metrics.balanced_accuracy(predicted, lobe[~train])


def winners(
  on: Bool[np.ndarray, "b n"], lobe: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "b"]:
  """The lobe with the largest share of its latents on, per block.

  Args:
    on: whether each latent is on in each block.
    lobe: lobe of each latent.

  Returns:
    The lobes, the lowest of equal ones; -1 where no latent is on.

  >>> winners(np.array([[True, False, True]]), np.array([0, 0, 1])).tolist()
  [1]
  """
  member = np.eye(lobe.max() + 1)[lobe]
  share = on @ member / np.maximum(member.sum(axis=0), 1)
  return np.where(on.any(axis=1), share.argmax(axis=1), -1)


def table(
  winner: Int[np.ndarray, "b"], subset: Shaped[np.ndarray, "b"], count: int
) -> dict[Any, list[int]]:
  """Counts, for each subset of the text, the blocks that each lobe wins.

  Args:
    winner: from `winners`, of all blocks.
    subset: name of the subset of each block.
    count: number of lobes.

  >>> table(np.array([1, 0, 1]), np.array(["code", "web", "code"]), 2)
  {'code': [0, 2], 'web': [1, 0]}
  """
  won = winner >= 0
  return {
    name.item(): np.bincount(winner[won & (subset == name)], minlength=count)
    .astype(int)
    .tolist()
    for name in np.unique(subset)
  }
