"""Tests of the ops in kernels where their arrays are split over devices."""

import contextlib
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec as P

from saejax.kernels import dispatch, mesh
from saejax.kernels.fused_encode import op as fused_encode
from saejax.kernels.jumprelu import op as jumprelu
from saejax.kernels.jumprelu.ref import Estimator
from saejax.kernels.nested_decode import op as nested_decode
from saejax.kernels.sparse_decode import op as sparse_decode
from saejax.kernels.topk import op as topk
from saejax.kernels.topk import shards
from tests import compiled, toy

SHAPES = [(8, 1), (1, 8), (2, 4)]  # data, latent


def devices(shape):
  return jax.make_mesh(
    shape,
    (mesh.DATA, mesh.LATENT),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


# How the largest among all shards are found: bytes that may be gathered.
FORMS = {"gathered": 1 << 26, "counted": 0}


def form(name):
  return mock.patch.object(shards, "GATHER_BYTES", FORMS[name])


def on(shape, f, *args):
  """f compiled for a mesh of that shape, waited for; None: one device."""
  where = jax.set_mesh(devices(shape)) if shape else contextlib.nullcontext()
  with where:
    return jax.device_get(jax.block_until_ready(jax.jit(f)(*args)))


def scores(kind, rows=16, n=64):
  a = np.array(toy.rows(rows, n))
  if kind == "ties":
    a = np.round(a) + 0.0
  if kind == "equal":
    a = np.ones_like(a)
  if kind == "one shard":  # all winners among the last n / 8
    a[:, -8:] += 100
  if kind == "few":  # fewer than k are candidates
    a[:, 2:-3] = -np.inf
  return jnp.asarray(a)


class TopKTest(parameterized.TestCase):
  @parameterized.product(
    shape=SHAPES,
    kind=["normal", "ties", "equal", "one shard", "few"],
    k=[3, 8, 20],  # 20: more than a shard of 8 holds
    how=[*FORMS],
  )
  def test_split_selection_is_exact(self, shape, kind, k, how):
    a = scores(kind)
    order = np.argsort(-np.asarray(a), axis=1, kind="stable")[:, :k]
    with form(how):
      values, indices = on(shape, partial(topk.top_k, k=k), a)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(a, order, axis=1))

  @parameterized.parameters(*FORMS)
  def test_counting_holds_no_candidates_of_other_shards(self, how):
    a, k = scores("normal", rows=24), 8
    with form(how), jax.set_mesh(devices((1, 8))):
      where = jax.NamedSharding(devices((1, 8)), P(None, mesh.LATENT))
      a = jax.device_put(a, where)
      text = jax.jit(partial(topk.top_k, k=k)).lower(a).compile().as_text()
    held = (24, 8 * k) in compiled.arrays(text)
    self.assertEqual(held, how == "gathered")

  @parameterized.parameters((7, 64), (16, 63), (7, 63))
  def test_sizes_that_do_not_divide_are_not_split(self, rows, n):
    a = scores("ties", rows, n)
    got = on((2, 4), partial(topk.top_k, k=5), a)
    want = on(None, partial(topk.top_k, k=5), a)
    for g, w in zip(got, want, strict=True):
      np.testing.assert_array_equal(g, w)

  @parameterized.parameters(*SHAPES)
  def test_gradient_is_that_of_one_device(self, *shape):
    a = scores("normal")
    f = jax.grad(lambda a: jnp.sum(topk.top_k(a, 5)[0] ** 2))
    np.testing.assert_allclose(on(shape, f, a), on(None, f, a), rtol=1e-6)


