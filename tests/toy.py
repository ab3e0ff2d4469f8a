"""Small SAEs, and rows whose dictionary is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from saejax.sae import activations, decoders, encoders, prep
from saejax.sae.context import Batch, Context, Pre
from saejax.sae.latents import DenseLatents, SparseLatents
from saejax.sae.sae import SAE, Forward
from saejax.training.recipe import Record


def unit(W: Float[Array, "n d"]) -> Float[Array, "n d"]:
  """Rows divided by their norm."""
  return W / jnp.linalg.norm(W, axis=-1, keepdims=True)


def rows(*shape: int, seed: int = 1) -> Float[Array, "*b d"]:
  """Standard normal numbers."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape, np.float32))


class Held:
  """The rows of a batch, as a source of evenly spaced ones."""

  def __init__(self, batch: Batch):
    self._batch = batch

  def sample(self, count: int) -> Batch:
    """At most `count` rows."""
    every = self._batch.rows
    which = np.linspace(0, every - 1, min(count, every)).astype(int)
    return jax.tree.map(lambda a: jnp.asarray(a[which]), self._batch)


def sae(
  *,
  n: int = 24,
  d: int = 8,
  activation: activations.Activation = activations.TopK(4),
  decoder: type = decoders.Free,
  prep_: prep.Prep = prep.Identity(),
  pre_bias: bool = True,
  dtype: str = "float32",
  seed: int = 0,
) -> SAE:
  """An SAE with unit decoder rows, no two arrays equal and no bias 0."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape, np.float32)
  W = draw(n, d)
  W /= np.linalg.norm(W, axis=1, keepdims=True)
  return SAE(
    prep=prep_,
    encoder=encoders.Affine(
      W=jnp.asarray(W + 0.3 * draw(n, d)), b=jnp.asarray(0.2 * draw(n))
    ),
    activation=activation,
    decoder=decoder(W=jnp.asarray(W), b=jnp.asarray(0.5 * draw(d))),
    pre_bias=pre_bias,
    dtype=dtype,
  )


def context(x=None, *, W=None, b_pre=None, **around) -> Context:
  """The surroundings of a pass; what is not given is empty."""
  x = jnp.zeros((1, 1)) if x is None else x
  W = jnp.zeros((1, x.shape[-1])) if W is None else W
  return Context(
    batch=around.pop("batch", Batch(x=x)),
    x=x,
    decoder=decoders.Free(W=W, b=jnp.zeros(x.shape[-1:])),
    W_dec=W,
    b_pre=jnp.zeros(x.shape[-1:]) if b_pre is None else b_pre,
    **around,
  )


def activate(activation, a, k=None, **around) -> Float[Array, "*b n"]:
  """Latents of plain pre-activations."""
  return jax.jit(lambda a: activation(Pre(a=a), context(k=k, **around)))(a)


def record(
  latents,
  *,
  x=None,
  W=None,
  b=None,
  a=None,
  sae=None,
  stats=None,
  engine="dense",
  **around,
) -> Record:
  """A record of a pass whose every number is given."""
  if not isinstance(latents, SparseLatents | DenseLatents):
    latents = DenseLatents(latents)
  first = jax.tree.leaves(latents)[0]
  x = jnp.zeros((*first.shape[:-1], 1)) if x is None else x
  n = latents.dense().shape[-1]
  W = jnp.zeros((n, x.shape[-1])) if W is None else W
  x_hat = latents.decode(W) + (0 if b is None else b)
  forward = Forward(
    ctx=context(x, W=W, **around),
    target=x,
    x_hat=x_hat,
    latents=latents,
    pre=None if a is None else Pre(a=a),
    statistics=None,
  )
  return Record(forward=forward, sae=sae, stats=stats or {}, engine=engine)


# Operation by operation, each would be compiled on its own.
encode = jax.jit(lambda sae, x: sae.encode(x))
reconstruct = jax.jit(lambda sae, x: sae.reconstruct(x))


def affine(d: int, seed: int = 2) -> prep.Affine:
  """A centring and scaling that is neither 0 nor 1."""
  return prep.Affine(centre=3 * rows(d, seed=seed), scale=jnp.float32(2.5))


def dictionary(n: int = 64, d: int = 32, seed: int = 0) -> Float[Array, "n d"]:
  """Random directions."""
  return unit(rows(n, d, seed=seed))


def key(seed: int, i: Array) -> PRNGKeyArray:
  """The key of a step's rows.

  Keys of the default kind would take a third of the time of a small step.
  """
  return jax.random.fold_in(jax.random.key(seed, impl="rbg"), i)


@functools.partial(jax.jit, static_argnames=("count",))
def planted(
  key: PRNGKeyArray, count: int, directions: Float[Array, "n d"]
) -> Float[Array, "count d"]:
  """Sums of 3 directions on average, coefficients uniform on (0.5, 1.5)."""
  n = directions.shape[0]
  which, size = jax.random.split(key)
  on = jax.random.bernoulli(which, 3 / n, (count, n))
  c = jax.random.uniform(size, (count, n), minval=0.5, maxval=1.5)
  return jnp.where(on, c, 0) @ directions


def best_cosines(
  directions: Float[Array, "n d"], found: Float[Array, "m d"]
) -> np.ndarray:
  """Of each unit direction, the largest cosine with a row of `found`."""
  directions, found = np.asarray(directions), np.asarray(found)
  found = found / np.linalg.norm(found, axis=-1, keepdims=True)
  return np.max(directions @ found.T, axis=-1)


def assert_trees_close(got, want, *, rtol: float, atol: float, skip=()) -> None:
  """Every leaf close, named where it is not; `skip` names ends of paths."""
  got_leaves, got_tree = jax.tree_util.tree_flatten_with_path(got)
  want_leaves, want_tree = jax.tree_util.tree_flatten_with_path(want)
  if got_tree != want_tree:
    raise AssertionError(f"{got_tree} is not {want_tree}")
  for (path, a), (_, b) in zip(got_leaves, want_leaves, strict=True):
    name = jax.tree_util.keystr(path)
    if not name.endswith(tuple(skip)) or not skip:
      a, b = (plain(v) for v in (a, b))
      np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


def assert_trees_equal(got, want) -> None:
  """Every leaf equal to the bit, NaN equal to NaN."""
  assert_trees_close(got, want, rtol=0, atol=0)


def plain(leaf: Array) -> np.ndarray:
  """A leaf on the host; keys as their words."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf)
