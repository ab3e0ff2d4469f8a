"""Tests of kernels/fused_encode/batch.py and entries on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.kernels import mesh
from saejax.kernels.entries import op as entries
from saejax.kernels.fused_encode import batch
from tests import toy

B, D, N, K = 16, 4, 64, 2.5
SHAPES = [(8, 1), (1, 8), (2, 4)]  # data, latent


def on(shape, f, *args):
  """f(*args), compiled for a mesh of that shape."""
  devices = jax.make_mesh(
    shape,
    (mesh.DATA, mesh.LATENT),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  with jax.set_mesh(devices):
    return jax.block_until_ready(jax.jit(f)(*args))


def loss(weights):
  """A sum over two runs of decoded latents, and what it was computed from."""

  def run(x, b_pre, W, b, W_dec):
    found = batch.encode_batch(
      x, b_pre, W, b, jnp.float32(B * K), mean_k=K, magnitude=True
    )
    at = found.values, found.rows, found.indices
    out = entries.decode(*at, W_dec, size=B, ends=(20, N))
    sums = entries.row_sums(jnp.abs(found.values), found.rows, B)
    z = jnp.zeros((B, N)).at[found.rows, found.indices].add(found.values)
    exact = jnp.asarray(True) if found.exact is None else found.exact
    return jnp.sum(out * weights) + jnp.sum(sums), (z, out, sums, exact)

  return run


class EncodeBatchTest(parameterized.TestCase):
  @parameterized.parameters(*SHAPES)
  def test_equals_one_device_with_its_gradients(self, *shape):
    shapes = [(B, D), (D,), (N, D), (N,), (N, D)]
    inputs = [toy.rows(*s, seed=i) for i, s in enumerate(shapes)]
    inputs[0] = inputs[0].at[::4].multiply(0.5)
    run = jax.grad(
      loss(toy.rows(2, B, D, seed=9)), (0, 1, 2, 3, 4), has_aux=True
    )
    want = jax.jit(run)(*inputs)
    got = on(shape, run, *inputs)
    self.assertTrue(got[1][3])
    check = lambda g, w: np.testing.assert_allclose(g, w, atol=1e-4)
    jax.tree.map(check, got, want)

  def test_a_shard_without_room_says_so(self):
    x = jnp.zeros((B, D)).at[3].set(9.0).at[2].set(9.0)
    W, b = toy.rows(N, D, seed=0), jnp.zeros(N)
    run = lambda x: batch.encode_batch(
      x, jnp.zeros(D), W, b, jnp.float32(16), mean_k=1
    )
    # Two rows take 8 each, more than their candidates and their shard's room.
    self.assertFalse(on((8, 1), run, x).exact)
    self.assertFalse(on((1, 8), run, x).exact)


if __name__ == "__main__":
  absltest.main()
