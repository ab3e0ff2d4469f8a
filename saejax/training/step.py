"""The training step, shared by all recipes, engines and meshes.

Members of a run are stepped in turn, each with its own program, or stacked and
vmapped. Order: forward, statistics, loss terms, gradient, the recipe's
transform of it, clip, optimizer, projection, rules' `write`, weight EMA, rounding.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from saejax.errors import InputError
from saejax.sae.context import Batch, as_batch
from saejax.sae.sae import SAE
from saejax.training import passes, sharding
from saejax.training import sited as sites
from saejax.training.parts import constraints, rounding
from saejax.training.passes import REDONE as REDONE
from saejax.training.recipe import MEMBERS, Hyper, Recipe, statistics
from saejax.training.state import TrainState as TrainState

Metrics = Mapping[str, Array]
MOST_SKIPPED = 10  # updates in a row before a member is frozen


def init_state(
  recipe: Recipe,
  key: PRNGKeyArray,
  *,
  sample: Float[Array, "s d"] | Batch | None = None,
) -> TrainState:
  """Initialises the state of one member.

  Args:
    recipe: the recipe.
    key: key of the member.
    sample: rows that the initialisation reads.
  """
  weights_key, key = jax.random.split(key)
  sample = None if sample is None else as_batch(sample)
  sae = recipe.project(recipe.init(weights_key, sample=sample))
  stats, stats_axes = statistics(recipe.rules, sae)
  return TrainState(
    step=jnp.asarray(0, jnp.int32),
    sae=rounding.stored(sae, recipe.param_dtype),
    opt_state=recipe.optimizer(0.0).init(sae),
    ema=_average(recipe).init(sae) if recipe.ema_decay else (),
    stats=stats,
    key=key,
    alive=jnp.asarray(True),
    failed_step=jnp.asarray(-1, jnp.int32),
    skipped=jnp.asarray(0, jnp.int32),
    halted=jnp.asarray(False),
    stats_axes=stats_axes,
  )


def make_step(
  recipe: Recipe,
  *,
  engine: str = "auto",
  stacked: bool = False,
  skip_nonfinite: bool = False,
  accumulate: int = 1,
  shard_optimizer: bool = False,
  sited: bool = False,
) -> Callable[[TrainState, Hyper, Array | Batch], tuple[TrainState, Metrics]]:
  """Builds the step of a recipe: (state, hyper, batch) -> (state, metrics).

  Args:
    recipe: the method.
    engine: "dense", "sparse", or "auto": see `SAE.engine`. Where the sparse
      engine could not hold all latents of a batch, the step is done over in the
      dense one.
    stacked: whether state and hyper have a leading axis of members. The batch
      has none: all members read the same rows, or those of their site.
    skip_nonfinite: whether to skip a batch with non-finite rows, loss or
      gradient, instead of halting (rows) or freezing the member (loss or
      gradient). A member whose loss or gradient is not finite in
      `MOST_SKIPPED` consecutive updates is frozen all the same.
    accumulate: parts that a batch is computed in, one after the other, see
      `passes`.
    shard_optimizer: whether the update is divided over the mesh's `data` axis,
      see `sharding.over_data`.
    sited: whether the batch has a leading axis of sites, of which each member
      reads the one that `hyper.site` numbers.

  Returns:
    A pure function to be jitted. Metrics are scalars, [members] if stacked:
    loss, each term, l0, grad_norm, learning_rate, rows_ok, alive, those of the
    rules, and for selections over the batch in the sparse engine whether the
    step was redone.

  Raises:
    InputError: the recipe couples members and they are not stacked. The step
      raises it where a batch of the recipe cannot be computed in parts.
  """
  if recipe.coupling is not None and not stacked:
    raise InputError(
      "train.members",
      "in_turn",
      f"{recipe.name} couples its members and needs them stacked",
      "use --train.members=stacked",
    )
  apply = partial(_apply, recipe, skip_nonfinite, shard_optimizer)
  over = lambda f: f
  if stacked:
    own = {"spmd_axis_name": "ensemble"}
    axes = (0, 0, 0 if sited else None)
    over = partial(jax.vmap, in_axes=axes, axis_name=MEMBERS, **own)
    apply = jax.vmap(apply, in_axes=(0, *axes), **own)
  conditional = [t.active for t in recipe.terms.values() if t.active]
  every = frozenset(recipe.terms)
  always = every - {name for name, t in recipe.terms.items() if t.active}

  def computed(names: frozenset[str], engine: str = engine):
    how = passes.Pass(
      recipe=recipe,
      engine=engine,
      stacked=stacked,
      names=names,
      parts=accumulate,
      shard=shard_optimizer,
    )
    return partial(passes.gradients, how)

  def step(state: TrainState, hyper: Hyper, batch: Array | Batch):
    batch, stored = as_batch(batch), state.sae
    state = state.replace(sae=rounding.widened(stored))
    if hyper.site is not None:
      batch = sites.part(batch, hyper.site)
    each = sited and stacked
    rows = batch.rows // (len(hyper.learning_rate) if each else 1)
    gradients = over(computed(every))
    if conditional:
      # Outside the vmap: inside, a cond would compute both branches.
      needed = _needed(conditional, state, rows, stacked)
      without = over(computed(always))
      out = jax.lax.cond(needed, gradients, without, state, hyper, batch)
    else:
      out = gradients(state, hyper, batch)
    if REDONE in out[0]:
      # Outside the vmap, as above. With all terms: those that are idle are 0.
      dense = over(computed(every, "dense"))
      out = _redone(dense, out, state, hyper, batch)
    if recipe.coupling is not None:
      out = _coupled(recipe.coupling, state, out)
    rows_ok = (jax.vmap(_are_finite) if each else _are_finite)(batch)
    new, metrics = apply(state, hyper, out, rows_ok)
    if recipe.param_dtype == "float32":
      return new, metrics
    rounded = jax.vmap(rounding.rounded) if stacked else rounding.rounded
    stored = rounded(new.sae, stored, state.key, state.step)
    return new.replace(sae=stored), metrics

  return step


def _needed(conditional, state: TrainState, rows: int, stacked: bool) -> Array:
  """Whether a term with a condition has work in any member that is not frozen."""
  return jnp.any(
    jnp.stack(
      [
        jnp.any(_per_member(active, state.stats, rows, stacked) & state.alive)
        for active in conditional
      ]
    )
  )


def _are_finite(batch: Batch) -> Array:
  """Whether all numbers of a batch are finite."""
  return jnp.all(
    jnp.stack([jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(batch)])
  )


def _redone(dense, out, *args):
  """`out`, or where it is inexact for a member that of the dense engine."""

  def again(out, *args):
    with jax.named_scope(REDONE):
      metrics, stats, gradients = dense(*args)
    return {**metrics, REDONE: jnp.ones_like(out[0][REDONE])}, stats, gradients

  redo = jnp.any((out[0][REDONE] > 0) & args[0].alive)
  return jax.lax.cond(redo, again, lambda out, *_: out, out, *args)


def _coupled(coupling, state: TrainState, out):
  """Adds the coupling loss and its gradients to each member's own."""
  metrics, stats, gradients = out
  loss = lambda saes: coupling(saes, jnp.max(state.step))
  value, more = jax.value_and_grad(loss)(state.sae)
  each = jnp.broadcast_to(value, metrics["loss"].shape)
  metrics = {**metrics, "coupling": each, "loss": metrics["loss"] + each}
  return metrics, stats, jax.tree.map(jnp.add, gradients, more)


