"""One training step lowered for devices that need not be here."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from saejax.kernels import dispatch
from saejax.sae.context import Batch
from saejax.training import sharding, step
from saejax.training.recipe import Hyper, Recipe

PyTree = Any


def state_shapes(
  recipe: Recipe, mesh: Mesh, *, members: int = 0, shard_optimizer: bool = False
) -> PyTree:
  """The state before the first step: shapes, each with its sharding.

  Args:
    recipe: the recipe.
    mesh: of (ensemble, data, latent) devices.
    members: number of stacked members; 0 for one that is not stacked.
    shard_optimizer: see `sharding.state_shardings`.

  Raises:
    InputError: the mesh does not divide an array.
  """
  start = partial(step.init_state, recipe)

  def init():
    if not members:
      return start(jax.random.key(0))
    return jax.vmap(start)(jax.random.split(jax.random.key(0), members))

  state = jax.eval_shape(init)
  where = sharding.state_shardings(
    mesh, state, stacked=members > 0, shard_optimizer=shard_optimizer
  )
  place = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
  return jax.tree.map(place, state, where)


def lowered(
  recipe: Recipe,
  batch: Batch | jax.ShapeDtypeStruct,
  mesh: Mesh,
  *,
  members: int = 0,
  engine: str = "auto",
  accumulate: int = 1,
  shard_optimizer: bool = False,
  kernels: dispatch.Kernels = "auto",
) -> jax.stages.Lowered:
  """One step as a run takes it, lowered for the devices of a mesh.

  Args:
    recipe: the recipe.
    batch: shapes of a batch, or of its x.
    mesh: of (ensemble, data, latent) devices, which need not be here.
    members: number of stacked members, each with its own k; 0 for one that is
      not stacked.
    engine: "auto", "dense" or "sparse".
    accumulate, shard_optimizer: see `step.make_step`.
    kernels: the form of the ops, as `--train.kernels` gives it.

  Raises:
    InputError: the mesh does not divide an array.
  """
  stacked = members > 0
  sharded = {"shard_optimizer": shard_optimizer}
  state = state_shapes(recipe, mesh, members=members, **sharded)
  lead = (members,) if stacked else ()
  one = NamedSharding(mesh, P("ensemble") if stacked else P())
  number = lambda dtype: jax.ShapeDtypeStruct(lead, dtype, sharding=one)
  hyper = Hyper(
    learning_rate=number(jnp.float32), k=number(jnp.int32) if stacked else None
  )
  rows = sharding.rows_sharding(mesh)
  place = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows)
  batch = jax.tree.map(place, batch)
  one_step = step.make_step(
    recipe, engine=engine, stacked=stacked, accumulate=accumulate, **sharded
  )
  out = (jax.tree.map(lambda a: a.sharding, state), None)
  # The abstract mesh alone: kernels then ask it for the kind of chip.
  abstract = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
  with abstract, dispatch.kernels(kernels):
    jitted = jax.jit(one_step, donate_argnums=0, out_shardings=out)
    return jitted.lower(state, hyper, batch)
