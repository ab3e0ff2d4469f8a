"""Synthetic rows with a known dictionary, X = H V, and variants for methods.

V [n, d] are directions and H [rows, n] sparse codes. Three choices are
independent: the support of H (`bernoulli`, `exactly`, `grouped`, `tree`,
`sometimes`), its values there (`coefficients`), and V (`directions`,
`orthonormal`, `subspaces`). Functions are pure functions of a key and work
inside `jit`; numbers of rows are static. Functions of rows with further fields
(`scored`, `conditioned`, `paired`, `layered`) return a batch, with the ground
truth under additional names.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from saejax.data import supports
from saejax.errors import InputError

Key = PRNGKeyArray

# Supports have a file of their own, and names here too.
bernoulli = supports.bernoulli
decaying = supports.decaying
exactly = supports.exactly
grouped = supports.grouped
mixed = supports.mixed
parent_of = supports.parent_of
power_law = supports.power_law
sometimes = supports.sometimes
tree = supports.tree

# --- directions V ------------------------------------------------------------


def directions(key: Key, n: int, d: int) -> Float[Array, "n d"]:
  """Draws independent random unit rows V [n, d].

  Args:
    key: key of the draw.
    n: number of directions.
    d: width.
  """
  return _unit(jax.random.normal(key, (n, d)))


def orthonormal(key: Key, n: int, d: int) -> Float[Array, "n d"]:
  """Draws random orthonormal rows V [n, d].

  Args:
    key: key of the draw.
    n: number of directions, at most d.
    d: width.

  Raises:
    InputError: n is above d.
  """
  if n > d:
    raise InputError("n", n, f"must be at most d={d}", "lower it, or raise d")
  return jnp.linalg.qr(jax.random.normal(key, (d, n)))[0].T


def subspaces(
  key: Key, n: int, dims: Sequence[int], d: int
) -> list[Float[Array, "n d"]]:
  """Draws a dictionary of n unit rows in each of several orthogonal subspaces.

  Args:
    key: key of the draw.
    n: number of rows per dictionary.
    dims: dimensions of the subspaces, with sum at most d.
    d: width.

  Raises:
    InputError: the sum of dims is above d.
  """
  first, *keys = jax.random.split(key, len(dims) + 1)
  basis = orthonormal(first, sum(dims), d)
  parts = jnp.split(basis, np.cumsum(dims)[:-1].tolist())
  return [
    _unit(jax.random.normal(k, (n, len(part))) @ part)
    for k, part in zip(keys, parts, strict=True)
  ]


def _unit(W: Float[Array, "n d"]) -> Float[Array, "n d"]:
  return W / jnp.linalg.norm(W, axis=-1, keepdims=True)


# --- codes and rows ----------------------------------------------------------


def coefficients(
  key: Key,
  on: Bool[Array, "rows n"],
  *,
  low: float = 0.5,
  high: float = 1.5,
  signed: bool = False,
) -> Float[Array, "rows n"]:
  """Draws H: uniform on (low, high) for active features, 0 elsewhere.

  Args:
    key: key of the draw.
    on: active features.
    low: lower bound of |H|.
    high: upper bound of |H|; equal to low for a constant.
    signed: draws signs too, with equal probability.
  """
  size, sign = jax.random.split(key)
  H = jax.random.uniform(size, on.shape, minval=low, maxval=high)
  if signed:
    H = H * jax.random.rademacher(sign, on.shape, H.dtype)
  return jnp.where(on, H, 0.0)


def noisy(
  key: Key, x: Float[Array, "*b d"], scale: float
) -> Float[Array, "*b d"]:
  """Adds Gaussian noise to x.

  Args:
    key: key of the noise.
    x: rows.
    scale: standard deviation of the noise.
  """
  return x + scale * jax.random.normal(key, x.shape)


def sparse(
  key: Key, rows: int, V: Float[Array, "n d"], active: float = 3.0, **size: Any
) -> Float[Array, "rows d"]:
  """Draws X = H V with equally frequent, independent features.

  Args:
    key: key of the draw.
    rows: number of rows.
    V: directions.
    active: mean number of active features per row.
    **size: arguments of `coefficients`.

  >>> V = directions(jax.random.key(0), n=8, d=4)
  >>> sparse(jax.random.key(1), 5, V).shape
  (5, 4)
  """
  where, how = jax.random.split(key)
  p = jnp.full((len(V),), active / len(V))
  return coefficients(how, bernoulli(where, rows, p), **size) @ V


# --- rows with further fields ------------------------------------------------


def scored(
  key: Key,
  rows: int,
  V: Float[Array, "n d"],
  axis: Float[Array, "d"],
  *,
  active: Sequence[int] = (2, 20),
  scores: Sequence[float] = (2.0, 8.0),
  **size: Any,
) -> dict[str, Array]:
  """Draws rows whose number of active features is linearly readable.

  x = H V + score axis, where a row has active_j features and the score
  scores_j, with j drawn uniformly.

  Args:
    key: key of the draw.
    rows: number of rows.
    V: directions.
    axis: direction of the score.
    active: numbers of active features.
    scores: score for each of them.
    **size: arguments of `coefficients`.

  Returns:
    x [rows, d], score [rows], and "active" [rows], the true number of features.
  """
  kind, where, how = jax.random.split(key, 3)
  which = jax.random.randint(kind, (rows,), 0, len(active))
  count = jnp.asarray(active, jnp.int32)[which]
  score = jnp.asarray(scores, jnp.float32)[which]
  on = exactly(where, rows, count, jnp.ones((len(V),)))
  x = coefficients(how, on, **size) @ V + score[:, None] * axis[None]
  return {"x": x, "score": score, "active": count}


def affines(
  key: Key, conditions: int, d: int, *, ratio: float = 10.0, shift: float = 1.0
) -> tuple[Float[Array, "t"], Float[Array, "t d"]]:
  """Returns scales and shifts per condition, for `conditioned`.

  Args:
    key: key of the shifts.
    conditions: number of conditions t.
    d: width.
    ratio: largest scale; scales grow geometrically from 1.
    shift: standard deviation of the Gaussian shifts.
  """
  scale = jnp.asarray(np.geomspace(1.0, ratio, conditions), jnp.float32)
  return scale, shift * jax.random.normal(key, (conditions, d))


def conditioned(
  key: Key,
  x: Float[Array, "rows d"],
  scale: Float[Array, "t"],
  shift: Float[Array, "t d"],
) -> dict[str, Array]:
  """Draws a condition t per row and returns x_t = scale(t) x + shift(t).

  Args:
    key: key of the conditions.
    x: rows.
    scale: scale per condition.
    shift: shift per condition.

  Returns:
    x [rows, d] and cond [rows] int32.
  """
  cond = jax.random.randint(key, (x.shape[0],), 0, len(scale))
  return {"x": scale[cond][:, None] * x + shift[cond], "cond": cond}


def paired(
  key: Key,
  pairs: int,
  common: Float[Array, "n d"],
  first: Float[Array, "p d"],
  second: Float[Array, "q d"],
  active: float = 2.0,
  **size: Any,
) -> dict[str, Array]:
  """Draws pairs (u + v, u + w) with a shared part and a private part each.

  Args:
    key: key of the draw.
    pairs: number of pairs.
    common: directions of u.
    first: directions of v, only in the first of each pair.
    second: directions of w, only in the second of each pair.
    active: mean number of active features of each of u, v and w.
    **size: arguments of `coefficients`.

  Returns:
    x [pairs, 2, d].
  """
  keys = jax.random.split(key, 3)
  u, v, w = (
    sparse(k, pairs, V, active, **size)
    for k, V in zip(keys, (common, first, second), strict=True)
  )
  return {"x": jnp.stack([u + v, u + w], axis=1)}


def layered(
  key: Key,
  rows: int,
  dictionaries: Sequence[Float[Array, "n d"]],
  groups: Sequence[int],
  *,
  scales: Sequence[float] | None = None,
  noise: float = 0.0,
  active: float = 3.0,
  **size: Any,
) -> dict[str, Array]:
  """Draws layers in groups of equal features: x_l = scale_l H_g V_g.

  Args:
    key: key of the draw.
    rows: number of tokens.
    dictionaries: V_g of each group.
    groups: group of each layer, such as (0, 0, 0, 1, 1, 1).
    scales: scale of each layer; 1 by default.
    noise: standard deviation of the noise of each layer, before its scale.
    active: mean number of active features of a group.
    **size: arguments of `coefficients`.

  Returns:
    x [rows, layers, d].
  """
  last, *keys = jax.random.split(key, len(dictionaries) + 1)
  parts = jnp.stack(
    [
      sparse(k, rows, V, active, **size)
      for k, V in zip(keys, dictionaries, strict=True)
    ],
    axis=1,
  )
  x = noisy(last, parts[:, jnp.asarray(groups)], noise)
  scale = jnp.ones((len(groups),)) if scales is None else jnp.asarray(scales)
  return {"x": x * scale.astype(jnp.float32)[None, :, None]}
