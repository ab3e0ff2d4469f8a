"""Recovery of a known dictionary by an SAE.

With true unit rows v_i, learned unit rows w_j and c_ij = <v_i, w_j>:

  precision   = mean_j max_i c_ij     MMCS of learned to true rows
  recall      = mean_i max_j c_ij     MMCS of true to learned rows
  FRR(tau)    = share of i with max_j c_ij > tau
  share(tau)  = share of i with c > tau in the one-to-one assignment of largest
                sum

Except in the last metric, several rows may have one match. A row of norm 0 has
cosine 0 with every row.

References:
  Sharkey et al., Taking features out of superposition with sparse
  autoencoders, 2022 (mean max cosine similarity); Chen et al., Taming
  Polysemanticity in LLMs, 2025, arXiv:2506.14002 (feature recovery rate).
"""

import dataclasses

import numpy as np
import scipy.optimize
from jaxtyping import Float

from saejax.evals import matching

Rows = Float[np.ndarray, "n d"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovery:
  """The metrics of the module's docstring; all in [-1, 1] or [0, 1].

  Attributes:
    precision, recall: mean max cosines of learned and of true rows.
    frr: feature recovery rate, FRR(tau).
    share: share(tau) of the one-to-one assignment.
    matched: mean cosine of the one-to-one assignment.
    tau: the threshold.
  """

  precision: float
  recall: float
  frr: float
  share: float
  matched: float
  tau: float

  def record(self) -> dict[str, float]:
    """Returns the metrics, for results.json."""
    return dataclasses.asdict(self)


def recovery(
  truth: Rows, found: Rows, *, tau: float = 0.9, signed: bool = True
) -> Recovery:
  """Computes all metrics of the module's docstring.

  Args:
    truth: true directions, of any norms.
    found: learned directions, such as decoder rows.
    tau: minimum cosine of a recovered row.
    signed: whether opposite directions differ; if not, |c| is compared.

  >>> recovery(np.eye(3), np.eye(3)).share
  1.0
  """
  c = cosines(truth, found)
  c = c if signed else np.abs(c)
  pairs = scipy.optimize.linear_sum_assignment(-c)
  matched = c[pairs]
  return Recovery(
    precision=float(c.max(axis=0).mean()),
    recall=float(c.max(axis=1).mean()),
    frr=float((c.max(axis=1) > tau).mean()),
    share=float((matched > tau).sum() / len(c)),
    matched=float(matched.mean()),
    tau=tau,
  )


def cosines(a: Rows, b: Rows) -> Float[np.ndarray, "a b"]:
  """Computes the cosines of all pairs of rows, float32; 0 where a row is 0.

  Args:
    a, b: rows.
  """
  return matching.unit(a) @ matching.unit(b).T


def mmcs(a: Rows, b: Rows) -> float:
  """Computes the mean over the rows of a of the largest cosine with a row of b.

  Args:
    a, b: rows.
  """
  return float(cosines(a, b).max(axis=1).mean())


def recovery_rate(truth: Rows, found: Rows, tau: float = 0.9) -> float:
  """Computes FRR(tau).

  Args:
    truth: true directions.
    found: learned directions.
    tau: minimum cosine of a recovered row.
  """
  return float((cosines(truth, found).max(axis=1) > tau).mean())


def baselines(
  truth: Rows, x: Rows, n: int, *, seed: int = 0, **options: float | bool
) -> dict[str, Recovery]:
  """Computes the recovery by untrained dictionaries, as baselines.

  Args:
    truth: true directions.
    x: rows of data.
    n: number of directions, that of the latents of the compared SAE.
    seed: seed of "random" and "data".
    **options: arguments of `recovery`.

  Returns:
    Recovery by name: "pca", at most n principal directions with both signs;
    "random", n random directions; "data", n rows of the centred data.
  """
  rng = np.random.default_rng(seed)
  chosen = rng.choice(len(x), n, replace=len(x) < n)
  rows = np.asarray(x, np.float32)
  dictionaries = {
    "pca": principal(rows, n),
    "random": rng.standard_normal((n, rows.shape[1])),
    "data": rows[chosen] - rows.mean(axis=0),
  }
  return {k: recovery(truth, W, **options) for k, W in dictionaries.items()}  # pyright: ignore[reportArgumentType]


def principal(x: Rows, n: int) -> Rows:
  """Returns principal directions, largest variance first, each with both signs.

  Both signs are needed to compare with an SAE, whose latents are not negative.

  Args:
    x: rows of data.
    n: maximum number of directions.
  """
  W = principal_directions(x, n)
  both = np.stack([W, -W], axis=1).reshape(-1, W.shape[1])
  return both[:n]


def principal_directions(x: Rows, k: int) -> Rows:
  """Returns orthonormal principal directions, largest variance first.

  Args:
    x: rows of data.
    k: number of directions, at most d of them.
  """
  centred = np.asarray(x, np.float64) - np.mean(x, axis=0, dtype=np.float64)
  _, W = np.linalg.eigh(centred.T @ centred)
  return W.T[::-1][:k].astype(np.float32)