def _per_member(active, stats, rows: int, stacked: bool):
  return (
    jax.vmap(active, (0, None))(stats, rows) if stacked else active(stats, rows)
  )


def _apply(recipe: Recipe, skip: bool, shard: bool, state, hyper, out, rows_ok):
  """Updates one member; leaves it unchanged where something is not finite."""
  metrics, stats, gradients = out
  if shard:
    state = state.replace(sae=sharding.over_data(state.sae))
  gradients, norm = _constrained(recipe, state.sae, gradients)
  scale = recipe.clip.scale(norm)
  rate = hyper.learning_rate * recipe.schedule(state.step)

  # Finite gradients and a finite learning rate give finite weights.
  finite = (
    jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm) & jnp.isfinite(rate)
  )
  halted = state.halted if skip else state.halted | ~rows_ok
  usable = rows_ok & ~halted
  left_out = usable & ~finite & state.alive
  skipped = jnp.where(
    usable, jnp.where(left_out, state.skipped + 1, 0), state.skipped
  )
  failed = left_out & ((not skip) | (skipped >= MOST_SKIPPED))
  good = usable & finite & state.alive
  sae, opt_state, stats, ema = _updated(
    recipe, state, stats, gradients, scale, rate, good
  )
  new = state.replace(
    step=state.step + jnp.where(halted, 0, 1),
    sae=sae,
    opt_state=opt_state,
    ema=ema,
    stats=stats,
    alive=state.alive & ~failed,
    failed_step=jnp.where(failed, state.step, state.failed_step),
    skipped=skipped,
    halted=halted,
  )
  metrics = {
    **metrics,
    **recipe.clip.metrics(norm),
    "grad_norm": norm,
    "learning_rate": rate,
    "rows_ok": rows_ok,
    "alive": new.alive,
  }
  for rule in recipe.rules:
    metrics.update(rule.metrics(new.stats))
  return new, metrics