class SparseTest(parameterized.TestCase):
  @parameterized.parameters(*SHAPES)
  def test_products_and_gradients_are_those_of_one_device(self, *shape):
    b, k, d, n = 16, 5, 6, 64
    values = toy.rows(b, k)
    values = values.at[:, 1].set(0)
    indices = jnp.asarray(np.random.default_rng(0).integers(0, n, (b, k)))
    W, g = toy.rows(n, d, seed=2), toy.rows(b, d, seed=3)

    def everything(values, W):
      loss = lambda v, W: jnp.sum(sparse_decode.decode(v, indices, W) * g)
      return (
        sparse_decode.decode(values, indices, W),
        sparse_decode.sampled_product(g, W, indices),
        sparse_decode.scatter_rows(values, indices, g, n),
        jax.grad(loss, (0, 1))(values, W),
      )

    toy.assert_trees_close(
      on(shape, everything, values, W),
      on(None, everything, values, W),
      rtol=1e-5,
      atol=1e-5,
    )

  @parameterized.product(shape=SHAPES, bad=[np.nan, np.inf])
  def test_padding_on_any_shard_contributes_nothing(self, shape, bad):
    values = toy.rows(16, 5).at[:, 2:].set(0)
    indices = jnp.tile(jnp.asarray([1, 40, 0, 0, 63]), (16, 1))
    W = toy.rows(64, 6)
    poisoned = W.at[jnp.asarray([0, 63])].set(bad)
    np.testing.assert_allclose(
      on(shape, sparse_decode.decode, values, indices, poisoned),
      on(None, sparse_decode.decode, values, indices, W),
      rtol=1e-6,
    )

  @parameterized.parameters(*SHAPES)
  def test_errors_of_every_prefix_are_those_of_one_device(self, *shape):
    b, k, d, n = 16, 5, 6, 64
    values = toy.rows(b, k).at[:, 1].set(0)
    indices = jnp.asarray(np.random.default_rng(0).integers(0, n, (b, k)))
    W, residual = toy.rows(n, d, seed=2), toy.rows(b, d, seed=3)
    weights = jnp.arange(1.0, k + 1)

    def loss(values, W, residual):
      each = nested_decode.squares(values, indices, W, residual, weights)
      return jnp.sum(each * jnp.arange(1.0, b + 1)), each

    both = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    toy.assert_trees_close(
      on(shape, both, values, W, residual),
      on(None, both, values, W, residual),
      rtol=1e-5,
      atol=2e-4,
    )


class EncodeTest(parameterized.TestCase):
  @parameterized.product(
    shape=SHAPES,
    magnitude=[False, True],
    case=[("gathered", False), ("counted", False), ("counted", True)],
  )
  def test_selection_and_gradients_are_those_of_one_device(
    self, shape, magnitude, case
  ):
    how, ordered = case
    b = toy.rows(64).at[5:60].set(-jnp.inf)  # nine compete
    args = toy.rows(16, 6), toy.rows(6), toy.rows(64, 6), b

    def everything(*args):
      def loss(*args):
        values, indices = fused_encode.encode_topk(
          *args, 7, magnitude=magnitude, ordered=ordered
        )
        return jnp.sum(values**2), (values, indices)

      return jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(*args)

    with form(how):
      got, want = on(shape, everything, *args), on(None, everything, *args)
    np.testing.assert_array_equal(got[0][1][1], want[0][1][1])
    toy.assert_trees_close(got, want, rtol=1e-5, atol=2e-4)

  def test_a_kernel_on_each_shard_selects_as_one_device(self):
    x, W = toy.rows(16, 6).at[3].set(0), toy.rows(64, 6)
    encode = lambda x, W: fused_encode.encode_topk_counted(
      x, jnp.zeros(6), W, jnp.zeros(64), 9
    )
    want = on(None, encode, x, W)
    with dispatch.kernels("pallas", interpret=True):
      values, indices, redone = on((2, 4), encode, x, W)
    np.testing.assert_array_equal(indices, want[1])
    np.testing.assert_allclose(values, want[0], rtol=1e-6)
    self.assertEqual(redone, 4)  # the row of zeros, on every shard of latents


class JumpReLUTest(parameterized.TestCase):
  @parameterized.parameters(*SHAPES)
  def test_kernels_on_each_shard_are_those_of_one_device(self, *shape):
    args = toy.rows(16, 6), toy.rows(64, 6), toy.rows(64), toy.rows(64) ** 2
    args = *args, toy.rows(64, 6, seed=1)
    entries = toy.rows(16, 64, seed=2), toy.rows(16, 64, seed=3)
    weights = toy.rows(16, 6, seed=4), *entries, toy.rows(16)

    def everything(*args):
      def loss(*args):
        out = jumprelu.autoencode(*args, Estimator(0.5, "rectangle", True))
        return sum(
          jnp.sum(each * w) for each, w in zip(out, weights, strict=True)
        ), out

      return jax.grad(loss, (0, 1, 2, 3, 4), has_aux=True)(*args)

    want = on(None, everything, *args)
    with dispatch.kernels("pallas", interpret=True):
      got = on(shape, everything, *args)
    toy.assert_trees_close(got, want, rtol=1e-5, atol=2e-4)


if __name__ == "__main__":
  absltest.main()
