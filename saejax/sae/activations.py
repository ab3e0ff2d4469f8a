"""Activations: map pre-activations to latents, by a selection and a value.

An activation maps an encoder's `Pre` and the pass's `Context` to latents
z [*b, n]. The ranked quantity (the score) and the kept value are chosen
independently, by name:

    score  value: a      magnitude: |a|      norm: a |w_i|
    keep   relu: max(a, 0)      signed: a

An activation that ranks a or |a| and keeps at most `row_k` latents per row, or a
fixed number in a batch, is `fused`: it also maps the largest pre-activations of
each row to latents, which is all the sparse engine computes.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from saejax.kernels.topk import op as topk
from saejax.kernels.topk import select
from saejax.sae import budgets
from saejax.sae.activation import KEEPS as KEEPS
from saejax.sae.activation import SCOPES as SCOPES
from saejax.sae.activation import SCORES as SCORES
from saejax.sae.activation import Activation as Activation
from saejax.sae.activation import Threshold as Threshold
from saejax.sae.activation import scaled_thetas as scaled_thetas
from saejax.sae.context import Context, Pre
from saejax.sae.latents import EntryLatents

SPARSE = 64  # latents per kept one from which a batch is faster as entries


class ReLU(Activation):
  """z = max(a, 0)."""

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    return jax.nn.relu(pre.a)

  def unit_norms(self, norms: Float[Array, "n"]) -> "ReLU":
    return self

  def flattened(self, members, alphas, n) -> "ReLU":
    return self


class TopK(Activation):
  """The k highest scores of each row.

  Equal scores are kept lowest index first. With the defaults this is TopK then
  ReLU; score "magnitude" and keep "signed" make it AbsTopK; score "norm" ranks
  by the size of what a latent adds.

  Attributes:
    k: active latents per row.
    score, keep: see the module.
    ordered: whether sparse latents come largest first, for losses over ranks.

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

  @property
  def by_norm(self) -> bool:
    return self.score == "norm"

  def threshold(self, theta) -> "Threshold":
    return Threshold(theta, self.score, self.keep)

  def unit_norms(self, norms: Float[Array, "n"]) -> Activation:
    return _by_value(self, super().unit_norms, norms)

  def rescaled(self, scale) -> "TopK":
    return self  # one scale for all latents keeps their order

  def flattened(self, members, alphas, n) -> "BlockTopK":
    return BlockTopK(self.k, len(members), score=self.score, keep=self.keep)


def _by_value(activation: Any, refuse: Callable, norms: Array) -> Activation:
  """An activation that ranks a |w|, for rows whose norms are in a."""
  if not activation.by_norm:
    return refuse(norms)
  return activation.replace(score="value")


