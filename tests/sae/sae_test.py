"""Tests of saejax.sae.sae."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations, decoders, initial, prep
from saejax.sae.context import Batch
from saejax.sae.latents import SparseLatents
from tests import toy

KINDS = {
  "topk": {},
  "relu": {"activation": activations.ReLU()},
  "no_pre_bias": {"pre_bias": False},
  "normalised": {"decoder": decoders.Normalised},
  "prep": {"prep_": toy.affine(8)},
}


def by_hand(sae, x):
  """Latents and reconstruction in NumPy, rows one by one."""
  W_enc, b_enc, W_dec, b_dec = map(
    np.asarray, (sae.W_enc, sae.b_enc, sae.decoder.W, sae.b_dec)
  )
  centre, scale = 0.0, 1.0
  if isinstance(sae.prep, prep.Affine):
    centre, scale = np.asarray(sae.prep.centre), float(sae.prep.scale)
  if isinstance(sae.decoder, decoders.Normalised):
    W_dec = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
  frame = (np.asarray(x) - centre) / scale
  a = (frame - (b_dec if sae.pre_bias else 0)) @ W_enc.T + b_enc
  z = np.maximum(a, 0)
  if isinstance(sae.activation, activations.TopK):
    for row, kept in zip(z, np.argsort(-a, axis=1), strict=True):
      row[kept[sae.activation.k :]] = 0
  return z, (z @ W_dec + b_dec) * scale + centre


class EquationsTest(parameterized.TestCase):
  @parameterized.parameters(*KINDS)
  def test_encode_decode_and_reconstruct_follow_the_equations(self, kind):
    sae, x = toy.sae(**KINDS[kind]), toy.rows(11, 8)
    want_z, want_x_hat = by_hand(sae, x)

    @jax.jit
    def run(sae, x):
      z = sae.encode(x)
      return z, sae.decode(z), sae.reconstruct(x)

    z, decoded, reconstructed = run(sae, x)
    np.testing.assert_allclose(z, want_z, atol=2e-5)
    np.testing.assert_allclose(decoded, want_x_hat, atol=5e-5)
    np.testing.assert_allclose(reconstructed, want_x_hat, atol=5e-5)

  def test_weights_are_stored_latent_by_latent(self):
    sae = toy.sae(n=24, d=8)
    self.assertEqual(sae.W_enc.shape, (24, 8))
    self.assertEqual(sae.W_dec.shape, (24, 8))
    self.assertEqual((sae.n, sae.d), (24, 8))
    self.assertEqual((sae.b_enc.shape, sae.b_dec.shape), ((24,), (8,)))

  @parameterized.parameters("topk", "prep", "normalised")
  def test_sparse_latents_are_the_dense_ones(self, kind):
    sae, x = toy.sae(**KINDS[kind]), toy.rows(11, 8)

    @jax.jit
    def run(sae, x):
      sparse = sae.encode_sparse(x)
      return sparse, sparse.dense(), sae.encode(x), sae.decode(sparse)

    sparse, dense, z, decoded = run(sae, x)
    self.assertIsInstance(sparse, SparseLatents)
    self.assertEqual(sparse.values.shape, (11, 4))
    np.testing.assert_allclose(dense, z, atol=1e-6)
    np.testing.assert_allclose(decoded, sae.decode(z), atol=2e-5)

  def test_unbounded_rows_have_no_sparse_form(self):
    sae = toy.sae(activation=activations.ReLU())
    with self.assertRaisesRegex(ValueError, "ReLU does not bound"):
      sae.encode_sparse(toy.rows(2, 8))
    with self.assertRaisesRegex(ValueError, "ReLU does not bound"):
      sae.forward(toy.rows(2, 8), engine="sparse")

  def test_unknown_engine_is_refused(self):
    with self.assertRaisesRegex(ValueError, "auto, dense or sparse, got 'gpu'"):
      toy.sae().forward(toy.rows(2, 8), engine="gpu")

  @parameterized.parameters("dense", "sparse")
  def test_a_traced_k_drops_the_ranks_beyond_it(self, engine):
    sae, x = toy.sae(activation=activations.TopK(6)), toy.rows(11, 8)
    smaller = sae.replace(activation=activations.TopK(2))
    run = jax.jit(lambda s, k: s.forward(x, k=k, engine=engine).latents.dense())
    np.testing.assert_allclose(
      run(sae, jnp.asarray(2)), toy.encode(smaller, x), atol=1e-6
    )
    np.testing.assert_allclose(
      run(sae, jnp.asarray(6)), toy.encode(sae, x), atol=1e-6
    )

  def test_row_layer_norm_is_inverted_by_reconstruct_alone(self):
    sae = toy.sae(prep_=prep.RowLayerNorm())
    x = 4 * toy.rows(5, 8) + 3
    with self.assertRaisesRegex(ValueError, "use reconstruct"):
      sae.decode(toy.encode(sae, x))
    frame = np.asarray(x)
    mean = frame.mean(axis=1, keepdims=True)
    std = frame.std(axis=1, keepdims=True, ddof=1) + prep.STD_EPS
    in_frame = sae.decode_in_frame(toy.encode(sae, x))
    np.testing.assert_allclose(
      toy.reconstruct(sae, x), np.asarray(in_frame) * std + mean, atol=1e-4
    )

  def test_called_reconstructs_and_takes_lists(self):
    sae, x = toy.sae(), np.asarray(toy.rows(3, 8))
    want = toy.reconstruct(sae, x)
    np.testing.assert_allclose(sae(x.tolist()), want, atol=1e-6)
    z = np.asarray(toy.encode(sae, x))
    np.testing.assert_allclose(sae.decode(z.tolist()), want, atol=1e-6)

  def test_a_direction_is_what_a_unit_of_its_latent_adds(self):
    sae = toy.sae(prep_=toy.affine(8))
    z = 3 * np.abs(np.asarray(toy.rows(24)))
    for latent in (5, [5, 7]):
      for i in np.atleast_1d(latent):
        more = z + (np.arange(24) == i)
        change = sae.decode(more) - sae.decode(z)
        got = np.reshape(sae.direction(latent), (-1, 8))
        at = list(np.atleast_1d(latent)).index(i)
        np.testing.assert_allclose(got[at], change, atol=1e-5)
    got = jax.jit(lambda sae, i: sae.direction(i))(sae, 5)
    np.testing.assert_allclose(got, sae.direction(5), rtol=1e-6)
    self.assertAlmostEqual(float(jnp.linalg.norm(got)), 2.5, delta=1e-5)

  def test_refuses_a_direction_that_depends_on_the_row_or_is_not_there(self):
    with self.assertRaisesRegex(NotImplementedError, "RowLayerNorm depends on"):
      toy.sae(prep_=prep.RowLayerNorm()).direction(0)
    with self.assertRaisesRegex(IndexError, r"in \[0, n=24\), got 24"):
      toy.sae().direction(24)

  def test_refuses_another_width_while_tracing(self):
    sae = toy.sae()
    for run, shape, said in (
      (sae.encode, (3, 7), r"x must be \[..., 8\], got \[..., 7\]"),
      (sae.reconstruct, (8, 2), r"x must be \[..., 8\], got \[..., 2\]"),
      (sae.decode, (3, 8), r"z must be \[..., 24\], got \[..., 8\]"),
      (sae.encode, (), r"x must be \[..., 8\], got a scalar"),
    ):
      with self.assertRaisesRegex(ValueError, said):
        jax.eval_shape(run, jax.ShapeDtypeStruct(shape, jnp.float32))

  def test_a_transcoder_has_a_width_for_each_side(self):
    sae = initial.init(
      jax.random.key(0), d=8, n=24, activation=activations.TopK(4), d_target=6
    )
    self.assertEqual(sae.encode(toy.rows(3, 8)).shape, (3, 24))
    with self.assertRaisesRegex(ValueError, r"x must be \[..., 8\]"):
      sae.encode(toy.rows(3, 6))
    with self.assertRaisesRegex(ValueError, r"target must be \[..., 6\]"):
      sae(Batch(x=toy.rows(3, 8), target=toy.rows(3, 8)))

  def test_is_shown_in_a_few_lines_of_shapes_and_parts(self):
    shown = repr(toy.sae(prep_=toy.affine(8)))
    self.assertEqual(
      shown,
      "SAE(\n"
      "  prep=Affine(centre=float32[8], scale=float32[]),\n"
      "  encoder=Affine(W=float32[24,8], b=float32[24]),\n"
      "  activation=TopK(k=4, score='value', keep='relu', ordered=False),\n"
      "  decoder=Free(W=float32[24,8], b=float32[8]),\n"
      "  pre_bias=True, dtype='float32')",
    )


class TransformsTest(parameterized.TestCase):
  @parameterized.parameters("topk", "relu")
  def test_takes_any_batch_shape(self, kind):
    sae, x = toy.sae(**KINDS[kind]), toy.rows(12, 8)

    @jax.jit
    def run(sae, x):
      z = sae.encode(x)
      return z, sae.decode(z), sae.reconstruct(x)

    flat = run(sae, x)
    for batch in ((3, 4), (2, 1, 6)):
      for got, want in zip(run(sae, x.reshape(*batch, 8)), flat, strict=True):
        self.assertEqual(got.shape[:-1], batch)
        np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-5)
    for got, want in zip(run(sae, x[5]), flat, strict=True):
      np.testing.assert_allclose(got, want[5], atol=1e-5)
    for got, want in zip(jax.vmap(run, (None, 0))(sae, x), flat, strict=True):
      np.testing.assert_allclose(got, want, atol=1e-5)

  def test_vmap_over_members_equals_each(self):
    draw = functools.partial(
      initial.init, n=24, d=8, activation=activations.TopK(4)
    )
    keys = jax.random.split(jax.random.key(0), 3)
    x = toy.rows(5, 8)
    members = jax.vmap(draw)(keys)
    self.assertEqual(members.W_enc.shape, (3, 24, 8))
    got = jax.jit(jax.vmap(lambda s: s.reconstruct(x)))(members)
    one = jax.jit(lambda s: s.reconstruct(x))
    for i, key in enumerate(keys):
      np.testing.assert_allclose(got[i], one(draw(key)), atol=1e-5)

  @parameterized.parameters("topk", "no_pre_bias", "normalised", "prep")
  def test_gradients_are_an_sae_equal_in_both_engines(self, kind):
    sae, x = toy.sae(**KINDS[kind]), toy.rows(11, 8)

    def loss(sae, engine):
      out = sae.forward(x, engine=engine)
      return jnp.mean(jnp.sum((out.x - out.x_hat) ** 2, axis=-1))

    dense, sparse = (
      jax.jit(jax.grad(functools.partial(loss, engine=engine)))(sae)
      for engine in ("dense", "sparse")
    )
    toy.assert_trees_close(sparse, dense, rtol=1e-5, atol=2e-5)
    for leaf in (sparse.W_enc, sparse.b_enc, sparse.decoder.W, sparse.b_dec):
      self.assertGreater(float(jnp.abs(leaf).max()), 1e-3)

  def test_gradient_matches_finite_differences(self):
    # Directions whose kept latents do not change within the step.
    sae, x = toy.sae(), toy.rows(3, 8)
    loss = jax.jit(lambda s: jnp.sum((s.forward(x).x_hat - x) ** 2))
    g = jax.grad(loss)(sae)
    t = jax.tree.map(lambda w: toy.rows(*w.shape, seed=5), sae)
    h = 1e-3
    move = lambda h: jax.tree.map(lambda w, t: w + h * t, sae, t)
    numeric = (loss(move(h)) - loss(move(-h))) / (2 * h)
    along = sum(
      jnp.vdot(a, b)
      for a, b in zip(jax.tree.leaves(g), jax.tree.leaves(t), strict=True)
    )
    np.testing.assert_allclose(along, numeric, rtol=2e-2)


class DtypeTest(parameterized.TestCase):
  @parameterized.product(
    engine=["dense", "sparse"], given=[jnp.float32, jnp.bfloat16]
  )
  def test_matmuls_read_bfloat16_and_everything_else_is_float32(
    self, engine, given
  ):
    sae = toy.sae(dtype="bfloat16")
    x = toy.rows(11, 8).astype(given)
    out = jax.jit(lambda s, x: s.forward(x, engine=engine))(sae, x)
    for leaf in jax.tree.leaves((out.x, out.x_hat, out.W_dec, out.pre)):
      self.assertEqual(leaf.dtype, jnp.float32)
    self.assertEqual(out.latents.dense().dtype, jnp.float32)
    full = toy.sae().forward(x)
    np.testing.assert_allclose(out.x_hat, full.x_hat, atol=0.15)
    self.assertGreater(float(jnp.abs(out.x_hat - full.x_hat).max()), 1e-5)

  def products(self, program):
    """The products of a program, also of those that it calls."""
    for e in program.eqns:
      if e.primitive.name == "dot_general":
        yield e
      for inner in jax.extend.core.jaxprs_in_params(e.params):
        yield from self.products(inner)

  def test_operands_of_matmuls_are_of_the_dtype_asked_for(self):
    for dtype in ("float32", "bfloat16"):
      sae = toy.sae(dtype=dtype)
      program = jax.make_jaxpr(
        lambda x, sae=sae: sae.forward(x, engine="dense").x_hat
      )(toy.rows(3, 8))
      products = [*self.products(program.jaxpr)]
      self.assertLen(products, 2)  # encode, decode
      for product in products:
        self.assertEqual({str(v.aval.dtype) for v in product.invars}, {dtype})
        self.assertEqual(product.outvars[0].aval.dtype, jnp.float32)


if __name__ == "__main__":
  absltest.main()
