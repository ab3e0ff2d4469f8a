"""Synthetic rows with a known dictionary, X = H V, and variants for methods.

V [n, d] are directions, H [rows, n] sparse codes, drawn in three independent
choices: where a code is not 0 (`bernoulli`, `exactly`, `grouped`, `tree`,
`sometimes`), how large it is there (`coefficients`), and V (`directions`,
`orthonormal`, `subspaces`). Everything is a pure function of a key and works
inside `jit`; numbers of rows are static. What needs further fields of a row
(`scored`, `conditioned`, `paired`, `layered`) returns them by the names that a
batch has, with the truth beside them under other names.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from saejax.errors import InputError

Key = PRNGKeyArray

# --- directions V ------------------------------------------------------------


def directions(key: Key, n: int, d: int) -> Float[Array, "n d"]:
  """Independent random unit rows."""
  return _unit(jax.random.normal(key, (n, d)))


def orthonormal(key: Key, n: int, d: int) -> Float[Array, "n d"]:
  """Orthonormal rows, n <= d.

  Raises:
    InputError: "n" above d.
  """
  if n > d:
    raise InputError("n", n, f"must be at most d={d}", "lower it, or raise d")
  return jnp.linalg.qr(jax.random.normal(key, (d, n)))[0].T


def subspaces(
  key: Key, n: int, dims: Sequence[int], d: int
) -> list[Float[Array, "n d"]]:
  """A dictionary of n unit rows in each of several orthogonal subspaces.

  Args:
    key: of all.
    n: rows of each dictionary.
    dims: dimensions of the subspaces, in sum at most d.
    d: width.
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


# --- frequencies -------------------------------------------------------------


def decaying(n: int, active: float, decay: float) -> Float[np.ndarray, "n"]:
  """p_i = decay^i active / n: as in Cunningham et al., 2023, arXiv:2309.08600.

  Fewer than `active` are on in the mean where decay is below 1.
  """
  return _probabilities(decay ** np.arange(n) * (active / n))


def power_law(n: int, active: float, exponent: float) -> Float[np.ndarray, "n"]:
  """p_i = c (i + 1)^-exponent, c such that `active` are on in the mean."""
  p = np.arange(1, n + 1, dtype=np.float64) ** -exponent
  return _probabilities(p * (active / p.sum()))


def _probabilities(p: np.ndarray) -> Float[np.ndarray, "n"]:
  if not (p >= 0).all() or p.max() > 1:
    raise InputError(
      "active",
      float(p.sum()),
      f"no feature can be on with probability {p.max():.3g}",
      "lower it, or the decay",
    )
  return p.astype(np.float32)


# --- where codes are not 0 ---------------------------------------------------


def bernoulli(
  key: Key, rows: int, p: Float[Array, "n"]
) -> Bool[Array, "rows n"]:
  """Feature i is on with probability p_i, independently."""
  p = jnp.asarray(p, jnp.float32)
  return jax.random.bernoulli(key, p[None], (rows, len(p)))


def exactly(
  key: Key,
  rows: int,
  active: int | Int[Array, "rows"],
  weights: Float[Array, "*rows n"],
) -> Bool[Array, "rows n"]:
  """Draws a given number of distinct features for each row.

  They are drawn one after another without replacement with probabilities
  proportional to the weights, by the largest of log w + Gumbel noise.

  Args:
    key: of the draw.
    rows: how many.
    active: features on, of all rows or of each.
    weights: of the features, for all rows or for each; 0 never is on.
  """
  weights = jnp.asarray(weights, jnp.float32)
  weights = jnp.broadcast_to(weights, (rows, weights.shape[-1]))
  score = jnp.log(weights) + jax.random.gumbel(key, weights.shape)
  order = jnp.argsort(-score, axis=-1)
  rank = jnp.argsort(order, axis=-1)
  limit = jnp.broadcast_to(jnp.asarray(active, jnp.int32), (rows,))
  return (rank < limit[:, None]) & (weights > 0)


def mixed(key: Key, rows: int, active: Sequence[int]) -> Int[Array, "rows"]:
  """The number of features of each row, one of several with equal chance.

  For `exactly`: (3, 20) is the mixture of Chen et al., 2025, arXiv:2506.14002.
  """
  return jax.random.choice(key, jnp.asarray(active, jnp.int32), (rows,))


