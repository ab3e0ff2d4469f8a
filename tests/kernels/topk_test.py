"""Tests of kernels/topk on one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.kernels.topk import op, xla
from tests import compiled

SHAPES = [  # rows, n, k: k = 1, k = n, ragged blocks, no blocks
  (3, 1000, 1),
  (2, 33, 33),
  (3, 1003, 7),
  (2, 64, 5),
  (1, 4099, 32),
]

# Operation by operation, each would be compiled on its own.
top_k = jax.jit(op.top_k, static_argnums=(1, 2))
xla_top_k = jax.jit(xla.top_k, static_argnames=("k", "block"))
xla_top_k_set = jax.jit(xla.top_k_set, static_argnames=("k", "block"))


def stable_top_k(a, k):
  """By a stable sort in NumPy: equal numbers lowest index first."""
  indices = np.argsort(-np.asarray(a, np.float64), axis=-1, kind="stable")
  indices = indices[..., :k]
  return np.take_along_axis(np.asarray(a), indices, axis=-1), indices


def numbers(kind, rows, n):
  rng = np.random.default_rng(n)
  a = rng.standard_normal((rows, n)).astype(np.float32)
  if kind == "ties":
    a = np.round(a) + 0.0  # no -0.0, which NumPy takes for 0.0
  if kind == "equal":
    a = np.full_like(a, -2.0)
  if kind == "infinite":
    a[rng.random(a.shape) < 0.5] = -np.inf
    a[:, n // 2] = np.inf
  if kind == "one block":  # every winner beside its neighbours, losers tied
    a = np.zeros_like(a)
    a[:, -40:] = np.arange(min(n, 40)) + 1
  return a


class TopKTest(parameterized.TestCase):
  @parameterized.product(
    shape=SHAPES,
    kind=["normal", "ties", "equal", "infinite", "one block"],
    implementation=["ref", "xla", None],
  )
  def test_equals_a_stable_sort_in_values_and_indices(
    self, shape, kind, implementation
  ):
    rows, n, k = shape
    a = numbers(kind, rows, n)
    values, indices = top_k(jnp.asarray(a), k, implementation)
    want_values, want_indices = stable_top_k(a, k)
    np.testing.assert_array_equal(indices, want_indices)
    np.testing.assert_array_equal(values, want_values)

  @parameterized.product(
    shape=SHAPES,
    kind=["normal", "ties", "equal", "infinite", "one block"],
  )
  def test_the_form_for_gpus_equals_a_stable_sort(self, shape, kind):
    rows, n, k = shape
    a = numbers(kind, rows, n)
    found = jax.jit(xla._by_counting, static_argnames="k")(jnp.asarray(a), k=k)
    want_values, want_indices = stable_top_k(a, k)
    np.testing.assert_array_equal(found[1], want_indices)
    np.testing.assert_array_equal(found[0], want_values)

  @parameterized.product(
    shape=SHAPES,
    kind=["normal", "ties", "equal", "infinite", "one block"],
  )
  def test_the_set_is_that_of_a_stable_sort_in_index_order(self, shape, kind):
    rows, n, k = shape
    a = numbers(kind, rows, n)
    values, indices = xla_top_k_set(jnp.asarray(a), k=k)
    _, want = stable_top_k(a, k)
    np.testing.assert_array_equal(indices, np.sort(want, axis=-1))
    np.testing.assert_array_equal(
      values, np.take_along_axis(a, np.asarray(indices), axis=-1)
    )

  def test_the_set_holds_a_nan_above_everything(self):
    a = jnp.asarray(numbers("normal", 3, 1000)).at[1, 700].set(jnp.nan)
    _, indices = xla_top_k_set(a, k=4)
    self.assertIn(700, np.asarray(indices[1]))

  @parameterized.parameters(2, 3, 8, 32, 64)
  def test_every_block_size_gives_the_same(self, block):
    a = jnp.asarray(numbers("ties", 4, 1003))
    np.testing.assert_array_equal(
      xla_top_k_set(a, k=9, block=block)[1],
      np.sort(stable_top_k(a, 9)[1], axis=-1),
    )
    got = xla_top_k(a, k=9, block=block)
    for g, w in zip(got, stable_top_k(a, 9), strict=True):
      np.testing.assert_array_equal(g, w)

  @parameterized.parameters(((),), ((4,),), ((2, 3),), ((2, 1, 3),))
  def test_takes_any_batch_shape(self, batch):
    a = jax.random.normal(jax.random.key(0), (*batch, 200))
    values, indices = jax.jit(partial(op.top_k, k=6))(a)
    self.assertEqual(values.shape, (*batch, 6))
    np.testing.assert_array_equal(indices, stable_top_k(a, 6)[1])

  def test_bfloat16_is_selected_exactly_and_stays_bfloat16(self):
    a = jnp.asarray(numbers("normal", 3, 1003), jnp.bfloat16)
    values, indices = op.top_k(a, 7)
    want_values, want_indices = stable_top_k(a.astype(jnp.float32), 7)
    self.assertEqual(values.dtype, jnp.bfloat16)
    np.testing.assert_array_equal(indices, want_indices)
    np.testing.assert_array_equal(values.astype(jnp.float32), want_values)

  def test_a_nan_is_never_hidden(self):
    a = jnp.zeros((2, 1000)).at[1, 777].set(jnp.nan)
    values, _ = op.top_k(a, 3)
    self.assertFalse(jnp.isnan(values[0]).any())
    self.assertTrue(jnp.isnan(values[1]).any())

  @parameterized.parameters(0, 3, 7)
  def test_a_nan_is_found_anywhere_in_its_block(self, place):
    a = jnp.asarray(numbers("normal", 3, 1000)).at[:, 8 + place].set(jnp.nan)
    _, indices = jax.jit(partial(op.top_k, k=10))(a)
    np.testing.assert_array_equal(indices[:, 0], 8 + place)

  def test_gradient_reaches_the_chosen_entries_alone(self):
    a = jnp.asarray(numbers("normal", 3, 500))
    weights = jnp.arange(1.0, 6.0)
    loss = lambda a: jnp.sum(op.top_k(a, 5)[0] * weights[None])
    _, indices = stable_top_k(a, 5)
    want = np.zeros(a.shape, np.float32)
    np.put_along_axis(want, indices, np.asarray(weights)[None], axis=-1)
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(a), want)
    each = jax.vmap(jax.grad(lambda row: loss(row[None])))(a)
    np.testing.assert_array_equal(each, want)

  def test_tangent_is_that_of_the_chosen_entries(self):
    a, t = (jax.random.normal(jax.random.key(i), (2, 300)) for i in (0, 1))
    (_, indices), (moved, _) = jax.jvp(lambda a: op.top_k(a, 4), (a,), (t,))
    np.testing.assert_array_equal(
      moved, np.take_along_axis(np.asarray(t), np.asarray(indices), -1)
    )

  @parameterized.parameters(0, -1, 11)
  def test_refuses_k_outside_one_to_n(self, k):
    with self.assertRaisesRegex(ValueError, rf"\[1, n=10\], got {k}"):
      op.top_k(jnp.zeros((2, 10)), k)


class CompiledTest(parameterized.TestCase):
  @parameterized.parameters(jnp.float32, jnp.bfloat16)
  def test_holds_no_full_sort(self, dtype):
    a = jax.ShapeDtypeStruct((64, 4096), dtype)
    select = jax.jit(lambda a: op.top_k(a, 16))
    sorted_ = compiled.sorts(select.lower(a).compile().as_text())
    self.assertEmpty([s for s in sorted_ if s[-1] > 16])

  def test_a_full_sort_would_be_seen(self):
    a = jax.ShapeDtypeStruct((64, 4096), jnp.float32)
    select = jax.jit(lambda a: jnp.sort(a, axis=-1)[:, -16:])
    text = select.lower(a).compile().as_text()
    self.assertIn((64, 4096), compiled.sorts(text))


if __name__ == "__main__":
  absltest.main()
