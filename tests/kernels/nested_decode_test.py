"""Tests of kernels/nested_decode on one device."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.kernels.nested_decode import op, ref
from tests import compiled

SHAPES = [  # b, k, d, n: one entry, unrolled groups of 8 ragged and full
  (1, 1, 1, 1),
  (5, 3, 7, 11),
  (31, 8, 5, 40),
  (16, 19, 12, 6),
]


def problem(b, k, d, n, seed=0):
  """Values with zeros and negatives, indices that repeat within rows."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  values = normal(b, k)
  values[rng.random(values.shape) < 0.2] = 0
  indices = rng.integers(0, n, (b, k), dtype=np.int32)
  weights = rng.random(k).astype(np.float32)
  return tuple(
    map(jnp.asarray, (values, indices, normal(n, d), normal(b, d), weights))
  )


def gradients(squares, values, indices, W, residual, weights, g):
  """Of the sum of rows weighted by g."""
  loss = lambda v, W, r: jnp.sum(squares(v, indices, W, r, weights) * g)
  return jax.jit(jax.grad(loss, (0, 1, 2)))(values, W, residual)


class SquaresTest(parameterized.TestCase):
  @parameterized.parameters(*SHAPES)
  def test_equals_the_cumulative_sum(self, *shape):
    args = problem(*shape)
    got, want = jax.jit(op.squares)(*args), jax.jit(ref.squares)(*args)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
    g = jnp.asarray(np.random.default_rng(9).standard_normal(shape[0]))
    g = g.astype(jnp.float32)
    got, want = (
      gradients(op.squares, *args, g),
      gradients(ref.squares, *args, g),
    )
    # A value of 0 is padding: absent, and so without a gradient.
    want = (jnp.where(args[0] != 0, want[0], 0), *want[1:])
    for name, a, b in zip(("values", "W", "residual"), got, want, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4, err_msg=name)

  def test_gradients_are_finite_differences(self):
    values, indices, W, residual, weights = problem(5, 4, 6, 3)
    g = jnp.ones((5,))
    got = gradients(op.squares, values, indices, W, residual, weights, g)

    def loss(values, W, residual):
      """The definition in float64."""
      x = np.array(residual, np.float64)
      total = 0.0
      for t in range(4):
        x -= values[:, t, None] * W[np.asarray(indices)[:, t]]
        total += float(weights[t]) * np.sum(x**2)
      return total

    point = [np.asarray(a, np.float64) for a in (values, W, residual)]
    for at, gradient in enumerate(got):
      for where in np.ndindex(*point[at].shape):
        if at == 0 and point[0][where] == 0:
          continue
        sides = []
        for h in (1e-5, -1e-5):
          moved = [a.copy() for a in point]
          moved[at][where] += h
          sides.append(loss(*moved))
        slope = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(gradient[where], slope, rtol=2e-4, atol=2e-4)

  def test_gradient_formulas_of_equal_weights(self):
    b, k, d, n = 6, 5, 4, 9
    values, indices, W, residual, _ = problem(b, k, d, n)
    values = jnp.abs(values) + 0.1
    s = 2 / (b * k * d)
    weights = jnp.full((k,), s / 2)
    d_values, d_W, d_r = gradients(
      op.squares, values, indices, W, residual, weights, jnp.ones((b,))
    )
    steps = np.asarray(values)[..., None] * np.asarray(W)[np.asarray(indices)]
    r = np.cumsum(steps, axis=1) - np.asarray(residual)[:, None]
    S = s * np.cumsum(r[:, ::-1], axis=1)[:, ::-1]
    rows = np.asarray(W)[np.asarray(indices)]
    np.testing.assert_allclose(d_values, np.sum(S * rows, axis=-1), atol=1e-5)
    want = np.zeros((n, d))
    np.add.at(want, np.asarray(indices), np.asarray(values)[..., None] * S)
    np.testing.assert_allclose(d_W, want, atol=1e-5)
    # The bias enters through the residual, with the other sign.
    np.testing.assert_allclose(-d_r.sum(0), s * r.sum((0, 1)), atol=1e-5)

  def test_order_of_the_entries_matters_but_for_the_last_prefix(self):
    values, indices, W, residual, _ = problem(7, 6, 5, 20)
    turned = values[:, ::-1], indices[:, ::-1]
    last = jnp.zeros((6,)).at[-1].set(1)
    np.testing.assert_allclose(
      op.squares(values, indices, W, residual, last),
      op.squares(*turned, W, residual, last),
      rtol=1e-5,
    )
    every = jnp.ones((6,))
    one = op.squares(values, indices, W, residual, every)
    two = op.squares(*turned, W, residual, every)
    self.assertGreater(np.abs(one - two).min(), 1e-3)

  def test_takes_any_batch_shape(self):
    values, indices, W, residual, weights = problem(6, 3, 4, 10)
    flat = op.squares(values, indices, W, residual, weights)
    for batch in ((2, 3), (1, 6, 1)):
      got = op.squares(
        values.reshape(*batch, 3),
        indices.reshape(*batch, 3),
        W,
        residual.reshape(*batch, 4),
        weights,
      )
      np.testing.assert_array_equal(got, flat.reshape(batch))

  def test_refuses_weights_of_another_length(self):
    values, indices, W, residual, _ = problem(6, 3, 4, 10)
    with self.assertRaisesRegex(ValueError, r"\[k=3\]"):
      op.squares(values, indices, W, residual, jnp.ones((4,)))

  @parameterized.parameters(np.nan, np.inf)
  def test_padding_contributes_nothing_whatever_its_row_holds(self, bad):
    values, indices, W, residual, weights = problem(9, 5, 4, 10)
    indices = jnp.where(values == 0, 0, jnp.maximum(indices, 1))
    g = jnp.ones((9,))
    poisoned = W.at[0].set(bad)
    for f in (op.squares, lambda *a: gradients(op.squares, *a, g)):
      jax.tree.map(
        np.testing.assert_array_equal,
        f(values, indices, poisoned, residual, weights),
        f(values, indices, W, residual, weights),
      )

  def test_vmapped_over_members_equals_each(self):
    members = [problem(7, 3, 4, 9, seed=i) for i in range(3)]
    stack = jax.tree.map(lambda *a: jnp.stack(a), *members)
    f = lambda *a: gradients(op.squares, *a, jnp.ones((7,)))
    got = jax.vmap(f)(*stack)
    want = jax.tree.map(lambda *a: jnp.stack(a), *[f(*m) for m in members])
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
      got,
      want,
    )

  def test_bfloat16_rounds_rows_and_nothing_else(self):
    values, indices, W, residual, weights = problem(8, 5, 4, 10)
    rounded = W.astype(jnp.bfloat16).astype(jnp.float32)
    squares = lambda *a: op.squares(*a, "bfloat16")
    args = (values, indices, W, residual, weights)
    np.testing.assert_allclose(
      squares(*args),
      ref.squares(values, indices, rounded, residual, weights),
      rtol=1e-5,
    )
    for a in gradients(squares, *args, jnp.ones((8,))):
      self.assertEqual(a.dtype, jnp.float32)

  def test_memory_does_not_grow_with_the_ranks(self):
    b, d, n = 128, 64, 256

    def program(k):
      shapes = [(b, k), (b, k), (n, d), (b, d), (k,)]
      types = [jnp.float32, jnp.int32] + 3 * [jnp.float32]
      loss = lambda v, i, W, r, c: jnp.sum(op.squares(v, i, W, r, c))
      structs = map(jax.ShapeDtypeStruct, shapes, types)
      return jax.jit(jax.grad(loss, (0, 2, 3))).lower(*structs).compile()

    few, many = program(8), program(64)
    grown = (
      many.memory_analysis().temp_size_in_bytes
      - few.memory_analysis().temp_size_in_bytes
    )
    # Arrays of entries alone grow: a few of [b, k], none of [b, k, d].
    self.assertLess(grown, 8 * 4 * b * (64 - 8))
    sizes = {int(np.prod(s)) for s in compiled.arrays(many.as_text())}
    self.assertLess(max(sizes), b * 64 * d)


if __name__ == "__main__":
  absltest.main()
