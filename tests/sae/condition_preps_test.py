"""Tests of saejax.sae.condition_preps."""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.sae import condition_preps, files, prep
from saejax.sae.context import Batch
from tests import toy

D, COUNT = 8, 5
COND = jnp.arange(20) % COUNT
X = (1 + COND)[:, None].astype(jnp.float32) * toy.rows(20, D) + 2


def random_like(part):
  """The part with random numbers in the place of its zeros."""
  leaves, structure = jax.tree.flatten(part)
  drawn = [0.3 * toy.rows(*a.shape, seed=i) for i, a in enumerate(leaves)]
  return jax.tree.unflatten(structure, drawn)


def modulations(continuous=False):
  key = jax.random.key(0)
  return {
    "sinusoidal": condition_preps.sinusoidal(
      key, D, width=16, continuous=continuous
    ),
    "table": condition_preps.table(D, COUNT, continuous=continuous),
  }


PREPS = {
  **{
    kind: condition_preps.Modulated(random_like(part), toy.affine(D))
    for kind, part in modulations().items()
  },
  "row_norm": condition_preps.Modulated(
    random_like(modulations()["table"]), prep.RowLayerNorm()
  ),
  "per_condition": condition_preps.per_condition(X, COND, COUNT, centred=True),
}


class ConditionedTest(parameterized.TestCase):
  @parameterized.parameters(*PREPS)
  def test_undo_inverts_apply(self, kind):
    frame, statistics = PREPS[kind].apply(X, COND)
    np.testing.assert_allclose(
      PREPS[kind].undo(frame, statistics), X, rtol=1e-5, atol=1e-5
    )
    self.assertGreater(float(jnp.abs(frame - X).max()), 0.1)

  @parameterized.parameters(*PREPS)
  def test_refuses_rows_without_conditions_and_undoing_without_memo(self, kind):
    with self.assertRaisesRegex(errors.InputError, "cond=None"):
      PREPS[kind].apply(X)
    with self.assertRaisesRegex(ValueError, "use reconstruct"):
      PREPS[kind].undo(X)

  @parameterized.parameters(*PREPS)
  def test_it_is_saved_with_its_sae(self, kind):
    sae = toy.sae(prep_=PREPS[kind])
    batch = Batch(x=X, cond=COND)
    with tempfile.TemporaryDirectory() as folder:
      files.save(sae, pathlib.Path(folder, "sae"))
      read = files.load(pathlib.Path(folder, "sae"))
    toy.assert_trees_equal(read, sae)
    np.testing.assert_array_equal(
      toy.reconstruct(read, batch), toy.reconstruct(sae, batch)
    )

  @parameterized.product(kind=["sinusoidal", "table"], continuous=[False, True])
  def test_a_new_modulation_changes_nothing(self, kind, continuous):
    part = condition_preps.Modulated(modulations(continuous)[kind])
    cond = COND / COUNT if continuous else COND
    frame, statistics = part.apply(X, cond)
    np.testing.assert_array_equal(frame, X)
    np.testing.assert_array_equal(part.undo(frame, statistics), X)
    plain, moved = toy.sae(), toy.sae(prep_=part)
    np.testing.assert_array_equal(
      toy.reconstruct(moved, Batch(x=X, cond=cond)), toy.reconstruct(plain, X)
    )

  @parameterized.parameters("sinusoidal", "table")
  def test_a_frozen_modulation_gets_no_gradient(self, kind):
    def loss(part):
      frame, statistics = part.apply(X, COND)
      return jnp.sum(part.undo(frame**2, statistics))

    part = PREPS[kind].replace(inner=prep.Identity())
    moved = jax.grad(loss)(part)
    still = jax.grad(loss)(part.replace(frozen=True))
    size = lambda tree: max(
      float(jnp.abs(a).max()) for a in jax.tree.leaves(tree)
    )
    self.assertGreater(size(moved), 0)
    self.assertEqual(size(still), 0)

  def test_the_embedding_tells_times_apart_and_counts_unit_time_in_steps(self):
    steps = condition_preps.sinusoidal(jax.random.key(0), D)
    times = condition_preps.sinusoidal(jax.random.key(0), D, continuous=True)
    e = steps.embed(jnp.arange(1000))
    self.assertEqual(e.shape, (1000, 256))
    np.testing.assert_allclose(
      times.embed(jnp.arange(1000) / 1000), e, atol=2e-3
    )
    gaps = np.linalg.norm(np.diff(np.asarray(e), axis=0), axis=-1)
    self.assertGreater(gaps.min(), 0.5)

  def test_standardised_rows_have_mean_0_and_deviation_1(self):
    x = np.random.default_rng(0).normal(size=(600, D)).astype(np.float32)
    cond = np.arange(600) % 3
    x = (1 + cond)[:, None] * x + 10 * cond[:, None]
    for continuous, given in ((False, cond), (True, (cond + 0.5) / 3)):
      table = condition_preps.standardised(
        x, jnp.asarray(given), 3, continuous=continuous
      )
      frame, _ = condition_preps.Modulated(table).apply(
        jnp.asarray(x, jnp.float32), jnp.asarray(given)
      )
      for c in range(3):
        own = np.asarray(frame)[cond == c]
        np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(own.std(axis=0), 1, rtol=1e-4)

  def test_a_condition_without_rows_takes_the_statistics_of_all(self):
    table = condition_preps.standardised(X, jnp.zeros(20, jnp.int32), 2)
    np.testing.assert_allclose(table.gamma[0], table.gamma[1], rtol=1e-5)
    with self.assertRaisesRegex(errors.InputError, "must vary"):
      condition_preps.standardised(jnp.ones((4, D)), jnp.arange(4), 4)

  def test_each_condition_gets_mean_norm_1(self):
    part = condition_preps.per_condition(X, COND, COUNT)
    frame, _ = part.apply(X, COND)
    for c in range(COUNT):
      norms = np.linalg.norm(np.asarray(frame)[np.asarray(COND) == c], axis=-1)
      np.testing.assert_allclose(norms.mean(), 1, rtol=1e-5)
    np.testing.assert_array_equal(part.centre, 0)
    same = condition_preps.scaled(part.scale, D)
    toy.assert_trees_equal(same, part)

  def test_refuses_scales_that_cannot_divide(self):
    for scale in ([1.0, 0.0], [1.0, np.nan], [[1.0]], [-1.0]):
      with self.assertRaisesRegex(errors.InputError, "one positive number"):
        condition_preps.scaled(np.asarray(scale), D)
    with self.assertRaisesRegex(errors.InputError, "cond=5: every condition"):
      condition_preps.per_condition(X, COND, COUNT + 1)

  def test_bins_cover_unit_time_equally(self):
    t = jnp.asarray([0.0, 0.019, 0.021, 0.5, 0.999, 1.0, 7.0, -1.0])
    np.testing.assert_array_equal(
      condition_preps.bins(t, 50, True), [0, 0, 1, 25, 49, 49, 49, 0]
    )


if __name__ == "__main__":
  absltest.main()
