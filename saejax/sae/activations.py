"""From pre-activations to latents: what is kept, and with which value.

An activation maps an encoder's `Pre` and the pass's `Context` to latents
z [*b, n]. What is ranked (the score) and what is kept (the value) are chosen
apart, by name:

    score  value: a      magnitude: |a|      norm: a |w_i|
    keep   relu: max(a, 0)      signed: a

An activation that keeps at most `row_k` latents a row, and ranks a or |a|, is
`fused`: it also maps its row's `row_k` largest pre-activations to their values,
which is all the sparse engine computes.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from saejax.kernels.topk import op as topk
from saejax.kernels.topk import select
from saejax.sae import budgets
from saejax.sae.context import Context, Pre
from saejax.sae.part import Part

SCORES: dict[str, Callable[[Pre, Context], Array]] = {
  "value": lambda pre, ctx: pre.a,
  "magnitude": lambda pre, ctx: jnp.abs(pre.a),
  "norm": lambda pre, ctx: pre.a * jax.lax.stop_gradient(ctx.norms),
}
KEEPS: dict[str, Callable[[Array], Array]] = {
  "relu": jax.nn.relu,
  "signed": lambda a: a,
}
SCOPES = ("row", "batch", "column")


class Activation(Part):
  """The base of activations; a subclass gives at least `__call__`."""

  @property
  def row_k(self) -> int | None:
    """Most latents a row keeps; None where a row is unbounded."""
    return None

  @property
  def fused(self) -> bool:
    """Whether the sparse engine serves it, given an encoder that has one."""
    return False

  @property
  def by_magnitude(self) -> bool:
    """Whether the largest are those of |a|."""
    return False

  @property
  def is_ordered(self) -> bool:
    """Whether sparse latents must come largest first."""
    return False

  def with_k(self, k: int) -> "Activation":
    """The same with another static k; itself where there is none."""
    del k
    return self

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    """Latents of pre-activations."""
    raise NotImplementedError

  def keep_largest(
    self, values: Float[Array, "*b k"], ctx: Context
  ) -> Float[Array, "*b k"]:
    """Values of a row's `row_k` largest pre-activations, where `fused`."""
    raise NotImplementedError


class ReLU(Activation):
  """z = max(a, 0)."""

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    return jax.nn.relu(pre.a)


class TopK(Activation):
  """The k highest scores of each row.

  Equal scores are kept lowest index first. With the defaults this is TopK then
  ReLU; score "magnitude" and keep "signed" make it AbsTopK; score "norm" ranks
  by the size of what a latent adds.

  Attributes:
    k: latents kept.
    score, keep: see the module.
    ordered: sparse latents come largest first, for losses over ranks.

  References:
    Makhzani and Frey, k-Sparse Autoencoders, 2013, arXiv:1312.5663.
    Gao et al., Scaling and evaluating sparse autoencoders, 2024,
    arXiv:2406.04093.
  """

  k: int = flax.struct.field(pytree_node=False)
  score: str = flax.struct.field(pytree_node=False, default="value")
  keep: str = flax.struct.field(pytree_node=False, default="relu")
  ordered: bool = flax.struct.field(pytree_node=False, default=False)

  @property
  def row_k(self) -> int:
    return self.k

  @property
  def fused(self) -> bool:
    return self.score in ("value", "magnitude")

  @property
  def by_magnitude(self) -> bool:
    return self.score == "magnitude"

  @property
  def is_ordered(self) -> bool:
    return self.ordered

  def with_k(self, k: int) -> "TopK":
    return self.replace(k=k)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    score = SCORES[self.score](pre, ctx)
    _, indices = topk.top_k(jax.lax.stop_gradient(score), self.k)
    values = jnp.take_along_axis(pre.a, indices, axis=-1)
    return jnp.put_along_axis(
      jnp.zeros_like(pre.a),
      indices,
      self.keep_largest(values, ctx),
      axis=-1,
      inplace=False,
    )

  def keep_largest(
    self, values: Float[Array, "*b k"], ctx: Context
  ) -> Float[Array, "*b k"]:
    values = KEEPS[self.keep](values)
    if ctx.k is None:
      return values
    return jnp.where(jnp.arange(self.k) < ctx.k, values, 0)


class Ranked(Activation):
  """The highest scores within a scope, as many as a budget says.

  Attributes:
    budget: see `sae.budgets`; gives latents a row (scope "row" and "batch",
      where rows share the sum of theirs) or rows a latent (scope "column").
    scope: "row", "batch" or "column": which entries compete.
    score, keep: see the module.

  Batch and column scope make a row's latents depend on the rest of the batch:
  they are for training, and a threshold takes their place afterwards. Rows of
  weight 0 take no part in either.
  """

  budget: budgets.Budget
  scope: str = flax.struct.field(pytree_node=False, default="row")
  score: str = flax.struct.field(pytree_node=False, default="value")
  keep: str = flax.struct.field(pytree_node=False, default="relu")

  def with_k(self, k: int) -> "Ranked":
    return self.replace(budget=self.budget.with_k(k))

  def chosen(self, pre: Pre, ctx: Context) -> Bool[Array, "*b n"]:
    """Which entries are kept; those that are not positive give 0 under relu."""
    score = SCORES[self.score](pre, ctx)
    count = self.budget(pre, ctx)
    if self.scope == "row":
      return select.largest(score, count, (-1,))
    counts = jnp.ones((*score.shape[:-1], 1))  # 0 for rows of weight 0
    if ctx.batch.weight is not None:
      counts = (ctx.batch.weight != 0).astype(jnp.float32)[..., None]
      score = jnp.where(counts > 0, score, -jnp.inf)
    batch = tuple(range(score.ndim - 1))
    if self.scope == "column":
      return select.largest(score, count, batch)
    # One product where all rows have one count: a sum of fractions would round.
    total = jnp.sum(counts * count) if count.ndim else count * jnp.sum(counts)
    return select.largest(
      score, jnp.floor(total + 1e-4), (*batch, score.ndim - 1)
    )

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    return jnp.where(self.chosen(pre, ctx), KEEPS[self.keep](pre.a), 0)


class Threshold(Activation):
  """Values whose score lies strictly above a threshold: the inference form.

  Attributes:
    theta: in the units of the score, [n] or one for all []; frozen.
    score, keep: see the module.
  """

  theta: Float[Array, "n"] | Float[Array, ""]
  score: str = flax.struct.field(pytree_node=False, default="value")
  keep: str = flax.struct.field(pytree_node=False, default="relu")

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    score = SCORES[self.score](pre, ctx)
    above = score > jax.lax.stop_gradient(self.theta)
    return jnp.where(above, KEEPS[self.keep](pre.a), 0)


class Phased(Activation):
  """One activation until a step, another from there on; the last outside.

  Attributes:
    before, after: the two.
    switch_step: first step of the second.
  """

  before: Activation
  after: Activation
  switch_step: int = flax.struct.field(pytree_node=False)

  def with_k(self, k: int) -> "Phased":
    return self.replace(
      before=self.before.with_k(k), after=self.after.with_k(k)
    )

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    if ctx.step is None:
      return self.after(pre, ctx)
    return jax.lax.cond(
      ctx.step < self.switch_step,
      lambda: self.before(pre, ctx),
      lambda: self.after(pre, ctx),
    )
