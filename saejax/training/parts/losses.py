"""Loss terms: functions of a `Record`, in the frame of the SAE's prep.

A row loss returns one value per row; the recipe's `reduce` (the mean) reduces
it to a scalar. A batch loss returns a scalar. Each docstring says what is
summed and what is averaged, since that sets the scale of every coefficient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.training.recipe import Record, mean

EPS = 1e-12


def mse(record: Record) -> Float[Array, "*b"]:
  """|y - x_hat|^2 of each row, summed over d; y is x, or the target.

  Args:
    record: the training pass.
  """
  return squares(record.forward.target - record.forward.x_hat)


def normalised_mse(record: Record) -> Float[Array, "*b"]:
  """|y - x_hat|^2 of each row over the batch's mean |y - mean_B y|^2.

  Its mean over rows is the fraction of variance unexplained in the batch. 0
  where the rows do not vary.

  Args:
    record: the training pass.
  """
  return ratio(mse(record), target_variance(record))


def batch_norm_mse(record: Record) -> Float[Array, "*b"]:
  """mean_d (y - x_hat)^2 of each row over the row's |y - mean_B y|.

  It grows linearly, not quadratically, with the scale of the rows, and is 0
  where the rows do not vary.

  Args:
    record: the training pass.

  References:
    He et al., Llama Scope, 2024, arXiv:2410.20526.
  """
  y = record.forward.target
  if record.whole is None:
    centre = mean_row(y, record.batch.weight)
  else:
    centre = record.whole.target.mean
  spread = jnp.sqrt(jnp.maximum(squares(y - centre), 1e-8))
  loss = mse(record) / (y.shape[-1] * spread)
  return jnp.where(target_variance(record) > EPS, loss, 0.0)


def l1(record: Record) -> Float[Array, "*b"]:
  """sum_i |z_i| of each row.

  Args:
    record: the training pass.
  """
  return record.forward.latents.sum()


def l1_decoder_norm(record: Record) -> Float[Array, "*b"]:
  """sum_i |z_i| |w_i| of each row, w_i the decoder's row.

  Unlike plain L1 it does not fall when the decoder grows and the latents
  shrink, so that the decoder may stay free.

  Args:
    record: the training pass.

  References:
    Conerly et al., Update on how we train SAEs, Transformer Circuits, 2024.
  """
  norms = jnp.linalg.norm(record.forward.W_dec, axis=-1)
  return record.forward.latents.sum(norms)


def l2(record: Record) -> Float[Array, "*b"]:
  """sum_i z_i^2 of each row, over the active latents.

  Args:
    record: the training pass.
  """
  return record.forward.latents.squares()


def l2_before_selection(record: Record) -> Float[Array, "*b"]:
  """sum_i relu(a_i)^2 of each row, over all latents: dense engine.

  Args:
    record: the training pass, with its pre-activations.

  Raises:
    ValueError: the record has no pre-activations (sparse engine).
  """
  if record.forward.pre is None:
    raise ValueError("this penalty reads all pre-activations: dense engine")
  return squares(jax.nn.relu(record.forward.pre.a))


def norm_mismatch(record: Record) -> Float[Array, "*b"]:
  """(|z| - |x|)^2 of each row, x in the frame of the prep.

  Were the dictionary's unit rows orthogonal, |z| would be |z W_dec|.

  Args:
    record: the training pass.
  """
  norm = jnp.sqrt(record.forward.latents.squares() + EPS)
  return jnp.square(norm - jnp.linalg.norm(record.forward.x, axis=-1))


def ratio(
  error: Float[Array, "*b"], spread: Float[Array, "*b"]
) -> Float[Array, "*b"]:
  """error / spread, 0 where the spread is 1e-12 or less.

  A batch of one row, or of equal rows, has no spread: a quotient of 10^12 would
  corrupt Adam's moments for the rest of the run.

  Args:
    error: numerators.
    spread: denominators, broadcastable to them.
  """
  return jnp.where(spread > EPS, error / jnp.maximum(spread, EPS), 0.0)


def squares(x: Float[Array, "*b d"]) -> Float[Array, "*b"]:
  """|x|^2 of each row.

  Args:
    x: rows.
  """
  return jnp.sum(jnp.square(x), axis=-1)


def mean_row(
  x: Float[Array, "*b d"], weight: Float[Array, "*b"] | None = None
) -> Float[Array, "d"]:
  """sum_b weight_b x_b / sum_b weight_b; the plain mean without weights.

  Args:
    x: rows.
    weight: weight of each row, or None.
  """
  rows = x.reshape(-1, x.shape[-1])
  if weight is None:
    return jnp.mean(rows, axis=0)
  each = weight.reshape(-1, 1)
  return jnp.sum(each * rows, axis=0) / jnp.maximum(jnp.sum(each), EPS)


def variance(
  x: Float[Array, "*b d"], weight: Float[Array, "*b"] | None = None
) -> Float[Array, ""]:
  """Weighted mean over rows of |x - weighted mean of x|^2.

  It is 0 where it is within the rounding error of the mean (1e-12 of the mean
  square).

  Args:
    x: rows.
    weight: weight of each row, or None.
  """
  spread = mean(squares(x - mean_row(x, weight)), weight)
  return jnp.where(spread > EPS * mean(squares(x), weight), spread, 0.0)


def target_variance(record: Record) -> Float[Array, ""]:
  """`variance` of the reconstruction targets over the whole batch.

  Args:
    record: the training pass.
  """
  if record.whole is not None:
    return record.whole.target.variance
  return variance(record.forward.target, record.batch.weight)


def residual_variance(record: Record) -> Float[Array, ""]:
  """`variance` of y - x_hat over the whole batch, without its gradient.

  Args:
    record: the training pass.

  Raises:
    ValueError: the pass is of a part of a batch, and the term that reads this
      does not say so (`Term.after`).
  """
  if record.whole is None:
    e = jax.lax.stop_gradient(record.forward.target - record.forward.x_hat)
    return variance(e, record.batch.weight)
  if record.whole.residual is None:
    raise ValueError("a term of the residual's variance needs Term(after=True)")
  return record.whole.residual.variance
