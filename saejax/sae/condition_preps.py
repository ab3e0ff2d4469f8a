"""Preps that depend on a condition of each row: a timestep, a layer.

`Batch.cond` holds the conditions [*b]: whole numbers in [0, T), or times in
[0, 1], which tables cut into T equal bins (`bins`).
"""

import math
from functools import partial
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Float, Int, PRNGKeyArray

from saejax.errors import InputError
from saejax.sae import prep as preps
from saejax.sae.part import Part

CONTINUOUS_BINS = 50  # number of bins of times in [0, 1]
EMBEDDING = 256  # width of the embedding of a time and of its MLP
LONGEST_PERIOD = 10_000.0
STEPS_OF_UNIT_TIME = 1000.0  # times in [0, 1] are embedded as 0 .. 1000
MIN_STD = 1e-6  # relative to the deviation over all coordinates


def bins(cond: Array, count: int, continuous: bool) -> Int[Array, "*b"]:
  """The index of the table that each row reads, clipped to [0, count).

  Args:
    cond: conditions.
    count: number of entries of the table.
    continuous: whether conditions are times in [0, 1].

  Raises:
    InputError: integers where times in [0, 1] are required.
  """
  if continuous:
    check_times(cond)
    cond = jnp.floor(cond.astype(jnp.float32) * count)
  return jnp.clip(cond.astype(jnp.int32), 0, count - 1)


def check_times(cond: Array) -> None:
  """Raises an InputError for integer timesteps instead of times in [0, 1].

  Args:
    cond: conditions.

  Raises:
    InputError: the conditions have an integer dtype.
  """
  if jnp.issubdtype(cond.dtype, jnp.integer):
    raise InputError(
      "cond",
      cond.dtype,
      "must be times in [0, 1], of a float dtype",
      "divide by the number of timesteps, or give timesteps to the recipe",
    )


def required(cond: Array | None) -> Array:
  """Returns the conditions, or raises where the batch has none.

  Args:
    cond: conditions, or None.

  Raises:
    InputError: the batch has no conditions.
  """
  if cond is None:
    raise InputError(
      "cond",
      None,
      "this SAE needs the condition of every row",
      "pass Batch(x=..., cond=...)",
    )
  return cond


class PerCondition(preps.Prep):
  """x' = (x - centre_c) / scale_c with c the row's condition; frozen.

  Attributes:
    centre: subtracted row per condition, in the units of x.
    scale: divisor per condition, in the units of x.
  """

  centre: Float[Array, "c d"]
  scale: Float[Array, "c"]

  def apply(
    self, x: Float[Array, "*b d"], cond: Array | None = None
  ) -> tuple[Array, tuple[Array, Array]]:
    which = bins(required(cond), self.scale.shape[-1], continuous=False)
    tables = jax.lax.stop_gradient((self.centre, self.scale[:, None]))
    centre, scale = (table[which] for table in tables)
    return (x.astype(jnp.float32) - centre) / scale, (centre, scale)

  def undo(
    self,
    x: Float[Array, "*b d"],
    statistics: tuple[Array, Array] | None = None,
  ) -> Array:
    centre, scale = _known(statistics)
    return x * scale + centre


def scaled(scale: Float[Array, "c"], d: int) -> PerCondition:
  """The prep that divides the rows of each condition by its scale.

  Args:
    scale: scale per condition.
    d: width.

  Raises:
    InputError: a scale is not positive.
  """
  scale = jnp.asarray(scale, jnp.float32)
  if scale.ndim != 1 or not bool(jnp.all((scale > 0) & jnp.isfinite(scale))):
    raise InputError(
      "scale",
      scale,
      "must be one positive number per condition",
      "pass the mean norm of each condition's rows",
    )
  return PerCondition(jnp.zeros((len(scale), d)), scale)