def grouped(
  key: Key,
  rows: int,
  n: int,
  *,
  groups: int,
  active: int,
  decay: float = 0.99,
) -> Bool[Array, "rows n"]:
  """Draws one group of features per row, and features in it by weights decay^i.

  Groups are runs of n // groups features; what is left over is never on. With
  n 512, groups 12, active 32 the data of Marks et al., 2024, arXiv:2411.01220.

  Raises:
    InputError: "active" above the size of a group.
  """
  size = n // groups
  if not 1 <= active <= size:
    raise InputError(
      "active",
      active,
      f"must be in [1, {size}], the features of a group",
      "lower it, or the number of groups",
    )
  which, chosen = jax.random.split(key)
  group = jax.random.randint(which, (rows,), 0, groups)
  feature = jnp.arange(n)
  weight = decay ** (feature % size).astype(jnp.float32)
  inside = (feature // size)[None] == group[:, None]
  return exactly(chosen, rows, active, jnp.where(inside, weight[None], 0.0))


def tree(
  key: Key,
  rows: int,
  *,
  parents: int = 4,
  children: int = 3,
  p_parent: float = 0.15,
  p_child: float = 0.6,
) -> Bool[Array, "rows n"]:
  """Features that are on only where their parent is.

  Each parent is on by itself with p_parent; a parent that is on has exactly
  one of its children, each as likely, with p_child, else none. Of the n =
  parents (1 + children) features parents come first, then the children of the
  first parent, and so on: `parent_of` says whose they are.
  """
  on, any_child, which = jax.random.split(key, 3)
  parent = jax.random.bernoulli(on, p_parent, (rows, parents))
  has = jax.random.bernoulli(any_child, p_child, (rows, parents)) & parent
  chosen = jax.random.randint(which, (rows, parents), 0, children)
  child = chosen[..., None] == jnp.arange(children)[None, None]
  child = (child & has[..., None]).reshape(rows, -1)
  return jnp.concatenate([parent, child], axis=-1)


def parent_of(parents: int = 4, children: int = 3) -> Int[np.ndarray, "n"]:
  """The parent of each feature of a `tree`; -1 of the parents themselves."""
  own = np.full(parents, -1)
  return np.concatenate([own, np.repeat(np.arange(parents), children)])


def sometimes(
  key: Key,
  often: Bool[Array, "rows n"],
  seldom: Bool[Array, "rows m"],
  share: float,
) -> tuple[Bool[Array, "rows n+m"], Bool[Array, "rows"]]:
  """Rows of a rare domain among common ones.

  Args:
    key: of the choice.
    often: the features of each row, if it is common.
    seldom: its features, if it is rare; they come after the others.
    share: of rare rows.

  Returns:
    Features, of which a row has those of one domain, and which rows are rare.
  """
  rare = jax.random.bernoulli(key, share, (often.shape[0],))
  parts = [often & ~rare[:, None], seldom & rare[:, None]]
  return jnp.concatenate(parts, axis=-1), rare


# --- codes and rows ----------------------------------------------------------


def coefficients(
  key: Key,
  on: Bool[Array, "rows n"],
  *,
  low: float = 0.5,
  high: float = 1.5,
  signed: bool = False,
) -> Float[Array, "rows n"]:
  """H: uniform on (low, high) where features are on, 0 elsewhere.

  Args:
    key: of the draw.
    on: where.
    low: least size.
    high: largest size; the same as low gives one size.
    signed: either sign with equal chance.
  """
  size, sign = jax.random.split(key)
  H = jax.random.uniform(size, on.shape, minval=low, maxval=high)
  if signed:
    H = H * jax.random.rademacher(sign, on.shape, H.dtype)
  return jnp.where(on, H, 0.0)


def noisy(
  key: Key, x: Float[Array, "*b d"], scale: float
) -> Float[Array, "*b d"]:
  """x with Gaussian noise of a standard deviation."""
  return x + scale * jax.random.normal(key, x.shape)


def sparse(
  key: Key, rows: int, V: Float[Array, "n d"], active: float = 3.0, **size: Any
) -> Float[Array, "rows d"]:
  """X = H V where all features are as frequent and `active` on in the mean.

  Args:
    key: of all.
    rows: how many.
    V: directions.
    active: mean number of features of a row.
    **size: of `coefficients`.
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
  """Rows of unlike complexity, which can be read off them linearly.

  x = H V + score axis, with active_j features where the score is score_j.

  Returns:
    x [rows, d], score [rows], and the true number of features "active" [rows].
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
  """Scales from 1 to `ratio`, geometric, and Gaussian shifts, by condition."""
  scale = jnp.asarray(np.geomspace(1.0, ratio, conditions), jnp.float32)
  return scale, shift * jax.random.normal(key, (conditions, d))


def conditioned(
  key: Key,
  x: Float[Array, "rows d"],
  scale: Float[Array, "t"],
  shift: Float[Array, "t d"],
) -> dict[str, Array]:
  """x_t = scale(t) x + shift(t), with a condition t drawn for each row.

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
  """Pairs (u + v, u + w): a shared part and two private ones.

  Args:
    key: of all.
    pairs: how many.
    common: directions of u.
    first: directions of v, in the first of each pair only.
    second: directions of w, in the second only.
    active: mean number of features of u, of v and of w.
    **size: of `coefficients`.

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
  """Layers of a model of which some say the same: x_l = scale_l H_g V_g.

  Args:
    key: of all.
    rows: tokens.
    dictionaries: V_g of each group.
    groups: the group of each layer, such as (0, 0, 0, 1, 1, 1).
    scales: of the layers; all 1 by default.
    noise: standard deviation of what each layer has of its own, before its
      scale.
    active: mean number of features of a group.
    **size: of `coefficients`.

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