class BlockTopK(Activation):
  """The k highest scores of each row in each of several blocks of latents.

  Latents are cut into `blocks` runs of equal length; within one this is TopK.

  Attributes:
    k: active latents per block.
    blocks: number of them; divides n.
    score, keep: see the module.
  """

  k: int = flax.struct.field(pytree_node=False)
  blocks: int = flax.struct.field(pytree_node=False)
  score: str = flax.struct.field(pytree_node=False, default="value")
  keep: str = flax.struct.field(pytree_node=False, default="relu")

  @property
  def row_k(self) -> int:
    return self.k * self.blocks

  def with_k(self, k: int) -> "BlockTopK":
    return self.replace(k=k)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    """Latents of pre-activations.

    Raises:
      ValueError: the blocks do not divide n, or hold fewer than k latents.
    """
    score = SCORES[self.score](pre, ctx)
    n = score.shape[-1]
    if n % self.blocks or self.k > n // self.blocks:
      raise ValueError(f"{self.blocks} blocks of at least {self.k} in n={n}")
    inside = score.reshape(*score.shape[:-1], self.blocks, n // self.blocks)
    count = self.k if ctx.k is None else ctx.k
    kept = select.largest(inside, jnp.asarray(count), (-1,))
    return jnp.where(kept.reshape(score.shape), KEEPS[self.keep](pre.a), 0)

  @property
  def by_norm(self) -> bool:
    return self.score == "norm"

  def threshold(self, theta) -> "Threshold":
    return Threshold(theta, self.score, self.keep)

  def unit_norms(self, norms: Float[Array, "n"]) -> Activation:
    return _by_value(self, super().unit_norms, norms)

  def rescaled(self, scale) -> "BlockTopK":
    return self


class Ranked(Activation):
  """Top-k selection with a variable k, or with one k shared by many rows.

  By scope, as the field calls them:

      row     adaptive k: the `budget` highest scores of each row, such as
              AdaptiveK's and top-AFA's; an annealed k
      batch   BatchTopK, also called Mutual Choice: the B k highest scores of
              the batch of B rows; made by `BatchTopK(k)`
      column  Feature Choice: the m_i highest scores of latent i over the batch;
              made by `FeatureChoice(k)`

  Under batch and column scope a row's latents depend on the rest of the batch:
  these scopes are for training, and a threshold replaces them afterwards. Rows
  of weight 0 are excluded from both.

  Attributes:
    budget: see `sae.budgets`; gives latents per row (scope "row" and "batch",
      where rows share the sum of theirs) or rows per latent (scope "column").
    scope: "row", "batch" or "column": which entries compete.
    score, keep: see the module.
  """

  budget: budgets.Budget
  scope: str = flax.struct.field(pytree_node=False, default="row")
  score: str = flax.struct.field(pytree_node=False, default="value")
  keep: str = flax.struct.field(pytree_node=False, default="relu")

  @property
  def mean_k(self) -> float | None:
    return self.budget.mean_k

  @property
  def by_row(self) -> bool:
    return self.scope == "row"

  @property
  def by_norm(self) -> bool:
    return self.score == "norm"

  def threshold(self, theta) -> "Threshold":
    return Threshold(theta, self.score, self.keep)

  def unit_norms(self, norms: Float[Array, "n"]) -> Activation:
    return _by_value(self, super().unit_norms, norms)

  def rescaled(self, scale) -> "Ranked":
    return self

  def with_k(self, k: int) -> "Ranked":
    return self.replace(budget=self.budget.with_k(k))

  def chosen(self, pre: Pre, ctx: Context) -> Bool[Array, "*b n"]:
    """The mask of kept entries; non-positive ones still give 0 under relu.

    Args:
      pre: pre-activations, from which scores are computed.
      ctx: context of the pass; its batch's weights exclude rows.
    """
    score = SCORES[self.score](pre, ctx)
    count = self.budget(pre, ctx)
    if self.scope == "row":
      return select.largest(score, count, (-1,))
    use = _rows_used(ctx)
    if use is not None:
      score = jnp.where(use[..., None], score, -jnp.inf)
    batch = tuple(range(score.ndim - 1))
    if self.scope == "column":
      return select.largest(score, count, batch)
    total = _total(count, use, score.shape[:-1])
    return select.largest(score, total, (*batch, score.ndim - 1))

  @property
  def fused(self) -> bool:
    constant = isinstance(self.budget, budgets.Constant)
    return constant and self.scope == "batch" and not self.by_norm

  @property
  def by_magnitude(self) -> bool:
    return self.score == "magnitude"

  def pays_sparse(self, n: int) -> bool:
    return self.mean_k is not None and n >= SPARSE * self.mean_k

  def sparse(
    self, encoder, ctx: Context, n: int, *, ordered: bool
  ) -> tuple[EntryLatents, Bool[Array, ""] | None]:
    """The batch's largest, whose number is fixed, as entries without an order.

    Args:
      encoder, ctx, n: see `Activation.sparse`.
      ordered: not read.
    """
    del ordered
    if self.mean_k is None or not self.fused:
      raise NotImplementedError(self._without("a sparse engine"))
    x, use = ctx.x.reshape(-1, ctx.x.shape[-1]), _rows_used(ctx)
    # No budget of a fused activation reads pre-activations.
    count = self.budget(Pre(a=x), ctx)
    found = encoder.largest_of_batch(
      x,
      ctx,
      _total(count, use, ctx.x.shape[:-1]),
      mean_k=self.mean_k,
      magnitude=self.by_magnitude,
      use=None if use is None else use.reshape(-1),
    )
    values = KEEPS[self.keep](found.values)
    shape = ctx.x.shape[:-1]
    latents = EntryLatents(values, found.rows, found.indices, n, shape)
    return latents, found.exact

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    return jnp.where(self.chosen(pre, ctx), KEEPS[self.keep](pre.a), 0)


def _rows_used(ctx: Context) -> Bool[Array, "*b"] | None:
  """Rows that compete: those of non-zero weight; None where all do."""
  weight = ctx.batch.weight
  return None if weight is None else weight != 0


def _total(count, use, shape: tuple[int, ...]) -> Float[Array, ""]:
  """Entries of a batch, from those of each row or one number for all.

  One product where all rows have one count: a sum of fractions would round.
  """
  rows = jnp.ones(shape) if use is None else use.astype(jnp.float32)
  if count.ndim:
    return jnp.floor(jnp.sum(rows[..., None] * count) + 1e-4)
  return jnp.floor(count * jnp.sum(rows) + 1e-4)


def BatchTopK(k: float, *, score: str = "value", keep: str = "relu") -> Ranked:
  """The activation of BatchTopK: the B k highest scores of a batch of B rows.

  Args:
    k: latents per row on average, which may be a fraction.
    score, keep: see the module.

  References:
    Bussmann et al., BatchTopK Sparse Autoencoders, 2024, arXiv:2412.06410.
  """
  return Ranked(budgets.Constant(k), scope="batch", score=score, keep=keep)


def FeatureChoice(
  k: float, *, alpha: float = 0.0, beta: float = 5.0, score: str = "value"
) -> Ranked:
  """The activation of Feature Choice: latent i keeps its m_i highest scores.

  Args:
    k: latents per row on average, which may be a fraction.
    alpha, beta: m_i falls with the latent's rank r as 1 / (r + beta)^alpha, see
      `budgets.Zipf`; 0 gives all latents equally many rows.
    score: see the module.

  References:
    Ayonrinde, Adaptive Sparse Allocation with Mutual Choice & Feature Choice
    Sparse Autoencoders, 2024, arXiv:2411.02124.
  """
  return Ranked(budgets.Zipf(k, alpha, beta), scope="column", score=score)


class Phased(Activation):
  """One activation before a step, another from it on and outside training.

  Attributes:
    before, after: the two activations.
    switch_step: first step that uses `after`.
  """

  before: Activation
  after: Activation
  switch_step: int = flax.struct.field(pytree_node=False)

  @property
  def by_row(self) -> bool:
    return self.before.by_row and self.after.by_row

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
