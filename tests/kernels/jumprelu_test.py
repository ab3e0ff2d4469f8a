"""Tests of kernels/jumprelu: its Pallas form, simulated on CPU, and the op."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.experimental.pallas import tpu as pltpu

from saejax.kernels import dispatch
from saejax.kernels.jumprelu import op, ref, tpu, xla
from saejax.kernels.jumprelu.ref import Estimator
from saejax.sae import jumprelu
from saejax.training.parts import losses, sparsity
from tests import contract, toy

SIMULATED = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
# Ragged in every direction: 2 strips of rows, 3 tiles of latents, d below 128.
ROWS, D, N = 21, 24, 300
SIZES = tpu.Blocks(rows=32, strip=16, columns=128)


def integers(bound, *shape, seed=0):
  drawn = np.random.default_rng(seed).integers(-bound, bound + 1, shape)
  return drawn.astype(np.float32)


def arguments():
  """x, W, b, theta of which every sum is exact: many a equal their theta."""
  x, W = integers(3, ROWS, D), integers(2, N, D, seed=1)
  return x, W, integers(3, N, seed=2), np.abs(integers(8, N, seed=3))


def weights():
  """Cotangents of a, z and L0."""
  entries = [toy.rows(ROWS, N, seed=seed) for seed in (5, 6)]
  return *entries, toy.rows(ROWS, seed=7)


def with_gradients(encode, args):
  """a, z, L0 and the gradients of a weighted sum of them."""

  def loss(*args):
    out = encode(*args)
    sums = [jnp.sum(each * w) for each, w in zip(out, weights(), strict=True)]
    return sum(sums), out

  return jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(*args)


class OpTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.object(tpu, "blocks", lambda *_: SIZES))

  @parameterized.parameters(
    Estimator(4.0),
    Estimator(4.0, "rectangle", True),
    Estimator(3.0, "gaussian", True),
  )
  def test_equals_the_definition_and_its_gradients(self, estimator):
    args = arguments()
    with dispatch.kernels("pallas", interpret=SIMULATED):
      got = with_gradients(partial(op.encode, estimator=estimator), args)
    want = with_gradients(partial(ref.encode, estimator=estimator), args)
    for have, each in zip(got[1], want[1], strict=True):
      np.testing.assert_array_equal(have, each)
    toy.assert_trees_close(got[0], want[0], rtol=1e-5, atol=1e-4)
    self.assertGreater(int(np.sum(got[1][0] == args[3])), 50)

  def test_explicit_gradients_in_plain_jax_are_those_of_the_definition(self):
    args, estimator = arguments(), Estimator(3.0, "quartic", True)
    with dispatch.kernels("pallas"):  # on CPU its plain halves
      got = with_gradients(partial(op.encode, estimator=estimator), args)
    want = with_gradients(partial(ref.encode, estimator=estimator), args)
    toy.assert_trees_close(got, want, rtol=1e-5, atol=1e-4)

  def test_bfloat16_operands_are_summed_in_float32(self):
    x, W, b, theta = (toy.rows(*a.shape, seed=4) for a in arguments())
    encode = jax.jit(
      partial(op.encode, estimator=Estimator(0.5), dtype="bfloat16")
    )
    with dispatch.kernels("pallas", interpret=True):
      got = encode(x, W, b, theta)
    with dispatch.kernels("xla"):
      want = encode(x, W, b, theta)
    toy.assert_trees_close(got, want, rtol=1e-5, atol=1e-5)
    self.assertEqual(got[0].dtype, jnp.float32)

  def test_vmapped_over_members_equals_each(self):
    x, *members = arguments()
    stack = [np.stack([each, 2 * each]) for each in members]

    def slopes(*member):
      loss = lambda *m: jnp.sum(op.encode(x, *m, Estimator(4.0))[1] ** 2)
      return jax.grad(loss, (0, 1, 2))(*member)

    with dispatch.kernels("pallas", interpret=True):
      got = jax.jit(jax.vmap(slopes))(*stack)
    for i in range(2):
      want = jax.jit(slopes)(*(each[i] for each in stack))
      toy.assert_trees_close(
        [each[i] for each in got], list(want), rtol=1e-5, atol=1e-3
      )

  def test_loss_and_gradients_of_an_sae_are_those_of_plain_jax(self):
    ours = toy.sae(activation=jumprelu.JumpReLU(0.1 + toy.rows(24) ** 2, 0.5))

    def loss(sae):
      record = contract.record(None, sae, toy.rows(4, 10, 8))
      return jnp.mean(losses.mse(record) + 0.1 * sparsity.l0(record))

    slope = jax.jit(jax.value_and_grad(loss))
    with dispatch.kernels("pallas", interpret=True):
      got = slope(ours)
    with dispatch.kernels("xla"):
      want = slope(ours)
    toy.assert_trees_close(got, want, rtol=1e-5, atol=1e-5)


class HalvesTest(parameterized.TestCase):
  """The kernels against the plain halves, in every edge case."""

  def edges(self):
    x, W, b, theta = arguments()
    theta[:6] = [0, np.inf, 1e-40, -0.0, 1, 2]
    b[:12] = [0, 9, 1e-40, 0, np.inf, -np.inf, -0.0, 1e-40, 1, 2, 3, 4]
    x[4] = 0  # pre-activations are the biases
    x[7, 2] = np.nan
    W[250, 3] = np.inf
    return x, W, b, theta

  def test_forward_equals_plain_jax(self):
    args = self.edges()
    got = jax.jit(partial(tpu.forward, sizes=SIZES, interpret=SIMULATED))(*args)
    for have, want in zip(got, jax.jit(xla.forward)(*args), strict=True):
      np.testing.assert_array_equal(have, want)

  @parameterized.product(kernel=tpu.ESTIMATORS, ste_to_input=[False, True])
  def test_backward_equals_plain_jax(self, kernel, ste_to_input):
    x, W, b, theta = self.edges()
    theta[1] = 3  # times a gradient of 0, an infinite theta is NaN
    x[7, 2] = 1
    W[250, 3] = 1
    a, _ = xla.forward(x, W, b, theta)
    _, g_z, g_l0 = weights()
    args = a, g_z, g_l0, theta
    how = {"estimator": Estimator(4.0, kernel, ste_to_input)}
    simulated = SIMULATED if kernel == "rectangle" else True
    got = jax.jit(
      partial(tpu.backward, **how, sizes=SIZES, interpret=simulated)
    )(*args)
    want = jax.jit(partial(xla.backward, **how))(*args)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6, atol=1e-6)
    for have, each in zip(got[1:], want[1:], strict=True):
      np.testing.assert_allclose(have, each, rtol=1e-5, atol=2e-5)

  def test_thresholds_outside_the_window_get_no_gradient(self):
    x, W, b, _ = arguments()
    a, _ = xla.forward(x, W, b, jnp.zeros(N))
    theta = jnp.max(jnp.abs(a), axis=0) + 1.5
    _, g_z, g_l0 = weights()
    how = {"estimator": Estimator(2.0), "sizes": SIZES, "interpret": True}
    d_a, d_theta, d_b = tpu.backward(a, g_z, g_l0, theta, **how)
    for zero in (d_a, d_theta, d_b):
      np.testing.assert_array_equal(zero, 0)


class BlocksTest(parameterized.TestCase):
  @parameterized.parameters("cosine", "silverman")
  def test_kernels_with_a_sine_run_in_plain_jax(self, kernel):
    estimator = Estimator(3.0, kernel, True)
    self.assertIsNone(tpu.blocks(4096, 65536, 2304, estimator, "bfloat16"))
    args = arguments()
    with dispatch.kernels("pallas", interpret=True):
      got = with_gradients(partial(op.encode, estimator=estimator), args)
    want = with_gradients(partial(ref.encode, estimator=estimator), args)
    toy.assert_trees_close(got, want, rtol=1e-5, atol=1e-4)

  @parameterized.parameters(
    (4096, 65536, 2304, "bfloat16", True),
    (8192, 131072, 4096, "float32", True),
    (4000, 65536, 2304, "bfloat16", False),
    (4096, 65000, 2304, "bfloat16", False),
    (21, 300, 24, "float32", False),
  )
  def test_blocks_fit_and_whole_ones_are_known(self, rows, n, d, dtype, whole):
    sizes = tpu.blocks(rows, n, d, Estimator(1.0), dtype)
    assert sizes is not None
    self.assertEqual(tpu.fits(rows, n, d, sizes), whole)
    self.assertEqual(sizes.rows % sizes.strip, 0)
    self.assertLessEqual(tpu._forward_bytes(sizes, d, dtype), tpu.VMEM_BYTES)
    self.assertLessEqual(tpu._backward_bytes(sizes), tpu.VMEM_BYTES)

  @parameterized.parameters((1 << 20, "bfloat16"), (64, "float16"))
  def test_other_shapes_have_no_kernel(self, d, dtype):
    self.assertIsNone(tpu.blocks(64, 512, d, Estimator(1.0), dtype))

  def test_an_unknown_kernel_is_refused(self):
    with self.assertRaisesRegex(ValueError, "got 'box'"):
      op.encode(*arguments(), Estimator(1.0, "box"))


if __name__ == "__main__":
  absltest.main()
