"""Tests of kernels/row_optimizer: the op, and its Pallas form simulated on CPU."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.experimental.pallas import tpu as pltpu

from saejax.kernels import dispatch
from saejax.kernels.row_optimizer import op, ref, tpu
from saejax.sae import decoders
from saejax.training.parts import constraints
from tests import toy

SIMULATED = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
HOW = {"b1": 0.9, "b2": 0.999, "eps": 6.25e-10}
SHAPES = [(16, 128), (48, 24), (80, 130)]  # d of less and more than registers


def matrices(n, d):
  """W of unit rows, g, m, v."""
  W = decoders.unit_rows(toy.rows(n, d))
  m, v = toy.rows(n, d, seed=3), jnp.square(toy.rows(n, d, seed=4))
  return W, toy.rows(n, d, seed=2), m, v


@functools.cache
def kernel(block):
  return jax.jit(partial(tpu.update, block=block, interpret=SIMULATED, **HOW))


def scalars(count=3, *, good=1.0):
  powers = 1 - 0.9**count, 1 - 0.999**count
  return jnp.asarray([0.7, 1e-2, *powers, good], jnp.float32)


class KernelTest(parameterized.TestCase):
  @parameterized.product(shape=SHAPES, block=[8, 16])
  def test_equals_the_definition(self, shape, block):
    args = *matrices(*shape), scalars()
    got = kernel(block)(*args)
    want = jax.jit(partial(ref.update, **HOW))(*args)
    toy.assert_trees_close(got, want, rtol=1e-5, atol=1e-6)
    norms = np.linalg.norm(np.asarray(got[0], np.float64), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)

  @parameterized.parameters(*SHAPES)
  def test_changes_nothing_where_the_step_is_not_to_be_done(self, *shape):
    W, g, m, v = matrices(*shape)
    g = g.at[3, 5].set(jnp.nan)
    got = kernel(8)(W, g, m, v, scalars(good=0.0))
    toy.assert_trees_equal(got, (W, m, v))

  def test_a_row_that_is_not_finite_stays_in_its_row(self):
    W, g, m, v = matrices(24, 24)
    want = kernel(8)(W, g, m, v, scalars())
    got = kernel(8)(W, g.at[4, 5].set(jnp.inf), m, v, scalars())
    for one, other in zip(got, want, strict=True):
      differs = np.flatnonzero(np.any(one != other, axis=1))
      np.testing.assert_array_equal(differs, [4])

  def test_rows_of_zeros_stay_zero(self):
    zero = jnp.zeros((16, 24))
    got = kernel(8)(zero, zero, zero, zero, scalars())
    toy.assert_trees_equal(got, (zero, zero, zero))

  @parameterized.product(n=[32, 24576, 65536, 98304], d=[1, 768, 2304, 4096])
  def test_blocks_are_whole_strips_that_divide_rows_and_fit(self, n, d):
    block = tpu.rows(n, d, jnp.float32)
    assert block is not None
    self.assertEqual((block % 8, n % block), (0, 0))
    self.assertLessEqual(2 * 7 * 4 * block * d, tpu.VMEM_BYTES)

  @parameterized.parameters((65521, 768), (21, 24), (64, 1 << 20))
  def test_there_is_none_where_no_block_divides_or_fits(self, n, d):
    self.assertIsNone(tpu.rows(n, d, jnp.float32))
    self.assertIsNone(tpu.rows(64, 128, jnp.bfloat16))


class OpTest(parameterized.TestCase):
  # 33 rows have no kernel.
  @parameterized.product(form=["xla", "pallas"], n=[32, 33])
  def test_100_steps_equal_optax_and_the_constraints(self, form, n):
    d, rate, scale = 24, 1e-2, 0.5
    sae = toy.sae(n=n, d=d)
    sae = constraints.unit_norm_decoder(sae)
    goal = decoders.unit_rows(toy.rows(n, d, seed=7))
    adam = optax.adam(rate, **HOW)
    decoder = sae.decoder.W
    state = adam.init(decoder)
    interpret = form == "pallas"

    @jax.jit
    def mine(W, m, v, count):
      g = W - goal
      return op.update(
        W,
        g,
        m,
        v,
        count=count,
        rate=jnp.asarray(rate),
        scale=jnp.asarray(scale),
        good=jnp.asarray(True),
        **HOW,
      )

    @jax.jit
    def theirs(sae, state):
      g = sae.replace(decoder=sae.decoder.replace(W=sae.decoder.W - goal))
      g = constraints.without_parallel_gradient(sae, g).decoder.W * scale
      with jax.numpy_dtype_promotion("standard"):
        updates, state = adam.update(g, state, sae.decoder.W)
      W = sae.decoder.W + updates
      sae = sae.replace(decoder=sae.decoder.replace(W=W))
      return constraints.unit_norm_decoder(sae), state

    W, m, v = decoder, jnp.zeros((n, d)), jnp.zeros((n, d))
    with dispatch.kernels(form, interpret=interpret):
      for step in range(100):
        W, m, v = mine(W, m, v, jnp.asarray(step + 1))
        sae, state = theirs(sae, state)
    np.testing.assert_allclose(W, sae.decoder.W, atol=2e-6)
    np.testing.assert_allclose(m, state[0].mu, atol=2e-6)
    np.testing.assert_allclose(v, state[0].nu, atol=2e-6)
    self.assertGreater(np.abs(W - decoder).max(), 0.1)

  def test_vmapped_over_members_equals_each(self):
    args = [jnp.stack([a, 2 * a[::-1]]) for a in matrices(32, 24)]
    args[0] = decoders.unit_rows(args[0])
    update = lambda W, g, m, v, rate, good: op.update(
      W,
      g,
      m,
      v,
      count=jnp.asarray(2),
      rate=rate,
      scale=jnp.asarray(1.0),
      good=good,
      **HOW,
    )
    args = *args, jnp.asarray([0.1, 0.2]), jnp.asarray([True, False])
    want = jax.jit(jax.vmap(update))(*args)
    with dispatch.kernels("pallas", interpret=True):
      got = jax.jit(jax.vmap(update))(*args)
    toy.assert_trees_close(got, want, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
  absltest.main()
