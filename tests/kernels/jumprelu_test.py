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
ROWS, D, D_OUT, N = 21, 24, 20, 300
SIZES = tpu.Blocks(rows=32, strip=16, columns=128)


def integers(bound, *shape, seed=0):
  drawn = np.random.default_rng(seed).integers(-bound, bound + 1, shape)
  return drawn.astype(np.float32)


def arguments():
  """x, W_enc, b, theta, W_dec; every a is exact, and many equal their theta."""
  x, W = integers(3, ROWS, D), integers(2, N, D, seed=1)
  b, theta = integers(3, N, seed=2), np.abs(integers(8, N, seed=3))
  return x, W, b, theta, integers(2, N, D_OUT, seed=4)


def with_gradients(encode, args, *, among=("x_hat", "a", "z", "l0")):
  """The outputs, and the gradients of a weighted sum of those in `among`."""
  shapes = {"x_hat": (ROWS, D_OUT), "a": (ROWS, N), "z": (ROWS, N)}
  weights = {
    name: toy.rows(*shapes.get(name, (ROWS,)), seed=5 + i)
    for i, name in enumerate(among)
  }

  def loss(*args):
    out = dict(zip(("x_hat", "a", "z", "l0"), encode(*args), strict=True))
    return sum(jnp.sum(out[name] * weights[name]) for name in among), out

  return jax.jit(jax.grad(loss, tuple(range(5)), has_aux=True))(*args)


class OpTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.object(tpu, "blocks", lambda *_: SIZES))

  @parameterized.parameters(
    (Estimator(4.0), ("x_hat", "l0")),
    (Estimator(4.0, "rectangle", True), ("x_hat", "a", "z", "l0")),
    (Estimator(3.0, "gaussian", True), ("x_hat", "z")),
    (Estimator(3.0, "cauchy"), ("l0",)),
  )
  def test_equals_the_definition_and_its_gradients(self, estimator, among):
    args = arguments()
    form = lambda f: with_gradients(
      partial(f, estimator=estimator), args, among=among
    )
    with dispatch.kernels("pallas", interpret=SIMULATED):
      gradients, out = form(op.autoencode)
    with dispatch.kernels("pallas"):  # on CPU its plain halves
      plain, _ = form(op.autoencode)
    want, exact = form(ref.autoencode)
    for name, each in exact.items():
      np.testing.assert_array_equal(out[name], each, name)
    for got in (gradients, plain):
      toy.assert_trees_close(got, want, rtol=1e-5, atol=1e-3)
    self.assertGreater(int(np.sum(out["a"] == args[3])), 50)

  def test_bfloat16_operands_are_summed_in_float32(self):
    args = [toy.rows(*a.shape, seed=4) for a in arguments()]
    how = {"estimator": Estimator(0.5), "dtype": "bfloat16"}
    with dispatch.kernels("pallas", interpret=True):
      got = with_gradients(partial(op.autoencode, **how), args)
    with dispatch.kernels("xla"):
      want = with_gradients(partial(op.autoencode, **how), args)
    for name in ("x_hat", "a", "z", "l0"):
      np.testing.assert_allclose(
        got[1][name], want[1][name], rtol=1e-5, atol=1e-5
      )
    for have, each in zip(got[0], want[0], strict=True):
      self.assertEqual(have.dtype, jnp.float32)
      # Gradients are rounded to bfloat16 before and after their products.
      size = float(jnp.max(jnp.abs(each)))
      np.testing.assert_allclose(have, each, rtol=0, atol=0.01 * size)

  def test_vmapped_over_members_equals_each(self):
    x, *members = arguments()
    stack = [np.stack([each, 2 * each]) for each in members]

    def slopes(*member):
      loss = lambda *m: jnp.sum(op.autoencode(x, *m, Estimator(4.0))[0] ** 2)
      return jax.grad(loss, (0, 1, 2, 3))(*member)

    with dispatch.kernels("pallas", interpret=True):
      got = jax.jit(jax.vmap(slopes))(*stack)
    for i in range(2):
      want = jax.jit(slopes)(*(each[i] for each in stack))
      toy.assert_trees_close(
        [each[i] for each in got], list(want), rtol=1e-5, atol=1.0
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
    x, W, b, theta, _ = arguments()
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

  def gradients(self):
    """g and W_dec of which every sum is exact, and the gradient in L0."""
    g, W = integers(3, ROWS, D_OUT, seed=8), integers(2, N, D_OUT, seed=9)
    return g, W, toy.rows(ROWS, seed=7)

  @parameterized.product(kernel=tpu.ESTIMATORS, ste_to_input=[False, True])
  def test_backward_equals_plain_jax(self, kernel, ste_to_input):
    x, W, b, theta = self.edges()
    theta[1] = 3  # times a gradient of 0, an infinite theta is NaN
    x[7, 2], W[250, 3] = 1, 1
    a, _, _ = xla.forward(x, W, b, theta)
    g, W_dec, g_l0 = self.gradients()
    args = g, W_dec, a, g_l0, theta
    how = {"estimator": Estimator(4.0, kernel, ste_to_input)}
    simulated = SIMULATED if kernel == "rectangle" else True
    kernels = partial(tpu.backward, **how, sizes=SIZES, interpret=simulated)
    got = jax.jit(kernels)(*args)
    want = jax.jit(partial(xla.backward, **how))(*args)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6, atol=1e-5)
    for have, each in zip(got[1:], want[1:], strict=True):
      np.testing.assert_allclose(have, each, rtol=1e-5, atol=1e-3)

  def test_thresholds_outside_the_window_get_no_gradient(self):
    x, W, b, _, _ = arguments()
    a, _, _ = xla.forward(x, W, b, jnp.zeros(N))
    theta = jnp.max(jnp.abs(a), axis=0) + 1.5
    g, W_dec, g_l0 = self.gradients()
    how = {"estimator": Estimator(2.0), "sizes": SIZES, "interpret": True}
    for zero in tpu.backward(g, W_dec, a, g_l0, theta, **how):
      np.testing.assert_array_equal(zero, 0)