def per_condition(
  x: Float[Array, "*b d"],
  cond: Int[Array, "*b"],
  count: int,
  *,
  centred: bool = False,
) -> PerCondition:
  """The prep after which each condition's rows have mean norm 1.

  Args:
    x: raw rows.
    cond: their conditions in [0, count).
    count: number of conditions.
    centred: whether each condition's mean is subtracted first.

  Raises:
    InputError: a condition without rows, or whose rows are all equal (all 0
      where not centred). Inside `jit` its scale is NaN or 0 instead.
  """
  rows, which = _rows(x), jnp.asarray(cond).reshape(-1)
  own = partial(_means, which=which, count=count)
  centre = own(rows) if centred else jnp.zeros((count, rows.shape[-1]))
  scale = own(jnp.linalg.norm(rows - centre[which], axis=-1))
  if not isinstance(scale, core.Tracer):
    for c in np.flatnonzero(~(np.asarray(scale) > 0)):
      raise InputError(
        "cond",
        int(c),
        "every condition needs rows that are not all equal",
        "pass more rows, or fewer conditions",
      )
  return PerCondition(centre, scale)


def _rows(x: Float[Array, "*b d"]) -> Float[Array, "r d"]:
  return jnp.asarray(x, jnp.float32).reshape(-1, x.shape[-1])


def _means(values: Array, *, which: Array, count: int) -> Array:
  """The mean over the rows of each condition; NaN without rows."""
  total = jax.ops.segment_sum(values, which, count)
  rows = jax.ops.segment_sum(jnp.ones(len(which)), which, count)
  return total / rows.reshape(-1, *[1] * (values.ndim - 1))


class Modulation(Protocol):
  """Maps conditions to the log scale gamma and the shift beta, [*b, d] each."""

  def __call__(self, cond: Array) -> tuple[Array, Array]: ...


class Table(Part):
  """A table of gamma and beta per condition.

  Attributes:
    gamma: log scales.
    beta: shifts.
    continuous: whether conditions are times in [0, 1].
  """

  gamma: Float[Array, "c d"]
  beta: Float[Array, "c d"]
  continuous: bool = flax.struct.field(pytree_node=False, default=False)

  def __call__(self, cond: Array) -> tuple[Array, Array]:
    which = bins(cond, self.gamma.shape[-2], self.continuous)
    return self.gamma[which], self.beta[which]


class Sinusoidal(Part):
  """(gamma, beta) = W_out silu(W_2 silu(W_1 s(t) + b_1) + b_2) + b_out.

  s(t) are the cosines and sines of t at frequencies from 1 to 1/10000, as in
  diffusion models; a time in [0, 1] counts as one of a thousand steps.

  Attributes:
    W_1, b_1, W_2, b_2: weights and biases of the two hidden layers.
    W_out, b_out: output layer; starts at 0, which is the identity modulation.
    continuous: whether conditions are times in [0, 1].
  """

  W_1: Float[Array, "e e"]
  b_1: Float[Array, "e"]
  W_2: Float[Array, "e e"]
  b_2: Float[Array, "e"]
  W_out: Float[Array, "2d e"]
  b_out: Float[Array, "2d"]
  continuous: bool = flax.struct.field(pytree_node=False, default=False)

  def __call__(self, cond: Array) -> tuple[Array, Array]:
    h = self.embed(cond)
    h = jax.nn.silu(h @ self.W_1.T + self.b_1)
    h = jax.nn.silu(h @ self.W_2.T + self.b_2)
    gamma, beta = jnp.split(h @ self.W_out.T + self.b_out, 2, axis=-1)
    return gamma, beta

  def embed(self, cond: Array) -> Float[Array, "*b e"]:
    """The cosines, then the sines, of t: s(t).

    Args:
      cond: conditions [*b], timesteps or times in [0, 1].

    Raises:
      InputError: `continuous`, and the conditions have an integer dtype.
    """
    if self.continuous:
      check_times(cond)
    half = self.W_1.shape[-1] // 2
    rates = jnp.exp(
      -math.log(LONGEST_PERIOD) * jnp.arange(half, dtype=jnp.float32) / half
    )
    t = cond.astype(jnp.float32) * (
      STEPS_OF_UNIT_TIME if self.continuous else 1.0
    )
    angles = t[..., None] * rates
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def table(d: int, count: int, *, continuous: bool = False) -> Table:
  """A table of zeros: the identity modulation.

  Args:
    d: width.
    count: number of entries.
    continuous: whether conditions are times in [0, 1].
  """
  gamma, beta = jnp.zeros((2, count, d))
  return Table(gamma, beta, continuous=continuous)


