"""Budgets: the number of latents that a `Ranked` activation keeps.

A budget maps an encoder's `Pre` and the `Context` to latents per row, a scalar
or [*b, 1]; or, for scope "column", to rows per latent [n].
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.errors import InputError
from saejax.kernels.topk import select
from saejax.sae.context import Context, Pre
from saejax.sae.part import Part


class Budget(Part):
  """Base class of budgets."""

  @property
  def mean_k(self) -> float | None:
    """Final mean number of latents per row; None where rows determine it."""
    return None

  def with_k(self, k: int) -> "Budget":
    """Returns a copy with another k; itself where it has no k.

    Args:
      k: active latents per row.
    """
    del k
    return self

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "..."]:
    """Latents per row, or rows per latent.

    Args:
      pre: pre-activations.
      ctx: context of the rows.
    """
    raise NotImplementedError


class Constant(Budget):
  """k latents per row, which may be fractional under batch scope."""

  k: float = flax.struct.field(pytree_node=False)

  @property
  def mean_k(self) -> float:
    return self.k

  def with_k(self, k: int) -> "Constant":
    return self.replace(k=k)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, ""]:
    return jnp.asarray(self.k if ctx.k is None else ctx.k, jnp.float32)


class Annealed(Budget):
  """Anneals k linearly from k_start over the first steps, then stays at k.

      k_t = k_start + (k - k_start) min(t / steps, 1), rounded down

  Attributes:
    k: final value, also used outside training.
    k_start: value at step 0.
    steps: duration of the annealing.
    round_up: whether k_t is rounded up instead of down.
  """

  k: float = flax.struct.field(pytree_node=False)
  k_start: float = flax.struct.field(pytree_node=False)
  steps: int = flax.struct.field(pytree_node=False)
  round_up: bool = flax.struct.field(pytree_node=False, default=False)

  @property
  def mean_k(self) -> float:
    return self.k

  def with_k(self, k: int) -> "Annealed":
    return self.replace(k=k)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, ""]:
    k = jnp.asarray(self.k if ctx.k is None else ctx.k, jnp.float32)
    if ctx.step is None:
      return k
    t = jnp.minimum(ctx.step.astype(jnp.float32) / self.steps, 1.0)
    k_t = self.k_start + (k - self.k_start) * t
    # Tolerance: float rounding must not push a whole number to the next one.
    return jnp.ceil(k_t - 1e-3) if self.round_up else jnp.floor(k_t + 1e-3)


RANK = "rank"  # statistic: place of each latent, 0 the most frequent


class Zipf(Budget):
  """Rows per latent, for scope "column", by a Zipf-Mandelbrot law of its rank.

      m_i = clip(c p(r_i), 1, B),   p(r) ~ 1 / (r + beta)^alpha,  r = 1 .. n

  with c such that sum_i m_i = M = k B, rounded by largest remainder; B counts
  the rows of non-zero weight. alpha = 0 gives every latent M / n rows. Where
  padding leaves so few rows that M < n, some latents have none. Ranks are the
  statistic "rank"; without it a latent's rank is its index.

  Attributes:
    k: mean number of latents per row.
    alpha, beta: exponent and offset of the law.

  References:
    Ayonrinde, Adaptive Sparse Allocation with Mutual Choice & Feature Choice
    Sparse Autoencoders, 2024, arXiv:2411.02124.
  """

  k: float = flax.struct.field(pytree_node=False)
  alpha: float = flax.struct.field(pytree_node=False, default=1.0)
  beta: float = flax.struct.field(pytree_node=False, default=5.0)

  @property
  def mean_k(self) -> float:
    return self.k

  def with_k(self, k: int) -> "Zipf":
    return self.replace(k=k)

  def __call__(self, pre: Pre, ctx: Context) -> Int[Array, "n"]:
    """Number of rows of each latent.

    Raises:
      InputError: k B is below n, so that some latents would have no row.
    """
    *batch, n = pre.a.shape
    if ctx.k is None:
      check_rows(self.k, n, math.prod(batch))
    rows = jnp.asarray(math.prod(batch), jnp.float32)
    if ctx.batch.weight is not None:
      rows = jnp.sum(ctx.batch.weight != 0, dtype=jnp.float32)
    total = jnp.floor(Constant(self.k)(pre, ctx) * rows + 1e-4)
    m = allot(zipf(n, self.alpha, self.beta), total, rows)
    return m[ctx.stats[RANK]] if RANK in ctx.stats else m


def zipf(n: int, alpha: float, beta: float) -> Float[Array, "n"]:
  """p(r) ~ 1 / (r + beta)^alpha for r = 1 .. n, with sum 1.

  Args:
    n: number of ranks.
    alpha: exponent.
    beta: shift of the rank.
  """
  p = (jnp.arange(1, n + 1, dtype=jnp.float32) + beta) ** -alpha
  return p / jnp.sum(p)


def allot(
  shares: Float[Array, "n"], total: Float[Array, ""], most: Float[Array, ""]
) -> Int[Array, "n"]:
  """Integers in [1, most] with a given sum, proportional to the shares.

  clip(c shares, 1, most) with c found by bisection, rounded down; the remainder
  goes to the largest fractional parts, lowest index first. Exact for totals up
  to n most below 2^24. For totals below n the lower bound is 0.

  Args:
    shares: positive weights.
    total: sum of the result.
    most: upper bound of each integer.
  """
  least = jnp.where(total < shares.shape[-1], 0.0, 1.0)
  sized = lambda c: jnp.clip(c * shares, least, most)

  def halve(_, ends):
    low, high = ends
    middle = (low + high) / 2
    over = jnp.sum(sized(middle)) > total
    return jnp.where(over, low, middle), jnp.where(over, middle, high)

  ends = jnp.zeros(()), most / jnp.min(shares)
  low, _ = jax.lax.fori_loop(0, 64, halve, ends)
  m = sized(low)
  whole = jnp.floor(m).astype(jnp.int32)
  left = total.astype(jnp.int32) - jnp.sum(whole)
  remainder = jnp.where(m < most, m - jnp.floor(m), -1.0)
  return whole + select.largest(remainder, left, (0,)).astype(jnp.int32)


def check_rows(k: float, n: int, rows: int) -> None:
  """Raises an InputError for batches too small to give every latent a row.

  Args:
    k: mean number of active latents per row.
    n: number of latents.
    rows: rows per batch.

  Raises:
    InputError: k rows is outside [n, n rows].
  """
  if not n <= k * rows <= n * rows:
    raise InputError(
      "batch_rows",
      rows,
      f"k batch_rows = {k * rows:g} must be in [n={n}, n batch_rows], so that "
      "each latent gets between one row and all rows",
      f"use batches of at least {math.ceil(n / k)} rows, or another k or n",
    )
