"""Tests of saejax.sae.ensembles."""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.sae import activations, decoders, ensembles, files, prep
from saejax.sae.context import Batch
from tests import toy

N, D = 24, 8
ACTIVATIONS = {
  "relu": activations.ReLU(),
  "topk": activations.TopK(4),
  "abstopk": activations.TopK(4, score="magnitude", keep="signed"),
  "norm": activations.TopK(4, score="norm"),
  "thresholds": activations.Threshold(jnp.abs(toy.rows(N, seed=5))),
  "threshold": activations.Threshold(jnp.float32(0.3), keep="signed"),
}


def member(seed, activation=activations.TopK(4), **kwargs):
  return toy.sae(seed=seed, activation=activation, **kwargs)


class BlockTopKTest(parameterized.TestCase):
  @parameterized.parameters(("value", "relu"), ("magnitude", "signed"))
  def test_it_is_topk_in_each_block(self, score, keep):
    a = toy.rows(7, 3, 12)
    each = activations.TopK(4, score=score, keep=keep)
    want = toy.activate(each, a).reshape(7, 36)
    blocks = activations.BlockTopK(4, 3, score=score, keep=keep)
    np.testing.assert_array_equal(toy.activate(blocks, a.reshape(7, 36)), want)
    self.assertEqual(blocks.row_k, 12)

  def test_a_smaller_k_of_a_member_drops_ranks(self):
    a = toy.rows(7, 36)
    blocks = activations.BlockTopK(4, 3)
    np.testing.assert_array_equal(
      toy.activate(blocks, a, k=jnp.asarray(2)),
      toy.activate(blocks.with_k(2), a),
    )

  @parameterized.parameters((4, 5), (13, 3))
  def test_refuses_blocks_that_do_not_fit(self, k, blocks):
    with self.assertRaisesRegex(ValueError, "in n=36"):
      toy.activate(activations.BlockTopK(k, blocks), toy.rows(2, 36))


class FlattenTest(parameterized.TestCase):
  def mean(self, saes, weights, x):
    return sum(
      w * toy.reconstruct(sae, x) for w, sae in zip(weights, saes, strict=True)
    )

  @parameterized.product(kind=[*ACTIVATIONS], pre_bias=[False, True])
  def test_it_reconstructs_the_mean_of_its_members(self, kind, pre_bias):
    prep_ = toy.affine(D)
    saes = [
      member(i, ACTIVATIONS[kind], pre_bias=pre_bias, prep_=prep_)
      for i in range(3)
    ]
    x = 3 * toy.rows(20, D) + 3 * toy.rows(D, seed=2)
    flat = ensembles.flatten(saes)
    self.assertEqual(flat.n, 3 * N)
    np.testing.assert_allclose(
      toy.reconstruct(flat, x), self.mean(saes, [1 / 3] * 3, x), atol=1e-5
    )
    np.testing.assert_allclose(  # alpha is in the latents
      flat.W_dec, np.concatenate([sae.W_dec for sae in saes])
    )

  def test_weights_and_preps_of_their_own(self):
    saes = [member(i, prep_=toy.affine(D, seed=i)) for i in range(2)]
    x = toy.rows(20, D)
    flat = ensembles.flatten(saes, [0.25, 2.0])
    np.testing.assert_allclose(
      toy.reconstruct(flat, x),
      self.mean(saes, [0.25, 2.0], x),
      rtol=1e-4,
      atol=1e-4,
    )

  def test_a_normalised_decoder_and_a_row_norm_all_share(self):
    saes = [
      member(i, prep_=prep.RowLayerNorm(), decoder=decoders.Normalised)
      for i in range(2)
    ]
    x = toy.rows(20, D)
    np.testing.assert_allclose(
      ensembles.flatten(saes).reconstruct(x),
      self.mean(saes, [0.5, 0.5], x),
      atol=1e-5,
    )

  def test_one_member_is_itself(self):
    sae, x = member(0), toy.rows(20, D)
    flat = ensembles.flatten([sae])
    np.testing.assert_allclose(
      toy.encode(flat, x), toy.encode(sae, x), atol=1e-5
    )

  def test_error_of_the_mean_is_at_most_the_mean_of_errors(self):
    saes = [member(i) for i in range(4)]
    x = toy.rows(50, D)
    error = lambda sae: float(jnp.mean((x - toy.reconstruct(sae, x)) ** 2))
    self.assertLess(
      error(ensembles.flatten(saes)), np.mean([error(sae) for sae in saes])
    )

  def test_sparse_latents_are_the_dense_ones(self):
    flat = ensembles.flatten([member(i) for i in range(3)])
    x = toy.rows(20, D)
    np.testing.assert_allclose(
      flat.encode_sparse(x).dense(), toy.encode(flat, x), atol=1e-6
    )

  def test_refuses_members_that_cannot_be_one(self):
    for saes, rule in (
      ([member(0), member(1, n=30)], "equal structure"),
      ([member(0), member(1, activations.TopK(5))], "equal structure"),
      ([member(0), member(1, activations.ReLU())], "equal structure"),
    ):
      with self.assertRaisesRegex(errors.InputError, rule):
        ensembles.flatten(saes)
    blocks = member(0).replace(activation=activations.BlockTopK(2, 2))
    with self.assertRaisesRegex(
      NotImplementedError, "BlockTopK does not define"
    ):
      ensembles.flatten([blocks])
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
      with self.assertRaisesRegex(errors.InputError, "positive numbers"):
        ensembles.flatten([member(0), member(1)], weights)


