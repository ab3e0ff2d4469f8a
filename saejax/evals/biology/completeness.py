"""Which of the true variables behind the rows do latents recover?

For each variable v with values t_v [N], and the active latents z_k (larger than 1e-10
on any row),

  best_v = max_k |r(z_k, t_v)|, with Pearson's r
  above_v = #{k: |r(z_k, t_v)| > 0.95}

and a latent is redundant if its r with an earlier active latent is above 0.95 (a latent
is not compared with itself). A maximum over many latents is large by chance, so that
`compared` gives the same numbers of a random projection with as many latents.

Variables that are categories are compared as indicators, one for each category.
`data.regulation` has rows whose variables are known.

References:
  Schuster, Can sparse autoencoders make sense of latent representations?, 2024,
  arXiv:2410.11468.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from saejax.errors import InputError
from saejax.evals import matching

ACTIVE = 1e-10
TAU = 0.95
_ROWS = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Recovered:
  """Correlations of latents with true variables.

  Attributes:
    best: largest |r| of each variable with an active latent; 0 for none, NaN for a
      variable that is constant.
    latent: that latent; -1 for none.
    above: number of active latents with |r| above tau, per variable.
    active: number of active latents.
    redundant: number of active latents that repeat an earlier one.
    tau: the threshold.
  """

  best: Float[np.ndarray, "v"]
  latent: Int[np.ndarray, "v"]
  above: Int[np.ndarray, "v"]
  active: int
  redundant: int
  tau: float

  @property
  def share(self) -> float:
    """Share of the variables that vary with a latent above tau."""
    varies = ~np.isnan(self.best)
    return float((self.above[varies] > 0).mean()) if varies.any() else np.nan

  @property
  def mean(self) -> float:
    """Mean of the best |r| over variables that vary."""
    varies = ~np.isnan(self.best)
    return float(self.best[varies].mean()) if varies.any() else np.nan

  def record(self) -> dict[str, float | int]:
    """Returns the numbers, for results.json."""
    return {
      "best_mean": self.mean,
      "share_above": self.share,
      "latents_above_mean": float(self.above.mean()),
      "variables": len(self.best),
      "active": self.active,
      "redundant": self.redundant,
      "tau": self.tau,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
  """Recovery by an SAE and by a random projection of as many latents.

  Attributes:
    found: of the SAE.
    random: of the projection.
  """

  found: Recovered
  random: Recovered

  def record(self) -> dict[str, float | int]:
    """Returns the numbers, for results.json."""
    random = self.random.record()
    return self.found.record() | {
      f"random_{name}": random[name]
      for name in ("best_mean", "share_above", "latents_above_mean")
    }


def recovered(
  z: Float[np.ndarray, "N n"],
  truth: Float[np.ndarray, "N v"],
  *,
  tau: float = TAU,
) -> Recovered:
  """Computes how well latents follow true variables; see the module.

  Args:
    z: latents.
    truth: true variables.
    tau: |r| above which a latent counts as one of a variable.

  Raises:
    InputError: the numbers of rows differ, or there are fewer than three.
  """
  if len(z) != len(truth) or len(z) < 3:
    rule = f"must have the {len(z)} rows of z, and at least 3"
    raise InputError("truth", len(truth), rule, "give both for the same rows")
  active = np.flatnonzero((z > ACTIVE).any(axis=0))
  units = _standard(z[:, active])
  wanted = _standard(truth)
  r = np.abs(units.T @ wanted)
  varies = wanted.any(axis=0)
  some = len(active) > 0
  best = r.max(axis=0, initial=0)
  return Recovered(
    best=np.where(varies, best, np.nan),
    latent=np.where(
      varies & (best > 0), active[r.argmax(axis=0)] if some else -1, -1
    ),
    above=(r > tau).sum(axis=0),
    active=len(active),
    redundant=_redundant(units, tau),
    tau=tau,
  )


def _standard(x: Float[np.ndarray, "N c"]) -> Float[np.ndarray, "N c"]:
  """Columns about their mean, of unit norm; 0 for constant ones."""
  centred = np.asarray(x, np.float64) - np.mean(x, axis=0, dtype=np.float64)
  norm = np.linalg.norm(centred, axis=0)
  size = np.abs(np.asarray(x, np.float64)).max(axis=0, initial=0)
  varies = norm > 1e-12 * size * np.sqrt(len(x))  # beyond rounding of the mean
  return np.where(varies, centred / np.where(varies, norm, 1), 0)


def _redundant(units: Float[np.ndarray, "N n"], tau: float) -> int:
  count = 0
  for start in range(0, units.shape[1], _ROWS):
    part = units[:, start : start + _ROWS]
    r = part.T @ units[:, : start + part.shape[1]]
    earlier = np.arange(r.shape[1]) < start + np.arange(len(r))[:, None]
    count += int(((r > tau) & earlier).any(axis=1).sum())
  return count


def compared(
  z: Float[np.ndarray, "N n"],
  x: Float[np.ndarray, "N d"],
  truth: Float[np.ndarray, "N v"],
  *,
  tau: float = TAU,
  seed: int = 0,
) -> Compared:
  """Computes recovery by latents, and by random latents of the same rows.

  Args:
    z: latents of an SAE.
    x: the rows that it reads.
    truth: true variables.
    tau: as for `recovered`.
    seed: of the projection.

  Raises:
    InputError: as `recovered`.
  """
  random = projection(x, z.shape[1], seed=seed)
  return Compared(
    recovered(z, truth, tau=tau), recovered(random, truth, tau=tau)
  )


def projection(
  x: Float[np.ndarray, "N d"], n: int, *, seed: int = 0
) -> Float[np.ndarray, "N n"]:
  """Computes relu((x - mean) W^T) with random unit rows W.

  Args:
    x: rows.
    n: number of latents.
    seed: of the rows of W.
  """
  rng = np.random.default_rng(seed)
  W = matching.unit(rng.standard_normal((n, x.shape[1]), np.float32))
  return np.maximum((x - np.mean(x, axis=0)) @ W.T, 0)


def indicators(label: Shaped[np.ndarray, "N"]) -> Bool[np.ndarray, "N C"]:
  """Returns a 0/1 variable for each category, in ascending order.

  Args:
    label: category of each row.

  >>> indicators(np.array([3, 1])).tolist()
  [[False, True], [True, False]]
  """
  return np.asarray(label)[:, None] == np.unique(label)