def sinusoidal(
  key: PRNGKeyArray, d: int, *, width: int = EMBEDDING, continuous: bool = False
) -> Sinusoidal:
  """A sinusoidal embedding and its MLP, initially the identity modulation.

  Hidden weights are normal with variance 1 / inputs.

  Args:
    key: key of the weights.
    d: width.
    width: width of the embedding.
    continuous: whether conditions are times in [0, 1].
  """
  draw = lambda key: jax.random.normal(key, (width, width)) / math.sqrt(width)
  one, two = jax.random.split(key)
  return Sinusoidal(
    W_1=draw(one),
    b_1=jnp.zeros((width,)),
    W_2=draw(two),
    b_2=jnp.zeros((width,)),
    W_out=jnp.zeros((2 * d, width)),
    b_out=jnp.zeros((2 * d,)),
    continuous=continuous,
  )


def standardised(
  x: Float[Array, "*b d"],
  cond: Array,
  count: int = CONTINUOUS_BINS,
  *,
  continuous: bool = False,
) -> Table:
  """The table that gives each condition's coordinates mean 0, deviation 1.

      gamma_c = -log std_c,   beta_c = -mean_c / std_c

  A condition with fewer than two rows takes the mean and deviation of all.

  Args:
    x: raw rows.
    cond: their conditions.
    count: number of conditions, or of bins of times.
    continuous: whether conditions are times in [0, 1].

  Raises:
    InputError: the rows do not vary.
  """
  rows = _rows(x)
  which = bins(jnp.asarray(cond), count, continuous).reshape(-1)
  floor = MIN_STD * jnp.sqrt(jnp.mean(jnp.var(rows, axis=0)))
  if not isinstance(floor, core.Tracer) and not floor > 0:
    raise InputError("rows", len(rows), "must vary", "pass rows that differ")
  own = partial(_means, which=which, count=count)
  mean = own(rows)
  std = jnp.sqrt(own(jnp.square(rows - mean[which])))
  several = jax.ops.segment_sum(jnp.ones(len(rows)), which, count)[:, None] > 1
  mean = jnp.where(several, mean, jnp.mean(rows, axis=0))
  std = jnp.where(several, std, jnp.std(rows, axis=0))
  std = jnp.maximum(std, floor)
  return Table(-jnp.log(std), -mean / std, continuous=continuous)


class Modulated(preps.Prep):
  """x' = inner(x) exp(gamma(t)) + beta(t), t the row's condition.

  The exponential makes it always invertible. A direction w of the dictionary
  is w exp(-gamma(t)) in the units of inner(x). The modulation is trained,
  unless `frozen`.

  Attributes:
    modulation: maps a condition to gamma and beta.
    inner: the prep applied first.
    frozen: whether no gradient reaches the modulation.
  """

  modulation: Modulation
  inner: preps.Prep = preps.Identity()
  frozen: bool = flax.struct.field(pytree_node=False, default=False)

  def apply(
    self, x: Float[Array, "*b d"], cond: Array | None = None
  ) -> tuple[Array, tuple[Array, Array, Any]]:
    frame, statistics = self.inner.apply(x, cond)
    gamma, beta = self.modulation(required(cond))
    if self.frozen:
      gamma, beta = jax.lax.stop_gradient((gamma, beta))
    return frame * jnp.exp(gamma) + beta, (gamma, beta, statistics)

  def undo(
    self,
    x: Float[Array, "*b d"],
    statistics: tuple[Array, Array, Any] | None = None,
  ) -> Array:
    gamma, beta, inner_statistics = _known(statistics)
    return self.inner.undo((x - beta) * jnp.exp(-gamma), inner_statistics)


def _known(statistics: Any) -> Any:
  if statistics is None:
    raise ValueError(
      "a prep by condition cannot be undone without the rows' conditions; use "
      "reconstruct(Batch(x=..., cond=...))"
    )
  return statistics
