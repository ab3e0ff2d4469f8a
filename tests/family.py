"""Rows of parents and children: where plain SAEs lose the parents.

Four parents, each on with probability 0.15; a parent that is on has one of its
three children with probability 0.6. All 16 directions are orthonormal, every
coefficient is 1. An SAE that absorbs writes "child" for parent and child, so
that its parent latent is silent where a child is on.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from saejax.training import fit
from saejax.training.parts import schedules
from tests import toy

D, N, K, ROWS, STEPS, RATE = 20, 16, 0.75, 256, 800, 5e-3
PARENTS, CHILDREN = 4, 3


@functools.cache
def directions() -> np.ndarray:
  """[16, 20]: parents first, then the children of each."""
  normal = np.random.default_rng(0).standard_normal((D, N))
  return np.linalg.qr(normal)[0].T.astype(np.float32)


def draw(
  key: PRNGKeyArray, count: int
) -> tuple[Float[Array, "count d"], Bool[Array, "count 4"], Array]:
  """Rows, which parents are on, and which have a child."""
  parent, child, which = jax.random.split(key, 3)
  on = jax.random.bernoulli(parent, 0.15, (count, PARENTS))
  has = on & jax.random.bernoulli(child, 0.6, (count, PARENTS))
  chosen = jax.random.randint(which, (count, PARENTS), 0, CHILDREN)
  children = jax.nn.one_hot(chosen, CHILDREN) * has[..., None].astype(
    jnp.float32
  )
  code = jnp.concatenate(
    [on.astype(jnp.float32), children.reshape(count, -1)], axis=1
  )
  return code @ directions(), on, has


def rows(step: Array) -> Float[Array, "b d"]:
  """Those of a step."""
  return draw(toy.key(3, step), ROWS)[0]


def train(recipe, members) -> list[dict[str, float]]:
  """What `measure` says of each member after a run in one program."""
  saes, _, _ = fit.fit(recipe, rows, steps=STEPS, members=members, stacked=True)
  return [measure(sae) for sae in saes]


def schedule():
  """Constant, then linear to 0 over the last fifth."""
  return schedules.warmup_decay(STEPS, decay_fraction=0.2)


def measure(sae) -> dict[str, float]:
  """Explained variance; recall of parents beside a child; largest cosines.

  The latent of a parent is the one that fires most differently with the parent
  alone and without it.
  """
  x, on, has = draw(jax.random.key(99), 20_000)
  x_hat = sae.reconstruct(x)
  residual = jnp.sum((x - x_hat) ** 2) / jnp.sum((x - x.mean(axis=0)) ** 2)
  fires = np.asarray(sae.encode(x) != 0, np.float32)
  recalls = []
  for parent in range(PARENTS):
    alone = np.asarray(on[:, parent] & ~has[:, parent])
    without = np.asarray(~on[:, parent])
    detects = fires[alone].mean(axis=0) - fires[without].mean(axis=0)
    latent = int(np.argmax(detects))
    recalls.append(fires[np.asarray(has[:, parent]), latent].mean())
  W = sae.W_dec / jnp.linalg.norm(sae.W_dec, axis=1, keepdims=True)
  cosines = W @ W.T - 2 * jnp.eye(len(W))
  return {
    "ev": 1 - float(residual),
    "recall": float(np.mean(recalls)),
    "cosine": float(jnp.mean(jnp.max(cosines, axis=1))),
  }
