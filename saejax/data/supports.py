"""Which features of synthetic rows are active: frequencies and supports.

The functions are public as those of `synthetic`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from saejax.errors import InputError

Key = PRNGKeyArray

# --- frequencies -------------------------------------------------------------


def decaying(n: int, active: float, decay: float) -> Float[np.ndarray, "n"]:
  """Returns frequencies p_i = decay^i active / n.

  Their sum is `active` for decay 1 and smaller for a decay below 1.

  Args:
    n: number of features.
    active: frequency of feature 0 times n.
    decay: ratio of successive frequencies.

  Raises:
    InputError: a frequency is above 1.

  References:
    Cunningham et al., Sparse Autoencoders Find Highly Interpretable Features in
    Language Models, 2023, arXiv:2309.08600.

  >>> decaying(4, active=2.0, decay=0.5).tolist()
  [0.5, 0.25, 0.125, 0.0625]
  """
  return _probabilities(decay ** np.arange(n) * (active / n))


def power_law(n: int, active: float, exponent: float) -> Float[np.ndarray, "n"]:
  """Returns frequencies p_i = c (i + 1)^-exponent with sum `active`.

  Args:
    n: number of features.
    active: mean number of active features per row.
    exponent: exponent of the law; 0 gives equal frequencies.

  Raises:
    InputError: a frequency is above 1.
  """
  p = np.arange(1, n + 1, dtype=np.float64) ** -exponent
  return _probabilities(p * (active / p.sum()))


def _probabilities(p: np.ndarray) -> Float[np.ndarray, "n"]:
  if not (p >= 0).all() or p.max() > 1:
    raise InputError(
      "active",
      float(p.sum()),
      f"frequencies must be at most 1, got {p.max():.3g}",
      "lower it, or the decay or exponent",
    )
  return p.astype(np.float32)


# --- where codes are not 0 ---------------------------------------------------


def bernoulli(
  key: Key, rows: int, p: Float[Array, "n"]
) -> Bool[Array, "rows n"]:
  """Activates feature i with probability p_i, independently.

  Args:
    key: key of the draw.
    rows: number of rows.
    p: frequency of each feature.
  """
  p = jnp.asarray(p, jnp.float32)
  return jax.random.bernoulli(key, p[None], (rows, len(p)))


def exactly(
  key: Key,
  rows: int,
  active: int | Int[Array, "rows"],
  weights: Float[Array, "*rows n"],
) -> Bool[Array, "rows n"]:
  """Activates a given number of distinct features per row.

  Features are drawn without replacement with probabilities proportional to
  their weights, as the largest of log w + Gumbel noise.

  Args:
    key: key of the draw.
    rows: number of rows.
    active: number of active features, for all rows or per row.
    weights: weights of the features, for all rows or per row; features of
      weight 0 are never active.
  """
  weights = jnp.asarray(weights, jnp.float32)
  weights = jnp.broadcast_to(weights, (rows, weights.shape[-1]))
  score = jnp.log(weights) + jax.random.gumbel(key, weights.shape)
  order = jnp.argsort(-score, axis=-1)
  rank = jnp.argsort(order, axis=-1)
  limit = jnp.broadcast_to(jnp.asarray(active, jnp.int32), (rows,))
  return (rank < limit[:, None]) & (weights > 0)


def mixed(key: Key, rows: int, active: Sequence[int]) -> Int[Array, "rows"]:
  """Draws the number of active features per row, uniformly from several.

  The result is an argument of `exactly`; active=(3, 20) is the mixture of the
  reference.

  Args:
    key: key of the draw.
    rows: number of rows.
    active: the possible numbers.

  References:
    Chen et al., Taming Polysemanticity in LLMs: Provable Feature Recovery via
    Sparse Autoencoders, 2025, arXiv:2506.14002.
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
  """Activates features of one random group per row, by weights decay^i.

  Groups are runs of n // groups features; remaining features are never active.
  n=512, groups=12, active=32 is the setting of the reference.

  Args:
    key: key of the draw.
    rows: number of rows.
    n: number of features.
    groups: number of groups.
    active: number of active features per row.
    decay: ratio of successive weights within a group.

  Raises:
    InputError: `active` exceeds the size of a group.

  References:
    Marks et al., Enhancing Neural Network Interpretability with
    Feature-Aligned Sparse Autoencoders, 2024, arXiv:2411.01220.
  """
  size = n // groups
  if not 1 <= active <= size:
    raise InputError(
      "active",
      active,
      f"must be in [1, {size}], the number of features per group",
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
  """Activates features of a two-level tree: a child only with its parent.

  Each parent is active with probability p_parent, independently. An active
  parent has one active child with probability p_child, drawn uniformly, and
  otherwise none. The n = parents (1 + children) features are the parents, then
  the children of the first parent, and so on; see `parent_of`.

  Args:
    key: key of the draw.
    rows: number of rows.
    parents: number of parents.
    children: number of children per parent.
    p_parent: frequency of a parent.
    p_child: probability that an active parent has an active child.
  """
  on, any_child, which = jax.random.split(key, 3)
  parent = jax.random.bernoulli(on, p_parent, (rows, parents))
  has = jax.random.bernoulli(any_child, p_child, (rows, parents)) & parent
  chosen = jax.random.randint(which, (rows, parents), 0, children)
  child = chosen[..., None] == jnp.arange(children)[None, None]
  child = (child & has[..., None]).reshape(rows, -1)
  return jnp.concatenate([parent, child], axis=-1)


def parent_of(parents: int = 4, children: int = 3) -> Int[np.ndarray, "n"]:
  """Returns the parent of each feature of a `tree`; -1 for parents.

  Args:
    parents: number of parents.
    children: number of children per parent.

  >>> parent_of(parents=2, children=2).tolist()
  [-1, -1, 0, 0, 1, 1]
  """
  own = np.full(parents, -1)
  return np.concatenate([own, np.repeat(np.arange(parents), children)])


def sometimes(
  key: Key,
  often: Bool[Array, "rows n"],
  seldom: Bool[Array, "rows m"],
  share: float,
) -> tuple[Bool[Array, "rows n+m"], Bool[Array, "rows"]]:
  """Mixes rows of a rare domain into rows of a common one.

  Args:
    key: key of the choice.
    often: active features of each row, if it is of the common domain.
    seldom: active features of each row, if it is of the rare domain.
    share: probability that a row is of the rare domain.

  Returns:
    (active features, the n common ones first; whether each row is of the rare
      domain).
  """
  rare = jax.random.bernoulli(key, share, (often.shape[0],))
  parts = [often & ~rare[:, None], seldom & rare[:, None]]
  return jnp.concatenate(parts, axis=-1), rare