class BlocksTest(parameterized.TestCase):
  @parameterized.parameters("cosine", "silverman")
  def test_kernels_with_a_sine_run_in_plain_jax(self, kernel):
    estimator = Estimator(3.0, kernel, True)
    self.assertIsNone(tpu.blocks(4096, 65536, 2304, estimator, "bfloat16"))
    args = arguments()
    with dispatch.kernels("pallas", interpret=True):
      got = with_gradients(partial(op.autoencode, estimator=estimator), args)
    want = with_gradients(partial(ref.autoencode, estimator=estimator), args)
    toy.assert_trees_close(got, want, rtol=1e-5, atol=1e-3)

  @parameterized.parameters(
    (4096, 65536, 2304, "bfloat16"),
    (8192, 131072, 4096, "float32"),
    (4000, 65000, 2304, "bfloat16"),
    (21, 300, 24, "float32"),
  )
  def test_blocks_fit(self, rows, n, d, dtype):
    sizes = tpu.blocks(rows, n, d, Estimator(1.0), dtype)
    assert sizes is not None
    self.assertEqual(sizes.rows % sizes.strip, 0)
    self.assertLessEqual(tpu._forward_bytes(sizes, d, dtype), tpu.VMEM_BYTES)
    self.assertLessEqual(tpu._backward_bytes(sizes, d, dtype), tpu.VMEM_BYTES)

  @parameterized.parameters((1 << 20, "bfloat16"), (64, "float16"))
  def test_other_shapes_have_no_kernel(self, d, dtype):
    self.assertIsNone(tpu.blocks(64, 512, d, Estimator(1.0), dtype))

  def test_an_unknown_kernel_is_refused(self):
    with self.assertRaisesRegex(ValueError, "got 'box'"):
      op.autoencode(*arguments(), Estimator(1.0, "box"))


if __name__ == "__main__":
  absltest.main()
