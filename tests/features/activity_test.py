"""saejax/features/activity.py: histograms, samples and pairs, in one pass."""

import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.data.store import create, stored
from saejax.features import activity, observing
from saejax.sae import activations
from tests import toy


class ActivityTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.create_tempdir().full_path
    rng = np.random.default_rng(0)
    self.x = rng.standard_normal((500, 8)).astype(np.float32)
    self.x[7, 2] = np.nan
    self.store = create.write_store(
      f"{folder}/s",
      self.x,
      bucket_rows=128,
      shard_rows=64,
      chunk_rows=32,
      shuffle_seed=None,
    )

  def sae(self, activation):
    return toy.sae(activation=activation)

  def dense(self, activation):
    z = np.array(self.sae(activation).encode(self.x))
    z[7] = 0
    return z

  @parameterized.named_parameters(
    ("sparse", activations.TopK(3)),
    ("dense", activations.ReLU()),
    ("signed", activations.TopK(3, score="magnitude", keep="signed")),
  )
  def test_it_is_that_of_all_latents_at_once(self, activation):
    z = self.dense(activation)
    latents, edges = [2, 5, 11, 23], activity.edges()
    choice = activity.Choice(latents=latents, seed=3)
    for batch_rows in (48, 4096):
      got = observing.observe(
        self.sae(activation),
        self.store,
        choice,
        top=4,
        per_bin=2,
        batch_rows=batch_rows,
      )
      self.assertEqual(got.summary.rows, 499)
      np.testing.assert_array_equal(got.count, (z != 0).sum(axis=0))
      np.testing.assert_array_equal(got.summary.count, got.count[latents])
      np.testing.assert_array_equal(
        got.together, (z != 0).T[latents].astype(int) @ (z != 0)
      )
      for place, latent in enumerate(latents):
        positive = z[:, latent][z[:, latent] > 0]
        want, _ = np.histogram(positive, edges)
        np.testing.assert_array_equal(got.histogram[place], want)
        self.check_samples(got, place, z[:, latent])

  def check_samples(self, got, place, values):
    """The two smallest draws of each bin, and no others."""
    mine = got.samples.place == place
    found = set(got.samples.row[mine].tolist())
    want = set()
    (rows,) = np.nonzero(values > 0)
    bins, draws = activity.bins(values[rows]), activity.draws(3, rows)
    for b in np.unique(bins):
      inside = np.flatnonzero(bins == b)
      want |= set(rows[inside[np.argsort(draws[inside])[:2]]].tolist())
    self.assertEqual(found, want)
    np.testing.assert_allclose(
      got.samples.value[mine], values[got.samples.row[mine]], rtol=1e-5
    )

  def test_bins_end_at_their_edges_and_hold_what_is_outside(self):
    edges = activity.edges()
    middle = np.sqrt(edges[:-1] * edges[1:])
    np.testing.assert_array_equal(activity.bins(middle), range(activity.BINS))
    ends = np.array([1e-30, 1e30])
    self.assertEqual(activity.bins(ends).tolist(), [0, activity.BINS - 1])

  def test_draws_are_uniform_and_of_the_seed(self):
    rows = np.arange(20_000)
    share = activity.draws(0, rows) / 2.0**64
    self.assertLess(abs(share.mean() - 0.5), 0.01)
    self.assertLess(abs(np.corrcoef(share[1:], share[:-1])[0, 1]), 0.03)
    self.assertFalse((activity.draws(0, rows) == activity.draws(1, rows)).any())

  def test_random_latents_are_live_and_as_if_named_before(self):
    sae = self.sae(activations.TopK(1))
    bias = np.array(sae.encoder.b)
    bias[::3] = -1e6  # dead
    sae = sae.replace(encoder=sae.encoder.replace(b=bias))
    z = np.array(sae.encode(self.x))
    z[7] = 0
    live = np.flatnonzero((z != 0).any(axis=0))
    for batch_rows in (40, 4096):
      choice = activity.Choice(random=5, seed=2)
      got = observing.observe(sae, self.store, choice, batch_rows=batch_rows)
      order = [i for i in choice.order(24) if i in live]
      self.assertEqual(got.latents.tolist(), sorted(order[:5]))
      named = activity.Choice(latents=got.latents.tolist(), seed=2)
      want = observing.observe(sae, self.store, named)
      for name in ("histogram", "together", "count"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
      for name in ("count", "top_rows"):
        np.testing.assert_array_equal(
          getattr(got.summary, name), getattr(want.summary, name)
        )
      np.testing.assert_array_equal(got.samples.row, want.samples.row)
    many = observing.observe(sae, self.store, activity.Choice(random=99))
    self.assertEqual(many.latents.tolist(), live.tolist())

  def test_the_store_is_read_once(self):
    read = []
    old = stored.Store.read

    def counted(store, start, stop, column="x"):
      read.extend(range(start, stop))
      return old(store, start, stop, column)

    self.enter_context(
      absltest.mock.patch.object(stored.Store, "read", counted)
    )
    observing.observe(
      self.sae(activations.TopK(3)), self.store, activity.Choice(random=24)
    )
    self.assertEqual(read, list(range(500)))

  def test_unknown_latents_are_refused(self):
    sae = self.sae(activations.TopK(3))
    for latent in (-1, 24):
      with self.assertRaisesRegex(errors.InputError, f"latents={latent}: .*24"):
        observing.observe(sae, self.store, activity.Choice(latents=[1, latent]))


if __name__ == "__main__":
  absltest.main()
