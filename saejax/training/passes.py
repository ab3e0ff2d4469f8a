"""Loss, statistics and gradients of a batch, whole or in parts.

With parts (gradient accumulation) a batch of B rows is split into P of B / P,
rows i, i + P, i + 2P, ... each, so that a device keeps its rows. With w_i the
share of part i in the batch's weight (1 / P without weights),

    loss = sum_i w_i loss_i,    gradient = sum_i w_i gradient_i

summed in float32, and every metric likewise. Statistics that the loss reads are
of the whole batch: the mean and variance of the targets are taken before, and
where a term reads the residual's variance or the statistics after the batch
(AuxK: which latents are dead), all parts are encoded once more for them. So the
result is that of the whole batch up to rounding, except that draws for each row
are other ones. What is not such a sum is refused, see `check`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from saejax.errors import InputError
from saejax.sae.context import Batch
from saejax.sae.sae import SAE
from saejax.training import moments, sharding
from saejax.training.recipe import Hyper, Recipe, Record, Stats, Term, mean
from saejax.training.state import TrainState

REDONE = "redone"  # metric: whether the sparse engine's pass was done over
FLAG = "train.accumulate"
Metrics = Mapping[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
  """How the loss of a batch is computed.

  Attributes:
    recipe: the method.
    engine: "auto", "dense" or "sparse".
    stacked: whether the pass is vmapped over members.
    names: terms that are computed; others are 0.
    parts: parts that a batch is split into.
    shard: whether gradients are divided over `data`, see `sharding.over_data`.
  """

  recipe: Recipe
  engine: str
  stacked: bool
  names: frozenset[str]
  parts: int = 1
  shard: bool = False

  @property
  def terms(self) -> dict[str, Term]:
    """The terms that are computed."""
    return {n: t for n, t in self.recipe.terms.items() if n in self.names}


def check(recipe: Recipe, sae: SAE, parts: int) -> None:
  """Refuses a method whose batch is more than the sum of its parts.

  Args:
    recipe: the method.
    sae: its SAE, or the shapes of one.
    parts: parts that a batch is split into.

  Raises:
    InputError: it selects over the batch, reduces rows by something other than
      their mean, or has a statistic that needs whole batches. Of terms see
      `Term.mean`: they are refused while the step is traced.
  """
  if parts == 1:
    return
  if not sae.activation.by_row:
    raise _refusal(recipe, parts, "selects latents over the whole batch")
  if recipe.reduce is not mean:
    raise _refusal(recipe, parts, "does not average its loss over rows")
  for rule in recipe.rules:
    if not rule.by_parts:
      name = type(rule).__name__
      raise _refusal(recipe, parts, f"has statistics of a whole batch ({name})")


def _refusal(recipe: Recipe, parts: int, why: str) -> InputError:
  rule = f"must be 1: {recipe.name} {why}"
  remedy = "use --train.accumulate=1, with a smaller --train.batch_rows"
  return InputError(FLAG, parts, rule, remedy)


def gradients(
  how: Pass, state: TrainState, hyper: Hyper, batch: Batch
) -> tuple[Metrics, Stats, SAE]:
  """Loss and terms by name, the statistics after the batch, and the gradients.

  Args:
    how: the recipe, and how it is computed.
    state: state of one member.
    hyper: its numbers.
    batch: the whole batch.
  """
  if how.parts > 1:
    check(how.recipe, state.sae, how.parts)
    return _in_parts(how, state, hyper, batch)

  def loss(sae: SAE):
    record = _record(how, sae, state, hyper, batch)
    fixed = jax.lax.stop_gradient(record)
    stats = state.stats
    for rule in how.recipe.rules:
      stats = rule.update(stats, fixed)
    total, terms = _loss(how, record.replace(stats=stats), state, hyper)
    return total, (terms, stats)

  (total, (metrics, stats)), found = jax.value_and_grad(loss, has_aux=True)(
    state.sae
  )
  return {"loss": total, **metrics}, stats, _placed(how, found)


def _placed(how: Pass, found: SAE) -> SAE:
  return sharding.over_data(found) if how.shard else found


def _record(how: Pass, sae: SAE, state, hyper, batch, part=None) -> Record:
  """The forward pass of a batch or of a part, with the statistics before it."""
  chosen = sae.engine(how.engine, train=True)
  forward = sae.forward(
    batch,
    engine=chosen,
    k=hyper.k,
    coefficient=hyper.coefficient,
    stats=state.stats,
    step=state.step,
    key=jax.random.fold_in(state.key, state.step),
    part=part,
    train=True,
  )
  return Record(
    forward=forward,
    sae=sae,
    stats=state.stats,
    engine=chosen,
    stacked=how.stacked,
  )


def _loss(how: Pass, record: Record, state, hyper) -> tuple[Array, Metrics]:
  """The loss of a record, and its terms by name; inactive terms are 0."""
  weights = record.batch.weight
  rows, total = jnp.zeros(record.batch.x.shape[:-1]), jnp.zeros(())
  terms: dict[str, Array] = {}
  for name, term in how.recipe.terms.items():
    value = jnp.zeros(())
    if name in how.names:
      value = _value(how, name, term, record)
    weight = term.weight
    if callable(weight):
      weight = weight(state.step)
    if term.swept and hyper.coefficient is not None:
      weight *= hyper.coefficient
    if value.ndim:
      terms[name] = mean(value, weights)
      rows += weight * value
    else:
      terms[name] = value
      total += weight * value
  total += how.recipe.reduce(rows, weights)
  terms["l0"] = mean(record.forward.latents.count(), weights)
  if record.forward.exact is not None:
    terms[REDONE] = 1 - record.forward.exact.astype(jnp.float32)
  return total, terms


def _value(how: Pass, name: str, term: Term, record: Record) -> Array:
  """A term's value; of a part only what parts add up to."""
  if record.whole is None:
    return term.fn(record)
  refused = _refusal(how.recipe, how.parts, f"has the batch loss {name!r}")
  if not term.after:
    record = record.replace(stats=_Unread(refused))
  value = term.fn(record)
  if not value.ndim and not term.mean:
    raise refused
  return value