class ResidualTest(parameterized.TestCase):
  def boosted(self, inner=None):
    """A last stage behind two others, each with a prep of its own."""
    stages = [member(i, prep_=toy.affine(D, seed=i)) for i in range(2)]
    inner = toy.affine(D, seed=7) if inner is None else inner
    return member(2, prep_=ensembles.Residual(tuple(stages), inner))

  def by_hand(self, sae, x):
    """Stage by stage: r_j = x - sum_{l<j} g_l(r_l)."""
    total = jnp.zeros_like(x)
    for stage in ensembles.stages_of(sae):
      total += stage.reconstruct(x - total)
    return total

  @parameterized.parameters(prep.Identity(), prep.RowLayerNorm())
  def test_the_last_sae_is_the_sum_of_all_stages(self, inner):
    sae, x = self.boosted(inner), toy.rows(20, D)
    np.testing.assert_allclose(
      toy.reconstruct(sae, x), self.by_hand(sae, x), rtol=1e-5, atol=1e-5
    )

  def test_undo_inverts_apply(self):
    sae, x = self.boosted(), toy.rows(4, 5, D)
    frame, statistics = sae.prep.apply(x)
    np.testing.assert_allclose(sae.prep.undo(frame, statistics), x, atol=1e-5)
    with self.assertRaisesRegex(ValueError, "use reconstruct"):
      sae.decode(toy.encode(sae, x))

  def test_no_gradient_reaches_earlier_stages(self):
    sae, x = self.boosted(), toy.rows(20, D)

    def loss(sae, x):
      out = sae.forward(x)
      raw = sae.prep.undo(out.x_hat, out.statistics)
      return jnp.sum((x - raw) ** 2) + jnp.sum((out.target - out.x_hat) ** 2)

    gradients = jax.grad(loss)(sae, x)
    for leaf in jax.tree.leaves(gradients.prep):
      np.testing.assert_array_equal(leaf, 0)
    self.assertGreater(float(jnp.abs(gradients.W_dec).max()), 0)

  def test_latents_are_found_in_turn_and_decoders_concatenate(self):
    sae, x = self.boosted(), toy.rows(20, D)
    z = ensembles.encode_stages(sae, x)
    W, b = ensembles.decoder_of_stages(sae)
    self.assertEqual(z.shape, (20, 3 * N))
    np.testing.assert_allclose(
      z @ W + b, toy.reconstruct(sae, x), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(z[:, 2 * N :], toy.encode(sae, x), atol=1e-5)

  def test_conditions_reach_the_stages(self):
    seen = []

    class Watching(prep.Identity):
      def apply(self, x, cond=None):
        seen.append(cond)
        return super().apply(x, cond)

    stage = member(0, prep_=Watching())
    sae = member(1, prep_=ensembles.Residual((stage,), Watching()))
    sae.reconstruct(Batch(x=toy.rows(4, D), cond=jnp.arange(4)))
    self.assertLen(seen, 2)
    for cond in seen:
      np.testing.assert_array_equal(cond, jnp.arange(4))

  def test_the_scale_is_that_of_what_is_left(self):
    x = 5 * toy.rows(500, D) + 3
    one = ensembles.residual((), x)
    stage = member(0, prep_=one.inner)
    two = ensembles.residual((stage,), x)
    for made in (one, two):
      framed, _ = made.apply(x)
      np.testing.assert_allclose(framed.mean(axis=0), 0, atol=1e-4)
      np.testing.assert_allclose((framed**2).sum(axis=1).mean(), 1, rtol=1e-4)
    self.assertNotAlmostEqual(float(one.inner.scale), float(two.inner.scale))

  def test_refuses_stages_of_another_width(self):
    with self.assertRaisesRegex(errors.InputError, "stages=6.*the width 8"):
      ensembles.residual((toy.sae(d=6),), toy.rows(9, 8))

  def test_an_ensemble_is_saved_whole(self):
    sae, x = self.boosted(), toy.rows(20, D)
    with tempfile.TemporaryDirectory() as folder:
      files.save(sae, pathlib.Path(folder, "sae"))
      read = files.load(pathlib.Path(folder, "sae"))
    toy.assert_trees_equal(read, sae)
    np.testing.assert_array_equal(
      toy.reconstruct(read, x), toy.reconstruct(sae, x)
    )
    self.assertLen(ensembles.stages_of(read), 3)

  @parameterized.parameters(0, 1)
  def test_ensembles_without_stages_or_within_an_ensemble_are_saved(self, deep):
    sae = member(3, prep_=ensembles.Residual((self.boosted(),) * deep))
    with tempfile.TemporaryDirectory() as folder:
      files.save(sae, pathlib.Path(folder, "sae"))
      toy.assert_trees_equal(files.load(pathlib.Path(folder, "sae")), sae)


if __name__ == "__main__":
  absltest.main()
