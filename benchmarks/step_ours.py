"""Our training steps and the floor of the machine, for step.py on a CPU.

xla     the engine that `--train.engine=auto` chooses, in plain JAX
native  the same with `--train.native`
floor   one x W_enc^T matmul and one Adam pass over the 2dn + n + d
        parameters, jitted, donated
matmul, adam   the two parts of the floor alone
"""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peers
import serving

from saejax.kernels import dispatch
from saejax.recipes import batch_sparse, row_sparse, thresholds
from saejax.training import members, sharding

OURS, FLOORS = ("xla", "native"), ("floor", "matmul", "adam")


def build(name, method, sizes, dtype, seed, steps, threads, device):
  """A step on batches in turn, and the versions in use."""
  del steps, threads, device
  data = peers.data(seed, sizes["B"], sizes["d"])
  if name in FLOORS:
    one = build_floor(name, dtype=dtype, data=data, n=sizes["n"])
  else:
    one = build_ours(
      method,
      data,
      dtype=dtype,
      n=sizes["n"],
      k=sizes["k"],
      native=name != "xla",
    )
  versions = {p: importlib.metadata.version(p) for p in ("jax", "jaxlib")}
  return lambda: jax.block_until_ready(one()), versions


def build_ours(
  method: str, data: np.ndarray, *, n: int, k: int, dtype: str, native: bool
) -> Callable[[], Any]:
  """A callable that takes one training step of ours and gives the state.

  Args:
    method: "topk", "batchtopk" or "jumprelu".
    data: batches [batches, B, d].
    n: latents.
    k: latents kept per row.
    dtype: of the matmuls' operands.
    native: whether to run the C++ kernels.
  """
  d = data.shape[-1]
  options: Any = {
    "dead_after_tokens": 10_000_000,
    "clip_norm": 1.0,
    "dtype": dtype,
  }

  if method == "topk":
    recipe = row_sparse.topk(d, n, k, **options)
  elif method == "batchtopk":
    recipe = batch_sparse.batchtopk(d, n, k, **options)
  else:
    options |= {"steps": 10_000}  # over which its penalty rises
    recipe = thresholds.jumprelu(d, n, coefficient=1.0, **options)
  group = members.Group(
    lambda: recipe,
    [members.Member(seed=0, learning_rate=3e-4)],
    mesh=sharding.make_mesh((1, 1, 1)),
    stacked=False,
    engine="auto",
  )
  batches = [group.put({"x": x}) for x in np.asarray(data, dtype)]
  states = group.init(jnp.asarray(data[0], jnp.float32))
  taken = 0

  def one() -> Any:
    nonlocal states, taken
    with dispatch.kernels("auto", native=native):
      states, _, _ = group.run(states, [batches[taken % len(batches)]])
    taken += 1
    return states

  return one


def build_floor(
  name: str, *, dtype: str, data: np.ndarray, n: int
) -> Callable[[], Any]:
  """The least that a step must do, or a part of it.

  Args:
    name: one of `FLOORS`.
    dtype: of the matmul's operands.
    data: batches [batches, B, d].
    n: latents.
  """
  d = data.shape[-1]
  shapes = {"W_enc": (n, d), "W_dec": (n, d), "b_enc": (n,), "b_dec": (d,)}
  keys = jax.random.split(jax.random.key(0), len(shapes))
  draw = {
    name: jax.random.normal(key, shape) / d**0.5
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
  }
  gradient = jax.tree.map(lambda p: p * 1e-3, draw)
  state = {
    "p": draw,
    "m": jax.tree.map(jnp.zeros_like, draw),
    "v": jax.tree.map(jnp.ones_like, draw),
  }
  batches = [jnp.asarray(x, dtype) for x in data]
  taken = 0

  def matmul(W_enc, x):
    return x @ W_enc.astype(x.dtype).T

  def adam(state, g, b1=0.9, b2=0.999, rate=1e-4, eps=6.25e-10):
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state["m"], g)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state["v"], g)
    p = jax.tree.map(
      lambda p, m, v: p - rate * m / (jnp.sqrt(v) + eps), state["p"], m, v
    )
    return {"p": p, "m": m, "v": v}

  def both(state, g, x):
    return adam(state, g), matmul(state["p"]["W_enc"], x)

  jit_matmul = jax.jit(matmul)
  jit_adam = jax.jit(adam, donate_argnums=0)
  jit_both = jax.jit(both, donate_argnums=0)

  def one():
    nonlocal state, taken
    taken += 1
    x = batches[taken % len(batches)]
    if name == "matmul":
      return jit_matmul(state["p"]["W_enc"], x)
    if name == "adam":
      state = jit_adam(state, gradient)
      return state
    state, a = jit_both(state, gradient, x)
    return state, a

  return one


if __name__ == "__main__":
  serving.serve(build)
