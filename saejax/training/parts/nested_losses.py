"""Losses over nested reconstructions: from prefixes of the ordered latents.

    loss = sum_j c_j R(y, x_hat_j),  x_hat_j = b_dec + sum of the first j terms

where a term is z_i w_i and the order is that of the latents (Matryoshka) or
that of the values, largest first (MSAE, HierarchicalTopK). A few prefixes are
decoded group by group, each added to the one before; all ranks at once use
`kernels.nested_decode`, whose memory is independent of their number.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from saejax.kernels.nested_decode import op as nested_decode
from saejax.kernels.topk import op as topk
from saejax.kernels.topk import select
from saejax.sae.latents import DenseLatents, Latents, SparseLatents
from saejax.training import surgery
from saejax.training.parts import losses, rules
from saejax.training.recipe import Record, Rule, Stats, mean
from saejax.training.state import TrainState

ENERGY = "latent_energy"
DRAW = 1  # folded into the pass's key for the lengths of prefixes

RowLoss = Callable[[Record], Float[Array, "*b"]]
Between = Callable[[Record, Sequence[int]], list[Float[Array, "*b d"]]]


def prefixes(
  lengths: Sequence[int],
  weights: Sequence[float],
  *,
  order: str,
  measure: RowLoss = losses.mse,
) -> RowLoss:
  """sum_j weights_j measure(x_hat of the first lengths_j terms), per row.

  Args:
    lengths: lengths of the prefixes, increasing; 0 is the bias alone. The last
      is the full reconstruction, which the pass already has.
    weights: weights of the prefixes; those of weight 0 are not computed.
    order: "latent", the order of the dictionary, or "value", largest first.
    measure: a row loss; it sees the record with the prefix's x_hat.

  Raises:
    ValueError: members of different k are stacked.
  """
  between = ORDERS[order]
  *inner, (_, last) = [
    (length, weight)
    for length, weight in zip(lengths, weights, strict=True)
    if weight or length == lengths[-1]
  ]

  def loss(record: Record) -> Float[Array, "*b"]:
    if order == "value" and record.forward.ctx.k is not None:
      raise ValueError(
        "levels belong to the recipe: members of different k cannot be stacked"
      )
    total = last * measure(record)
    x_hat = jnp.zeros_like(record.forward.x_hat) + record.sae.b_dec
    added = between(record, [length for length, _ in inner])
    for (_, weight), part in zip(inner, added, strict=True):
      x_hat += part
      total += weight * measure(_with(record, x_hat))
    return total

  return loss


def at_k(k: int, measure: RowLoss) -> RowLoss:
  """A row loss of the reconstruction from the k largest values of each row.

  A member's own k (`Hyper.k`) replaces k.

  Args:
    k: number of values per row.
    measure: the loss of a reconstruction.
  """

  def loss(record: Record) -> Float[Array, "*b"]:
    x_hat = _ranks_between(record, 0, k, record.forward.ctx.k)
    return measure(_with(record, x_hat + record.sae.b_dec))

  return loss


def row_normalised_mse(record: Record) -> Float[Array, "*b"]:
  """|y - x_hat|^2 of each row over its own |y - m|^2, m the mean of the data.

  Rows have equal weight whatever their distance from the mean. m is the
  statistic of `rules.DataMean`; without it 0, as after a prep that centres. The
  loss is 0 for a row that equals m.

  Args:
    record: the record of the batch.
  """
  y = record.forward.target
  m = record.stats.get(rules.DATA_MEAN, jnp.zeros(y.shape[-1:]))
  return losses.ratio(losses.mse(record), losses.squares(y - m))


def _with(record: Record, x_hat: Float[Array, "*b d"]) -> Record:
  """Replaces the reconstruction of a record."""
  return record.replace(forward=record.forward.replace(x_hat=x_hat))


def _between_latents(record: Record, ends: Sequence[int]) -> list[Array]:
  """The contribution of the latents up to each end from the end before."""
  forward = record.forward
  return forward.latents.decode_runs(forward.W_dec, ends, record.sae.dtype)


def _between_ranks(record: Record, ends: Sequence[int]) -> list[Array]:
  """The contribution of the ranks up to each end from the end before."""
  zero = jnp.zeros_like(record.forward.x_hat)
  return [
    _ranks_between(record, low, high) if high > low else zero
    for low, high in itertools.pairwise((0, *ends))
  ]


def _ranks_between(
  record: Record, low: int, high: int, most: Int[Array, ""] | None = None
) -> Array:
  """The contribution of ranks low + 1 to high of each row's values.

  Ranks beyond `most`, if given, contribute nothing.
  """
  latents = _ordered(record)
  if isinstance(latents, SparseLatents):
    values = latents.values[..., low:high]
    if most is not None:
      values = jnp.where(jnp.arange(low, high) < most, values, 0)
    indices = latents.indices[..., low:high]
    part = latents.replace(values=values, indices=indices)
  else:
    z = latents.dense()
    size = jnp.abs(z)
    end = high if most is None else jnp.minimum(high, most)
    inside = select.largest(size, end, (-1,))
    if low:
      inside &= ~select.largest(size, low, (-1,))
    part = DenseLatents(jnp.where(inside, z, 0))
  return part.decode(record.forward.W_dec, record.sae.dtype)


ORDERS: Mapping[str, Between] = {
  "latent": _between_latents,
  "value": _between_ranks,
}


def _ordered(record: Record) -> Latents:
  """Returns the latents; raises for sparse ones that are not largest first."""
  latents = record.forward.latents
  if (
    isinstance(latents, SparseLatents) and not record.sae.activation.is_ordered
  ):
    raise ValueError(
      "losses over ranks need sparse latents largest first: TopK(ordered=True)"
    )
  return latents


def ranks(weights: Sequence[float], *, normalise: bool = True) -> RowLoss:
  """sum_j weights_j |y - x_hat_j|^2 / var(y), x_hat_j of the j largest values.

  var(y) = mean_B |y - mean_B y|^2, as in `losses.normalised_mse`. A member with
  its own k (`Hyper.k`) below len(weights) uses only ranks up to k.

  Args:
    weights: weights of ranks 1, 2, ...
    normalise: whether to divide by the sum of the weights.
  """
  static = tuple(weights)

  def loss(record: Record) -> Float[Array, "*b"]:
    forward = record.forward
    latents, count = _ordered(record), len(static)
    if not isinstance(latents, SparseLatents):
      z = latents.dense()
      _, indices = topk.top_k(jax.lax.stop_gradient(jnp.abs(z)), count)
      values = jnp.take_along_axis(z, indices, axis=-1)
      latents = SparseLatents(values, indices, record.sae.n)
    weight = jnp.asarray(static, jnp.float32)
    if forward.ctx.k is not None:
      weight = jnp.where(jnp.arange(count) < forward.ctx.k, weight, 0)
    if normalise:
      weight /= jnp.maximum(jnp.sum(weight), losses.EPS)
    errors = nested_decode.squares(
      latents.values[..., :count],
      latents.indices[..., :count],
      forward.W_dec,
      forward.target - record.sae.b_dec,
      weight,
      record.sae.dtype,
    )
    return losses.ratio(errors, losses.target_variance(record))

  return loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
  """Prefixes of the dictionary whose lengths are drawn in every step.

  The lengths are count - 1 distinct ones below n, and n:

      P(l) ~ (j/N)^power - ((j-1)/N)^power,
      j = l - shortest + 1,  N = n - shortest + 1

  drawn one after the other without replacement. n is always included and not
  drawn; its probability, about power / N, goes to the others.

  Attributes:
    count: number of prefixes, n included.
    power: below 1 favours short prefixes; 1 draws lengths uniformly.
    shortest: minimum length.
  """

  count: int = 10
  power: float = 0.5
  shortest: int = 1

  def draw(self, key: PRNGKeyArray, n: int) -> Int[Array, "count"]:
    """Draws the lengths, increasing, the last one n.

    Args:
      key: random key of the pass.
      n: number of latents, at least `shortest` + `count` - 1.
    """
    j = jnp.arange(1.0, n - self.shortest + 1)
    # log(j^p - (j-1)^p) without cancellation.
    first = jnp.where(j == 1, -jnp.inf, jnp.log1p(-1 / jnp.maximum(j, 1.5)))
    logits = self.power * jnp.log(j) + jnp.log(-jnp.expm1(self.power * first))
    noisy = logits + jax.random.gumbel(key, logits.shape)
    _, chosen = jax.lax.top_k(noisy, self.count - 1)
    drawn = jnp.sort(chosen.astype(jnp.int32)) + self.shortest
    return jnp.append(drawn, jnp.int32(n))


def sampled_prefixes(
  sampled: Sampled,
  *,
  reduction: str = "mean",
  bias: bool = False,
  measure: RowLoss = losses.mse,
) -> RowLoss:
  """`prefixes` in latent order with lengths drawn from the key of the pass.

  Every prefix is decoded under its exact mask, and again in the backward pass,
  so that only one masked set of latents is in memory at a time.

  Args:
    sampled: distribution of the lengths.
    reduction: "mean" or "sum" over prefixes.
    bias: whether to count the bias alone as one more prefix.
    measure: a row loss; it sees the record with the prefix's x_hat.
  """

  def loss(record: Record) -> Float[Array, "*b"]:
    ctx, sae = record.forward.ctx, record.sae
    z, b = record.forward.latents.dense(), sae.b_dec
    key = jax.random.fold_in(ctx.random_key(), DRAW)
    inner = sampled.draw(key, sae.n)[:-1]
    if bias:
      inner = jnp.append(jnp.int32(0), inner)

    @jax.checkpoint
    def one(length, z, W, b):
      part = jnp.where(jnp.arange(sae.n) < length, z, 0)
      x_hat = DenseLatents(part).decode(W, sae.dtype) + b
      return measure(_with(record, x_hat))

    def add(total, length):
      return total + one(length, z, record.forward.W_dec, b), None

    total = jax.lax.scan(add, measure(record), inner)[0]
    return total / (len(inner) + 1) if reduction == "mean" else total

  return loss


@dataclasses.dataclass(frozen=True)
class SortByEnergy(Rule):
  """Sorts latents by their running mean energy, largest first.

      e_i <- decay e_i + (1 - decay) mean_B (z_i |w_i|)^2

  after which the rows of every array with one row per latent are permuted, so
  that short prefixes contain the latents of largest energy. The bias of the
  average from starting at 0 does not change the order.

  Attributes:
    decay: decay of the running mean.
  """

  decay: float = 0.95

  def init(self, sae) -> Stats:
    return {ENERGY: jnp.zeros((sae.n,))}

  def axes(self) -> Mapping[str, str]:
    return {ENERGY: "n"}

  def update(self, stats: Stats, record: Record) -> Stats:
    forward = record.forward
    z = forward.latents.dense() * forward.ctx.norms
    rows = jnp.square(z).reshape(-1, z.shape[-1])
    weight = record.batch.weight
    if weight is not None:
      weight = weight.reshape(-1)
    energy = jax.vmap(lambda column: mean(column, weight), in_axes=1)(rows)
    new = self.decay * stats[ENERGY] + (1 - self.decay) * energy
    return {**stats, ENERGY: new}

  def write(self, state: TrainState) -> TrainState:
    order = jnp.argsort(-state.stats[ENERGY], stable=True)
    return surgery.permute_latents(state, order)