class _Unread(Mapping):
  """Statistics that must not be read: those after the batch are not known."""

  def __init__(self, error: InputError):
    self._error = error

  def __getitem__(self, name: str):
    raise self._error

  def __iter__(self):
    raise self._error

  def __len__(self) -> int:
    raise self._error


def _in_parts(how: Pass, state: TrainState, hyper: Hyper, batch: Batch):
  """As `gradients`, over the parts of a batch."""
  rules, stats = how.recipe.rules, state.stats
  twice = any(term.after for term in how.terms.values())
  split, share = _split(batch, how.parts)

  def record(sae: SAE, i: Array) -> Record:
    return _record(how, sae, state, hyper, _part(split, i), i)

  def measured(record: Record):
    record = jax.lax.stop_gradient(record)
    return tuple(
      jax.tree.map(jnp.asarray, rule.measure(stats, record)) for rule in rules
    )

  def absorbed(sums) -> Stats:
    new = stats
    for rule, own in zip(rules, sums, strict=True):
      new = rule.absorb(new, own)
    return new

  def before(i: Array):
    """What the loss of a part reads of the whole batch."""
    seen = jax.lax.stop_gradient(record(state.sae, i))
    weight, forward = seen.batch.weight, seen.forward
    whole = moments.Whole(target=moments.measured(forward.target, weight))
    if not twice:
      return whole, ()
    residual = moments.measured(forward.target - forward.x_hat, weight)
    return whole.replace(residual=residual), measured(seen)

  join = lambda a, b: (a[0].merged(b[0]), _sum(a[1], b[1]))
  whole, sums = _over(how.parts, before, join)
  known = absorbed(sums) if twice else stats

  def loss(sae: SAE, i: Array):
    own = record(sae, i)
    found = () if twice else measured(own)
    total, terms = _loss(
      how, own.replace(stats=known, whole=whole), state, hyper
    )
    scaled = {name: share[i] * value for name, value in terms.items()}
    return share[i] * total, (scaled, found)

  def each(i: Array):
    (total, (terms, found)), grads = jax.value_and_grad(loss, has_aux=True)(
      state.sae, i
    )
    return {"loss": total, **terms}, found, _placed(how, grads)

  metrics, sums, found = _over(how.parts, each, _sum)
  return metrics, known if twice else absorbed(sums), found


def _split(batch: Batch, parts: int) -> tuple[Batch, Array]:
  """Leaves as [B / parts, parts, ...], and each part's share of the weight."""
  size = batch.x.shape[0]
  if size % parts:
    rule = f"must divide the {size} rows of a batch"
    raise InputError(FLAG, parts, rule, "use a divisor of --train.batch_rows")
  split = jax.tree.map(
    lambda a: a.reshape(size // parts, parts, *a.shape[1:]), batch
  )
  if split.weight is None:
    return split, jnp.full((parts,), 1 / parts)
  axes = tuple(axis for axis in range(split.weight.ndim) if axis != 1)
  weights = jnp.sum(split.weight, axis=axes)
  return split, weights / jnp.maximum(jnp.sum(weights), moments.EPS)


def _part(split: Batch, i: Array) -> Batch:
  take = lambda a: jax.lax.dynamic_index_in_dim(a, i, 1, keepdims=False)
  return jax.tree.map(take, split)


def _over(parts: int, compute, join) -> Any:
  """join of compute(0), ..., compute(parts - 1), from zeros."""
  shapes = jax.eval_shape(compute, jnp.zeros((), jnp.int32))
  zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
  body = lambda i, total: join(total, compute(i))
  return jax.lax.fori_loop(0, parts, body, zeros)


def _sum(a: Any, b: Any) -> Any:
  """Sums of numbers, unions of masks."""
  return jax.tree.map(lambda a, b: a | b if a.dtype == bool else a + b, a, b)
