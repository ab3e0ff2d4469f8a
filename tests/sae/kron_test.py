"""Tests of saejax.sae.kron."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations, folding, kron
from tests import toy

D = 6


def sae(h=3, m=2, q=4, k=5, shared=False, seed=0):
  """A KronSAE whose biases are not 0."""
  drawn = kron.init(
    jax.random.key(seed),
    n=h * m * q,
    d=D,
    sizes=(h, m, q),
    shared=shared,
    activation=activations.TopK(k),
  )
  encoder = drawn.encoder.replace(b_P=0.1 * toy.rows(h, m, seed=3))
  if not shared:
    encoder = encoder.replace(b_Q=0.1 * toy.rows(h, q, seed=4))
  return drawn.replace(encoder=encoder)


class MandTest(parameterized.TestCase):
  def test_is_the_root_of_the_product_and_exact_where_equal(self):
    p, s = jnp.abs(toy.rows(1000)), jnp.abs(toy.rows(1000, seed=2))
    got = jax.jit(kron.mand)(p, s)
    np.testing.assert_allclose(got, np.sqrt(np.float64(p) * s), rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(kron.mand)(p, p), p)

  @parameterized.parameters(
    (2.0, 8.0, 1.0, 0.25),
    (3.0, 3.0, 0.5, 0.5),
    (1e-8, 4.0, 10.0, 2.5e-5),
    (0.0, 4.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0),
  )
  def test_partials_are_bounded_and_0_where_it_is_off(self, p, s, dp, ds):
    got = jax.grad(kron.mand, (0, 1))(jnp.float32(p), jnp.float32(s))
    np.testing.assert_allclose(got, (dp, ds), rtol=1e-6)


class EncoderTest(parameterized.TestCase):
  def units(self, model, x):
    e = model.encoder
    relu = lambda W, b: np.maximum(
      np.einsum("bd,hud->bhu", x, np.asarray(W)) + np.asarray(b), 0
    )
    return relu(e.P, e.b_P), relu(e.Q, e.b_Q)

  def test_latents_of_a_head_are_the_root_of_a_kronecker_product(self):
    model, x = sae(), 3 * toy.rows(20, D)
    p, s = self.units(model, x)
    ctx = toy.context(x)
    a = np.asarray(model.encoder(x, ctx).a).reshape(20, 3, 8)
    for row in range(20):
      for head in range(3):
        np.testing.assert_allclose(
          a[row, head],
          np.sqrt(np.kron(p[row, head], s[row, head])),
          atol=1e-5,
        )

  def test_a_latent_is_on_where_both_of_its_units_are(self):
    model, x = sae(), 3 * toy.rows(50, D)
    p, s = self.units(model, x)
    both = (p[..., :, None] > 0) & (s[..., None, :] > 0)
    a = np.asarray(model.encoder(x, toy.context(x)).a)
    np.testing.assert_array_equal(a > 0, both.reshape(50, -1))
    self.assertGreater((a == 0).mean(), 0.3)

  @parameterized.parameters(0.25, 4.0)
  def test_scales_with_its_input_without_biases(self, scale):
    model, x = sae(), toy.rows(20, D)
    encoder = model.encoder
    encoder = encoder.replace(b_P=0 * encoder.b_P, b_Q=0 * encoder.b_Q)
    a = lambda x: encoder(x, toy.context(x)).a
    np.testing.assert_allclose(a(scale * x), scale * a(x), rtol=1e-5)

  def test_weights_start_as_in_the_paper(self):
    model = kron.init(
      jax.random.key(0),
      n=800,
      d=50,
      sizes=(100, 2, 4),
      activation=activations.TopK(2),
    )
    P, Q = model.encoder.P, model.encoder.Q
    for W in (P, Q):
      self.assertAlmostEqual(float(jnp.std(W) * 1600**0.5), 1, delta=0.02)
    W = model.W_dec.reshape(100, 2, 4, 50)
    np.testing.assert_allclose(jnp.linalg.norm(W, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(
      W[7, 1, 2], toy.unit((P[7, 1] + Q[7, 2])[None])[0], rtol=1e-5
    )
    for leaf in (model.b_dec, model.encoder.b_P, model.encoder.b_Q):
      self.assertFalse(leaf.any())

  def test_counts_are_those_of_the_formulas(self):
    d, k, h, m, q = 64, 5, 16, 2, 4
    model = kron.init(
      jax.random.key(0),
      n=h * m * q,
      d=d,
      sizes=(h, m, q),
      activation=activations.TopK(k),
    )
    held = sum(leaf.size for leaf in jax.tree.leaves(model.encoder))
    parameters, multiplications = kron.cost(d, k, h, m, q)
    self.assertEqual(parameters, held)
    self.assertEqual(parameters, d * h * (m + q) + h * (m + q))
    self.assertEqual(multiplications, d * h * (m + q) + m * q * h + k * d)
    n = h * m * q
    whole = kron.affine_cost(d, k, n)
    self.assertEqual(whole, (d * n + n, d * n + k * d))
    self.assertLess(multiplications, whole.multiplications)

  def test_has_no_encoder_rows_and_cannot_be_folded(self):
    with self.assertRaisesRegex(NotImplementedError, "Kron is not an affine"):
      _ = sae().W_enc
    with self.assertRaisesRegex(NotImplementedError, "Kron is not an affine"):
      folding.fold_prep(sae().replace(prep=toy.affine(D)))


class SparseTest(parameterized.TestCase):
  @parameterized.parameters(
    (4, 2, 3, 5),
    (30, 1, 2, 7),  # fewer heads taken than there are
    (2, 9, 7, 4),  # only corners of each head
    (1, 16, 16, 12),
    (3, 2, 2, 12),  # everything
  )
  def test_corner_selection_is_full_top_k(self, h, m, q, k):
    p = jnp.maximum(toy.rows(40, h, m), 0) + 0.01
    s = jnp.maximum(toy.rows(40, h, q, seed=2), 0) + 0.01
    z = kron.mand(p[..., :, None], s[..., None, :]).reshape(40, -1)
    want = jax.lax.top_k(z, k)
    got = jax.jit(kron.corner_top_k, static_argnums=2)(p, s, k)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    np.testing.assert_allclose(
      np.take_along_axis(np.asarray(z), np.asarray(got[1]), 1), want[0], 1e-6
    )
    self.assertEqual([len(set(row)) for row in np.asarray(got[1])], [k] * 40)

  @parameterized.parameters((30, 1, 2, 7), (2, 9, 7, 4))
  def test_ties_of_corner_selection_fall_to_the_lowest_index(self, h, m, q, k):
    p = jnp.round(jnp.abs(toy.rows(40, h, m)))
    s = jnp.ones((40, h, q))
    z = kron.mand(p[..., :, None], s[..., None, :]).reshape(40, -1)
    want = jax.lax.top_k(z, k)
    got = kron.corner_top_k(p, s, k)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])

  @parameterized.parameters(False, True)
  def test_engines_give_the_same_values_and_gradients(self, shared):
    model = sae(m=2, q=2, shared=shared) if shared else sae()
    x = 3 * toy.rows(30, D)

    def loss(model, engine):
      out = model.forward(x, engine=engine)
      return jnp.mean((out.x_hat - x) ** 2), out.latents.dense()

    grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (sparse, z), (dense, z_dense) = grad(model, "sparse"), grad(model, "dense")
    np.testing.assert_allclose(z, z_dense, atol=1e-6)
    toy.assert_trees_close(sparse, dense, rtol=1e-4, atol=1e-5)
    self.assertTrue(model.has_sparse_engine)
    np.testing.assert_allclose(
      model.encode_sparse(x).dense(), z, rtol=1e-5, atol=1e-6
    )

  def test_latents_not_among_those_given_come_last(self):
    model, x = sae(), 3 * toy.rows(30, D)
    chosen = jnp.asarray([5, 0, 17, 23])
    ctx = toy.context(x)
    a = model.encoder(x, ctx).a
    among = jnp.zeros(a.shape[-1], bool).at[chosen].set(True)
    values, indices = model.encoder.largest(x, ctx, 5, among=among)
    np.testing.assert_array_equal(values[:, 4], -np.inf)
    self.assertTrue(among[indices[:, :4]].all())
    np.testing.assert_allclose(
      values[:, :4], -np.sort(-a[:, chosen], axis=1), atol=1e-6
    )


if __name__ == "__main__":
  absltest.main()