def _constrained(recipe: Recipe, sae: SAE, gradients: SAE):
  """The gradients that the constraints leave, and their norm."""
  left = recipe.gradient(sae, gradients)
  if not constraints.is_large(sae):
    return left, optax.tree.norm(left)
  # Computed anew inside the norm, rather than stored for it.
  again = jax.lax.optimization_barrier(gradients)
  return left, optax.tree.norm(recipe.gradient(sae, again))


def _updated(recipe: Recipe, state, stats, gradients, scale, rate, good):
  """SAE, optimizer state, statistics and EMA after an update, if it is good."""

  def optimized(sae, opt_state):
    clipped = jax.tree.map(lambda g: g * scale, gradients)
    # optax mixes int32 counts with floats, which strict promotion rejects.
    with jax.numpy_dtype_promotion("standard"):
      updates, opt_state = recipe.optimizer(rate).update(
        clipped, opt_state, sae
      )
      return optax.apply_updates(sae, updates), opt_state

  def written(sae, opt_state, _, ema):
    new = state.replace(sae=recipe.project(sae), opt_state=opt_state)
    new = new.replace(stats=stats)
    for rule in recipe.rules:
      new = rule.write(new)
    if recipe.ema_decay:
      with jax.numpy_dtype_promotion("standard"):
        _, ema = _average(recipe).update(new.sae, ema)
    return new.sae, new.opt_state, new.stats, ema

  # Apart, so that no compiler merges the optimizer with the reductions of the
  # projection, which is slower.
  moved = _where(good, optimized, state.sae, state.opt_state)
  return _where(good, written, *moved, state.stats, state.ema)


def _where(good, update: Callable, *old):
  """update(*old) where good, else old.

  On a CPU by a branch: XLA fuses selects between the old and the new weights
  into several passes over them, and copies what it would update in place.
  """

  def branch(*old):
    return jax.lax.cond(good, update, lambda *old: old, *old)

  def select(*old):
    return jax.tree.map(partial(jnp.where, good), update(*old), old)

  return jax.lax.platform_dependent(*old, cpu=branch, default=select)


def averaged(recipe: Recipe, state: TrainState) -> SAE:
  """The final weights of a member: the projected EMA, if there is one.

  Args:
    recipe: the recipe.
    state: final state of the member.
  """
  if not recipe.ema_decay:
    return rounding.widened(state.sae)
  count = jnp.maximum(state.ema.count, 1).astype(jnp.float32)
  debias = 1 - recipe.ema_decay**count
  mean = jax.tree.map(lambda a: a / debias, state.ema.ema)
  return recipe.project(mean)


def _average(recipe: Recipe) -> optax.GradientTransformation:
  return optax.ema(recipe.ema_decay, debias=True)
