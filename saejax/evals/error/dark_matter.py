"""The error of an SAE: a part that is linear in x, and a rest.

With e = x - x_hat, and A [d, d] fitted by least squares without intercept on
training rows,

  e = x A + nonlinear                   linear part, nonlinear part
  R^2   mean over dimensions of 1 - sum (e - x A)^2 / sum (e - e_mean)^2
  FVU            sum |e|^2       / sum |x - x_mean|^2
  nonlinear FVU  sum |e - x A|^2 / sum |x - x_mean|^2      of x_hat + x A

on held-out rows. An SAE that leaves out some directions that are linearly readable
has a linear error; noise that the SAE adds is nonlinear. Norm prediction regresses
|v|^2, for v among x, x_hat, e and its parts, on x ("from_x") and on v itself
("from_self", the norm test): if v is a sum of few nearly orthogonal features of
nearly constant size, |v|^2 is nearly linear in v. Baselines predict |e|^2 from the
mean of the token, the model's loss, L0 and |x|^2. `error_scaling` compares widths.

The regression of norms has an intercept. The reference has one from v and none from
x, which compat="reference" repeats. Where the reference takes the rows of one
random order, training rows and held-out rows here are of different documents:
`document_sums.split`. Each function reads the rows again, in float64 sums; memory
has no axis for rows.

References:
  Engels et al., Decomposing The Dark Matter of Sparse Autoencoders, 2024,
  arXiv:2410.14670.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from saejax.errors import InputError
from saejax.evals.error import normal_equations
from saejax.evals.error.document_sums import (
  Bootstrap,
  Estimate,
  Read,
  Scores,
  by_document,
)
from saejax.evals.error.norm_prediction import (
  BASELINES,
  FROM_SELF,
  FROM_X,
  Norms,
  square,
  vectors,
)
from saejax.evals.error.normal_equations import NormalEquations
from saejax.features import reading
from saejax.interventions import operators
from saejax.models.edits import Context, Edit
from saejax.sae.context import Batch
from saejax.sae.sae import SAE

# Rows [B, d] -> (reconstructions [B, d], active latents [B]).
Reconstruct = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
BATCH_ROWS = 4096
COMPAT = ("", "reference")


@dataclasses.dataclass(frozen=True, eq=False)
class Decomposition:
  """The numbers of the module's docstring, on held-out rows.

  Attributes:
    rows, train_rows: number of held-out rows, and of those of the fits.
    documents: number of held-out documents, modulo 1021.
    l0: active latents per row.
    fvu: of x_hat.
    nonlinear_fvu: of x_hat + x A.
    r2: of e on x, mean over dimensions.
    linear_share: 1 - sum |e - x A|^2 / sum |e|^2.
    from_x, from_self: R^2 of |v|^2 by name of v.
    baselines: R^2 of |e|^2 by name of the predictor.
    A: the map.
    sums: "x", "error" and "nonlinear" by document [G]: sums of |x - x_mean|^2,
      |e|^2 and |e - x A|^2, for intervals that compare SAEs.
  """

  rows: int
  train_rows: int
  documents: int
  l0: float
  fvu: Estimate
  nonlinear_fvu: Estimate
  r2: Estimate
  linear_share: Estimate
  from_x: Mapping[str, Estimate]
  from_self: Mapping[str, Estimate]
  baselines: Mapping[str, Estimate]
  A: Float[np.ndarray, "d d"]
  sums: Mapping[str, Float[np.ndarray, "G"]]

  def record(self) -> dict[str, Any]:
    """The numbers for results.json; [value, low, high] of estimates."""
    found = {}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, Estimate):
        value = value.record()
      elif isinstance(value, Mapping):
        value = {name: list(one) for name, one in value.items()}
      found[field.name] = value
    return {k: v for k, v in found.items() if k not in ("A", "sums")}


def reconstructor(sae: SAE, *, batch_rows: int = BATCH_ROWS) -> Reconstruct:
  """Returns the reconstruction of an SAE, as `decompose` takes it.

  Args:
    sae: the SAE, in the inference form.
    batch_rows: rows on the device at once.

  Raises:
    InputError: it is a transcoder.
  """
  if sae.target_prep is not None:
    rule = "must reconstruct its input, and this one is a transcoder"
    raise InputError("sae", "a transcoder", rule, "give an SAE")

  def reconstruct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, l0 = [np.zeros((0, x.shape[-1]))], [np.zeros(0)]
    size = min(batch_rows, 1 << max(len(x) - 1, 0).bit_length())
    for start in range(0, len(x), size):
      part = x[start : start + size]
      x_hat, active = _reconstructed(sae, reading.pad(part, size)[0])
      found.append(np.asarray(x_hat)[: len(part)])
      l0.append(np.asarray(active)[: len(part)])
    return np.concatenate(found), np.concatenate(l0)

  return reconstruct


@jax.jit
def _reconstructed(sae: SAE, x: Array) -> tuple[Array, Array]:
  out = sae.forward(Batch(x=x))
  return sae.prep.undo(out.x_hat, out.statistics), out.latents.count()


def linear_map(
  reconstruct: Reconstruct,
  rows: Read,
  *,
  rcond: float = normal_equations.RCOND,
) -> tuple[Float[np.ndarray, "d d"], int]:
  """Fits A, with which x A is the linear part of the error.

  Args:
    reconstruct: rows -> (reconstructions, L0).
    rows: reads the training rows.
    rcond: as for `NormalEquations.solve`.

  Returns:
    (A, the number of rows).

  Raises:
    InputError: there are fewer than 2 d rows, which A would fit anyway.
  """
  sums = None
  for x, x_hat, _, _ in _batches(reconstruct, rows):
    d = x.shape[-1]
    sums = sums or NormalEquations(d, d, intercept=False)
    sums.add(x, x - x_hat)
  count = sums.rows if sums else 0
  if sums is None or count < 2 * d:
    rule = "must have at least two rows per dimension, or the fit is exact"
    raise InputError("train", f"{count} rows", rule, "give more rows")
  return sums.solve(rcond=rcond).weight, count


def decompose(
  reconstruct: Reconstruct,
  train: Read,
  held_out: Read,
  *,
  compat: str = "",
  bootstrap: Bootstrap = Bootstrap(),
) -> Decomposition:
  """Splits the error and predicts its norm; see the module.

  Args:
    reconstruct: rows -> (reconstructions, L0), such as `reconstructor(sae)` or
      `gradient_pursuit.reconstructor(sae)`.
    train: reads the rows that maps are fitted on.
    held_out: reads the rows that they are evaluated on, of other documents.
    compat: "reference" for norms predicted from x without an intercept.
    bootstrap: how documents are resampled.

  Raises:
    InputError: compat is unknown, there are fewer than 2 d training rows, or no
      held-out rows.
  """
  if compat not in COMPAT:
    rule = "must be reference, or empty"
    raise InputError("compat", compat, rule, "leave it out")
  A, count = linear_map(reconstruct, train)
  mean, spread = _moments(reconstruct, held_out)
  varies = spread > 0
  weight = np.where(varies, 1 / np.where(varies, spread, 1), 0)
  weight = weight / max(varies.sum(), 1)
  norms = _norms(reconstruct, A, train, intercept=not compat)
  total, scores = 0.0, Scores()
  for x, x_hat, active, rows in _batches(reconstruct, held_out):
    parts = vectors(x, x_hat, A)
    rest, e = parts["nonlinear"] ** 2, square(parts["error"])
    one, of_x = np.ones(len(x)), square(x - mean)
    sums = one, active, of_x, e, rest.sum(axis=-1), rest @ weight
    total = total + by_document(rows.doc, np.stack(sums, axis=-1))
    norms.score(scores, parts, active, rows)
  number, l0, of_x, error, nonlinear, unexplained = np.transpose(total)
  predicted = scores.r2(bootstrap)
  kind = lambda name: {v: r2 for (p, v), r2 in predicted.items() if p == name}
  r2 = bootstrap.ratio(unexplained, number).complement
  return Decomposition(
    rows=int(number.sum()),
    train_rows=count,
    documents=int((number > 0).sum()),
    l0=float(l0.sum() / number.sum()),
    fvu=bootstrap.ratio(error, of_x),
    nonlinear_fvu=bootstrap.ratio(nonlinear, of_x),
    r2=r2 if varies.any() else Estimate(np.nan, np.nan, np.nan),
    linear_share=bootstrap.ratio(nonlinear, error).complement,
    from_x=kind(FROM_X),
    from_self=kind(FROM_SELF),
    baselines={p: r2 for (p, _), r2 in predicted.items() if p in BASELINES},
    A=A,
    sums={"x": of_x, "error": error, "nonlinear": nonlinear},
  )


def _norms(
  reconstruct: Reconstruct, A: np.ndarray, train: Read, *, intercept: bool
) -> Norms:
  """Fits the predictions of norms."""
  found = Norms(len(A), intercept=intercept)
  for x, x_hat, active, rows in _batches(reconstruct, train):
    found.add(vectors(x, x_hat, A), active, rows)
  found.fit()
  return found


def _moments(reconstruct, read: Read) -> tuple[np.ndarray, np.ndarray]:
  """Mean of x and variance of the error, per dimension."""
  count, (of_x, of_e, squares) = 0, np.zeros((3, 1))
  for x, x_hat, _, _ in _batches(reconstruct, read):
    e, count = x - x_hat, count + len(x)
    of_x, of_e = of_x + x.sum(axis=0), of_e + e.sum(axis=0)
    squares = squares + (e * e).sum(axis=0)
  if not count:
    rule, remedy = "must have a finite row", "give more rows"
    raise InputError("held_out", "no row", rule, remedy)
  variance = squares / count - (of_e / count) ** 2
  # Rounding of sums is no variance.
  return of_x / count, np.where(variance > 1e-12 * squares / count, variance, 0)


def _batches(reconstruct: Reconstruct, read: Read):
  """Yields (x, x_hat, L0, rows) of each batch, x and x_hat in float64."""
  for rows in read():
    if len(rows.x):
      x_hat, active = reconstruct(rows.x)
      x = np.asarray(rows.x, np.float64)
      yield x, np.asarray(x_hat, np.float64), np.asarray(active), rows


# --- in the model ------------------------------------------------------------


def edits(sae: SAE, A: Float[np.ndarray, "d d"]) -> dict[str, Edit]:
  """Edits of a site for `evals.in_model`: the SAE, with a part of its error.

  Args:
    sae: the SAE of the site, in the inference form.
    A: the map of the linear part.

  Returns:
    "zero"; "sae": x_hat; "sae_linear": x_hat + x A; "sae_nonlinear": x_hat plus
    the rest of the error, which is x - x A.

  Raises:
    InputError: it is a transcoder.
  """
  A_ = jnp.asarray(A, jnp.float32)
  return {
    "zero": operators.zero(),
    "sae": operators.splice(sae),
    "sae_linear": Edit(Partial(_with_linear, sae, A_)),
    "sae_nonlinear": Edit(Partial(_without_linear, A_)),
  }


def _with_linear(sae: SAE, A: Array, h: Array, context: Context) -> Array:
  x = h.reshape(*h.shape[:2], -1).astype(jnp.float32)
  return (sae.reconstruct(x) + x @ A).reshape(h.shape).astype(h.dtype)


def _without_linear(A: Array, h: Array, context: Context) -> Array:
  x = h.reshape(*h.shape[:2], -1).astype(jnp.float32)
  return (x - x @ A).reshape(h.shape).astype(h.dtype)
