"""Predictions of the squared norms of an SAE's reconstruction, error and its parts.

For v among `VECTORS`, |v|^2 is regressed on x ("from_x") and on v itself
("from_self"); |e|^2 also on numbers of the row, `BASELINES`. Every map is fitted by
least squares from sums over training rows, and scored on held-out ones. See
`dark_matter`, which makes both passes.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from saejax.evals.error.document_sums import Rows, Scores
from saejax.evals.error.normal_equations import Linear, NormalEquations

VECTORS = (
  "x",
  "reconstruction",
  "error",
  "linear",
  "nonlinear",
  "reconstruction_less_nonlinear",
)
FROM_X, FROM_SELF = "from_x", "from_self"
BASELINES = TOKEN, LOSS, L0, NORM = ("token", "loss", "l0", "norm")


def vectors(
  x: Float[np.ndarray, "B d"],
  x_hat: Float[np.ndarray, "B d"],
  A: Float[np.ndarray, "d d"],
) -> dict[str, Float[np.ndarray, "B d"]]:
  """The vectors whose norms are predicted, by the names in `VECTORS`.

  Args:
    x: rows, in float64.
    x_hat: their reconstructions.
    A: the map of the linear part.
  """
  e, linear = x - x_hat, x @ A
  rest = e - linear
  every = x, x_hat, e, linear, rest, x_hat - rest
  return dict(zip(VECTORS, every, strict=True))


def square(v: Float[np.ndarray, "B d"]) -> Float[np.ndarray, "B"]:
  """Squared norms of rows.

  Args:
    v: the rows.
  """
  return np.einsum("bd,bd->b", v, v)


class Norms:
  """Maps that predict squared norms: `add` training rows, then `fit`.

  Args:
    d: width of the rows.
    intercept: whether the maps from x have one; the others do.
  """

  def __init__(self, d: int, *, intercept: bool = True):
    self._from_x = NormalEquations(d, len(VECTORS), intercept=intercept)
    self._from_self = {v: NormalEquations(d, 1) for v in VECTORS}
    self._of_one = {name: NormalEquations(1, 1) for name in BASELINES[1:]}
    self._tokens = np.zeros((0, 2))  # rows and sum of |e|^2 by token
    self._fits: dict[str, Linear] = {}

  def add(
    self,
    parts: Mapping[str, Float[np.ndarray, "B d"]],
    active: Float[np.ndarray, "B"],
    rows: Rows,
  ) -> None:
    """Adds training rows.

    Args:
      parts: the vectors.
      active: active latents of each row.
      rows: the rows, with "tok" and "loss" where they are known.
    """
    norms = {v: square(part) for v, part in parts.items()}
    self._from_x.add(parts["x"], np.stack(list(norms.values()), axis=-1))
    for v, part in parts.items():
      self._from_self[v].add(part, norms[v][:, None])
    for name, value in _numbers(norms, active, rows).items():
      self._of_one[name].add(value[:, None], norms["error"][:, None])
    if "tok" in rows.columns:
      token = rows.columns["tok"]
      short = max(int(token.max()) + 1 - len(self._tokens), 0)
      self._tokens = np.pad(self._tokens, ((0, short), (0, 0)))
      one = np.ones(len(token))
      np.add.at(self._tokens, token, np.stack([one, norms["error"]], axis=-1))

  def fit(self) -> None:
    """Fits every map."""
    every = {FROM_X: self._from_x, **self._of_one}
    every |= {f"{FROM_SELF}/{v}": sums for v, sums in self._from_self.items()}
    self._fits = {k: sums.solve() for k, sums in every.items() if sums.rows}

  def score(
    self,
    scores: Scores,
    parts: Mapping[str, Float[np.ndarray, "B d"]],
    active: Float[np.ndarray, "B"],
    rows: Rows,
  ) -> None:
    """Adds held-out rows to scores, by (kind of predictor, vector).

    Args:
      scores: where.
      parts, active, rows: as for `add`.
    """
    norms = {v: square(part) for v, part in parts.items()}
    doc, from_x = rows.doc, self._fits[FROM_X](parts["x"])
    for i, v in enumerate(VECTORS):
      scores.target(v, doc, norms[v])
      scores.prediction(FROM_X, v, doc, norms[v] - from_x[:, i])
      own = self._fits[f"{FROM_SELF}/{v}"](parts[v])[:, 0]
      scores.prediction(FROM_SELF, v, doc, norms[v] - own)
    e = norms["error"]
    for name, value in _numbers(norms, active, rows).items():
      if name in self._fits:
        found = self._fits[name](value[:, None])[:, 0]
        scores.prediction(name, "error", doc, e - found)
    if "tok" in rows.columns and len(self._tokens):
      found = self._token_means(rows.columns["tok"])
      scores.prediction(TOKEN, "error", doc, e - found)

  def _token_means(self, token: np.ndarray) -> np.ndarray:
    """Means of the training rows with each token; of all rows for a new one."""
    count, total = self._tokens.T
    every = total.sum() / max(count.sum(), 1)
    mean = np.where(count > 0, total / np.maximum(count, 1), every)
    known = token < len(mean)
    return np.where(known, mean[np.where(known, token, 0)], every)


def _numbers(
  norms: Mapping[str, np.ndarray], active: np.ndarray, rows: Rows
) -> dict[str, np.ndarray]:
  """The predictors that are one number per row."""
  found = {L0: np.asarray(active, np.float64), NORM: norms["x"]}
  if LOSS in rows.columns:
    found[LOSS] = np.asarray(rows.columns[LOSS], np.float64)
  return found
