"""Synthetic gene expression whose regulators, cell types and covariates are known.

Two worlds of a study of completeness: does an SAE find the variables behind the
representation of a cell? Rows are expression x; the true variables are other columns.

  small  activity ~ Poisson(2), accessibility ~ Bernoulli(.5, .1, .9) of three
         regulators; factor = activity accessibility; x = factor R, of five genes
  large  x0_i ~ Poisson(1 + i / 10) of regulator i; x1 = x0 + e with e ~ N(c, .1) of the
         covariate c of the cell; x2 = x1 M_t with the mask of its type t;
         x = x2 G, with a random 0/1 matrix G of regulators and genes

Functions are pure functions of a key and work inside `jit`; numbers of rows are
static. In the authors' code the small world has one activity per cell (`shared`), and
files of the large one of all seeds have one name.

References:
  Schuster, Can sparse autoencoders make sense of latent representations?, 2024,
  arXiv:2410.11468.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from saejax.errors import InputError

Key = PRNGKeyArray

ACTIVITY = 2.0
ACCESSIBLE = (0.5, 0.1, 0.9)
REGULATION = ((0, 1, 1, 0, 0), (1, 1, 0, 1, 0), (0, 0, 0, 1, 1))


def small(key: Key, rows: int, *, shared: bool = False) -> dict[str, Array]:
  """Draws cells of the small world; the paper has 12000.

  Args:
    key: key of the draw.
    rows: number of cells.
    shared: whether all regulators of a cell have one activity.

  Returns:
    x [rows, 5] float32, and its variables "activity", "accessible" and "factor"
    [rows, 3] float32.

  >>> small(jax.random.key(0), 4)["x"].shape
  (4, 5)
  """
  how, where = jax.random.split(key)
  count = len(ACCESSIBLE)
  shape = (rows, 1 if shared else count)
  activity = jax.random.poisson(how, ACTIVITY, shape).astype(jnp.float32)
  activity = jnp.broadcast_to(activity, (rows, count))
  p = jnp.asarray(ACCESSIBLE, jnp.float32)
  on = jax.random.bernoulli(where, p, (rows, count)).astype(jnp.float32)
  factor = activity * on
  R = jnp.asarray(REGULATION, jnp.float32)
  return {"x": factor @ R, "activity": activity, "accessible": on} | {
    "factor": factor
  }


class Cells(flax.struct.PyTreeNode):
  """The fixed part of the large world.

  Attributes:
    genes: G, which genes each regulator acts on, 0 or 1.
    types: M, which regulators a type of cells has, 0 or 1.
    covariates: number of covariates.
  """

  genes: Float[Array, "r g"]
  types: Float[Array, "t r"]
  covariates: int = flax.struct.field(pytree_node=False)


def cells(
  key: Key,
  *,
  regulators: int = 100,
  genes: int = 20_000,
  types: int = 40,
  covariates: int = 3,
  acts: float = 0.1,
  has: float = 0.3,
) -> Cells:
  """Draws the fixed part of the large world.

  Args:
    key: key of the draw.
    regulators, genes, types, covariates: sizes.
    acts: probability that a regulator acts on a gene.
    has: probability that a type of cells has a regulator.

  Raises:
    InputError: a size is below 1.
  """
  sizes = {
    "regulators": regulators,
    "genes": genes,
    "types": types,
    "covariates": covariates,
  }
  for name, value in sizes.items():
    if value < 1:
      raise InputError(name, value, "must be at least 1", "give 1 or more")
  first, second = jax.random.split(key)
  drawn = lambda key, p, *shape: jax.random.bernoulli(key, p, shape).astype(
    jnp.float32
  )
  return Cells(
    genes=drawn(first, acts, regulators, genes),
    types=drawn(second, has, types, regulators),
    covariates=covariates,
  )


def large(key: Key, rows: int, world: Cells) -> dict[str, Array]:
  """Draws cells of the large world; the paper has 10000 per seed.

  Args:
    key: key of the draw; that of the world is another.
    rows: number of cells.
    world: the fixed part.

  Returns:
    x [rows, genes]; "x0", "x1" and "x2" [rows, regulators]; "type" and
    "covariate" [rows] int32.
  """
  kinds, sides, how, noise = jax.random.split(key, 4)
  types, regulators = world.types.shape
  type_ = jax.random.randint(kinds, (rows,), 0, types)
  covariate = jax.random.randint(sides, (rows,), 0, world.covariates)
  mean = 1 + 0.1 * jnp.arange(regulators, dtype=jnp.float32)
  x0 = jax.random.poisson(how, mean, (rows, regulators)).astype(jnp.float32)
  added = covariate.astype(jnp.float32) + 0.1 * jax.random.normal(
    noise, (rows,)
  )
  x1 = x0 + added[:, None]
  x2 = x1 * world.types[type_]
  return {
    "x": x2 @ world.genes,
    "x0": x0,
    "x1": x1,
    "x2": x2,
    "type": type_,
    "covariate": covariate,
  }
