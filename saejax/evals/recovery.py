"""Recovery of a known dictionary by an SAE.

With unit rows v_i of the truth and w_j of what was found, c_ij = <v_i, w_j>:

  precision   = mean_j max_i c_ij     MMCS of what was found to the truth
  recall      = mean_i max_j c_ij     MMCS of the truth to what was found
  FRR(tau)    = share of i with max_j c_ij > tau
  share(tau)  = share of i whose partner in the best one-to-one assignment has
                c > tau

Several found rows may serve one true row in the first three, not in the last.
A row of norm 0 has cosine 0 with everything.

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
    precision, recall: mean max cosines of found and of true rows.
    frr: share of true rows found above tau.
    share: the same, one to one.
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
    """The numbers, for results.json."""
    return dataclasses.asdict(self)


def recovery(
  truth: Rows, found: Rows, *, tau: float = 0.9, signed: bool = True
) -> Recovery:
  """Computes all metrics of the module's docstring.

  Args:
    truth: directions of the data, any norms.
    found: rows of a decoder.
    tau: least cosine of a row that counts as found.
    signed: whether a row that points the other way is another one; False
      compares by |c|.
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
  """Cosines of all pairs of rows, float32; 0 where a row is 0."""
  return matching.unit(a) @ matching.unit(b).T


def mmcs(a: Rows, b: Rows) -> float:
  """Mean over the rows of `a` of the largest cosine with a row of `b`."""
  return float(cosines(a, b).max(axis=1).mean())


def recovery_rate(truth: Rows, found: Rows, tau: float = 0.9) -> float:
  """FRR(tau), the share of true rows that some found row is near."""
  return float((cosines(truth, found).max(axis=1) > tau).mean())


def baselines(
  truth: Rows, x: Rows, n: int, *, seed: int = 0, **options: float | bool
) -> dict[str, Recovery]:
  """Recovery by dictionaries without training, for comparison.

  Args:
    truth: as above.
    x: rows of data.
    n: latents of the SAE they are compared with.
    seed: of "random" and "data".
    **options: of `recovery`.

  Returns:
    "pca": the principal directions with both signs, as many as there are up to
    n; "random": n random directions; "data": n rows of the data less their
    mean.
  """
  rng = np.random.default_rng(seed)
  chosen = rng.choice(len(x), n, replace=len(x) < n)
  rows = np.asarray(x, np.float32)
  found = {
    "pca": principal(rows, n),
    "random": rng.standard_normal((n, rows.shape[1])),
    "data": rows[chosen] - rows.mean(axis=0),
  }
  return {k: recovery(truth, W, **options) for k, W in found.items()}  # pyright: ignore[reportArgumentType]


def principal(x: Rows, n: int) -> Rows:
  """Principal directions of x, largest variance first, each with both signs.

  At most n rows; both signs, since an SAE's directions are half-lines.
  """
  centred = np.asarray(x, np.float64) - np.mean(x, axis=0, dtype=np.float64)
  _, W = np.linalg.eigh(centred.T @ centred)
  W = W.T[::-1]
  both = np.stack([W, -W], axis=1).reshape(-1, W.shape[1])
  return both[:n].astype(np.float32)
