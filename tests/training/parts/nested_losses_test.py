"""Tests of saejax.training.parts.nested_losses."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations
from saejax.sae.context import Batch
from saejax.training.parts import losses, nested_losses, rules
from saejax.training.recipe import Record
from tests import toy

B, D, N, K = 10, 8, 24, 6
TOPK = activations.TopK(K, ordered=True)


def record(sae, x=None, *, engine="dense", **around) -> Record:
  """A pass over normal rows."""
  x = toy.rows(B, D) if x is None else x
  forward = sae.forward(x, engine=engine, **around)
  return Record(forward=forward, sae=sae, stats={}, engine=engine)


def value_and_gradients(loss, sae, **around):
  """Of the sum of rows, in every weight."""
  total = lambda sae: jnp.sum(loss(record(sae, **around)))
  return jax.jit(jax.value_and_grad(total))(sae)


def close(got, want):
  toy.assert_trees_close(got, want, rtol=1e-4, atol=1e-4)


class PrefixesTest(parameterized.TestCase):
  @parameterized.parameters("dense", "sparse")
  def test_each_prefix_of_latents_is_the_direct_product(self, engine):
    sae = toy.sae(activation=TOPK)
    r = record(sae, engine=engine)
    z = r.forward.latents.dense()
    for at in range(4):
      lengths, weights = (0, 3, 11, N), [0.0] * 4
      weights[at] = 2.0
      m = lengths[at]
      x_hat = z[:, :m] @ sae.W_dec[:m] + sae.b_dec
      want = 2 * losses.squares(r.forward.target - x_hat)
      loss = nested_losses.prefixes(lengths, weights, order="latent")
      np.testing.assert_allclose(loss(r), want, rtol=1e-5)

  @parameterized.parameters("dense", "sparse")
  def test_each_prefix_of_values_is_topk_of_fewer(self, engine):
    sae = toy.sae(activation=TOPK)
    r = record(sae, engine=engine)
    for at, k in enumerate((1, 2, 5, K)):
      weights = [0.0] * 4
      weights[at] = 3.0
      few = sae.replace(activation=activations.TopK(k))
      want = 3 * losses.mse(record(few))
      loss = nested_losses.prefixes((1, 2, 5, K), weights, order="value")
      np.testing.assert_allclose(loss(r), want, rtol=1e-5)

  @parameterized.parameters("latent", "value")
  def test_sums_weighted_prefixes_and_engines_agree(self, order):
    sae = toy.sae(activation=TOPK)
    lengths = (2, 4, N) if order == "latent" else (2, 4, K)
    loss = nested_losses.prefixes(lengths, (1, 2, 3), order=order)
    one = [
      nested_losses.prefixes(lengths, w, order=order)(record(sae))
      for w in ((1, 0, 0), (0, 2, 0), (0, 0, 3))
    ]
    np.testing.assert_allclose(loss(record(sae)), sum(one), rtol=1e-5)
    dense = value_and_gradients(loss, sae, engine="dense")
    close(value_and_gradients(loss, sae, engine="sparse"), dense)

  def test_a_prefix_gives_no_gradient_to_the_latents_beyond_it(self):
    sae = toy.sae(activation=TOPK)
    m = 5
    loss = nested_losses.prefixes((m, N), (1.0, 0.0), order="latent")
    _, g = value_and_gradients(loss, sae)
    self.assertGreater(np.abs(g.decoder.W[:m]).max(), 0)
    np.testing.assert_array_equal(g.decoder.W[m:], 0)
    np.testing.assert_array_equal(g.encoder.W[m:], 0)

  def test_refuses_levels_for_members_of_several_k(self):
    loss = nested_losses.prefixes((1, K), (1, 1), order="value")
    with self.assertRaisesRegex(ValueError, "cannot be stacked"):
      loss(record(toy.sae(activation=TOPK), k=jnp.int32(2)))

  def test_measures_see_the_reconstruction_of_the_prefix(self):
    sae = toy.sae(activation=TOPK)
    r = record(sae)
    loss = nested_losses.prefixes(
      (3, N), (1.0, 1.0), order="latent", measure=losses.normalised_mse
    )
    plain = nested_losses.prefixes((3, N), (1.0, 1.0), order="latent")
    want = plain(r) / losses.variance(r.forward.target)
    np.testing.assert_allclose(loss(r), want, rtol=1e-5)

  def test_row_normalised_error_is_1_at_the_mean_of_the_data(self):
    r, m = record(toy.sae()), toy.rows(D, seed=9)
    for stats, mean in (({}, jnp.zeros(D)), ({rules.DATA_MEAN: m}, m)):
      x_hat = jnp.broadcast_to(mean, (B, D))
      at = r.replace(forward=r.forward.replace(x_hat=x_hat), stats=stats)
      np.testing.assert_allclose(
        nested_losses.row_normalised_mse(at), 1, rtol=1e-6
      )

  def test_rows_without_a_norm_or_a_spread_have_no_normalised_error(self):
    r = record(toy.sae(activation=TOPK), jnp.zeros((3, D)))
    self.assertGreater(jnp.min(losses.mse(r)), 0)
    np.testing.assert_array_equal(nested_losses.row_normalised_mse(r), 0)
    np.testing.assert_array_equal(nested_losses.ranks((1.0, 2.0))(r), 0)

  def test_refuses_sparse_latents_in_no_order(self):
    r = record(toy.sae(activation=activations.TopK(K)), engine="sparse")
    for loss in (
      nested_losses.prefixes((2, K), (1, 1), order="value"),
      nested_losses.ranks((1.0,) * K),
    ):
      with self.assertRaisesRegex(ValueError, "ordered=True"):
        loss(r)


class RanksTest(parameterized.TestCase):
  @parameterized.parameters("dense", "sparse")
  def test_equals_prefixes_of_values(self, engine):
    sae = toy.sae(activation=TOPK)
    weights = (1.0, 0.0, 2.0, 0.5, 0.0, 1.5)
    want = nested_losses.prefixes(
      range(1, K + 1), weights, order="value", measure=losses.normalised_mse
    )
    close(
      value_and_gradients(
        nested_losses.ranks(weights, normalise=False), sae, engine=engine
      ),
      value_and_gradients(want, sae),
    )
    close(
      nested_losses.ranks(weights)(record(sae)) * sum(weights),
      want(record(sae)),
    )

  @parameterized.parameters("dense", "sparse")
  def test_a_member_has_its_own_ranks(self, engine):
    sae = toy.sae(activation=TOPK)
    few = sae.replace(activation=activations.TopK(4, ordered=True))
    own = value_and_gradients(
      nested_losses.ranks((1.0,) * 4), few, engine=engine
    )
    shared = value_and_gradients(
      nested_losses.ranks((1.0,) * K), sae, engine=engine, k=jnp.int32(4)
    )
    close(jax.tree.leaves(shared), jax.tree.leaves(own))
    at_4 = nested_losses.at_k(K, losses.mse)(
      record(sae, engine=engine, k=jnp.int32(4))
    )
    np.testing.assert_allclose(at_4, losses.mse(record(few)), rtol=1e-5)

  def test_ragged_rows_are_padded(self):
    relu = toy.sae(activation=activations.ReLU())
    r = record(relu)
    self.assertLess(float(r.forward.latents.count().min()), 14)
    weights = [0.0] * 14
    weights[-1] = 1.0
    few = relu.replace(activation=activations.TopK(14))
    np.testing.assert_allclose(
      nested_losses.ranks(weights)(r),
      losses.normalised_mse(record(few)),
      rtol=1e-4,
    )


class SampledTest(parameterized.TestCase):
  def test_lengths_increase_to_n_and_are_not_shorter_than_asked(self):
    sampled = nested_losses.Sampled(count=6, shortest=3)
    keys = jax.random.split(jax.random.key(0), 200)
    lengths = np.asarray(jax.vmap(lambda k: sampled.draw(k, 20))(keys))
    self.assertTrue((np.diff(lengths) > 0).all())
    self.assertEqual((lengths.min(), lengths[:, -1].min()), (3, 20))

  def test_can_draw_every_length(self):
    lengths = nested_losses.Sampled(count=9).draw(jax.random.key(0), 9)
    np.testing.assert_array_equal(lengths, range(1, 10))
    np.testing.assert_array_equal(
      nested_losses.Sampled(count=1).draw(jax.random.key(0), 9), [9]
    )

  @parameterized.parameters((0.5, 1), (1.0, 1), (0.5, 4))
  def test_follows_the_law(self, power, shortest):
    n, draws = 16, 20_000
    sampled = nested_losses.Sampled(count=2, power=power, shortest=shortest)
    keys = jax.random.split(jax.random.key(1), draws)
    first = jax.jit(jax.vmap(lambda k: sampled.draw(k, n)))(keys)[:, 0]
    j = np.arange(0, n - shortest + 2)
    p = np.diff((j[:-1] / (n - shortest + 1)) ** power)
    share = np.bincount(first, minlength=n)[shortest:n] / draws
    np.testing.assert_allclose(share, p / p.sum(), atol=0.012)

  def test_prefers_short_prefixes_of_large_dictionaries(self):
    keys = jax.random.split(jax.random.key(2), 50)
    draw = jax.jit(jax.vmap(lambda k: nested_losses.Sampled().draw(k, 200_000)))
    lengths = np.asarray(draw(keys))[:, :-1]
    self.assertTrue((np.diff(lengths) > 0).all())
    # P(l <= n / 4) is 1/2 at power 1/2.
    self.assertBetween(np.mean(lengths <= 50_000), 0.42, 0.58)

  @parameterized.parameters(("mean", True), ("sum", False))
  def test_loss_is_that_of_the_drawn_prefixes(self, reduction, bias):
    sampled = nested_losses.Sampled(count=4)
    key = jax.random.key(5)
    drawn = sampled.draw(jax.random.fold_in(key, nested_losses.DRAW), N)
    lengths = [0] * bias + [int(m) for m in drawn]
    share = 1 / len(lengths) if reduction == "mean" else 1.0
    fixed = nested_losses.prefixes(
      lengths, [share] * len(lengths), order="latent"
    )
    loss = nested_losses.sampled_prefixes(
      sampled, reduction=reduction, bias=bias
    )
    sae = toy.sae(activation=TOPK)
    close(
      value_and_gradients(loss, sae, key=key),
      value_and_gradients(fixed, sae, key=key),
    )

  def test_asks_for_a_key(self):
    with self.assertRaisesRegex(ValueError, "key"):
      nested_losses.sampled_prefixes(nested_losses.Sampled(count=3))(
        record(toy.sae())
      )


class SortTest(absltest.TestCase):
  def test_energy_is_the_running_mean_square_of_what_a_latent_adds(self):
    z = jnp.asarray([[1.0, 0, 2], [3, 0, 0], [9, 9, 9]])
    W = jnp.asarray([[2.0, 0], [0, 1], [0, 3]])
    weight = jnp.asarray([1.0, 1.0, 0.0])
    x = jnp.zeros((3, 2))
    r = toy.record(z, x=x, W=W, batch=Batch(x=x, weight=weight))
    rule = nested_losses.SortByEnergy(0.75)
    stats = rule.update({nested_losses.ENERGY: jnp.asarray([4.0, 8, 0])}, r)
    want = 0.75 * np.asarray([4.0, 8, 0]) + 0.25 * np.asarray([20.0, 0, 18])
    np.testing.assert_allclose(stats[nested_losses.ENERGY], want, rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
