"""saejax/features/cards.py: cards of latents, by brute force on a small store."""

from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.data.store import create
from saejax.data.text import neighbours
from saejax.features import activity, cards, observing
from saejax.report import feature_page
from saejax.sae import activations
from tests import toy


class Words:
  """A tokenizer whose words are the ids."""

  def decode(self, ids):
    return "".join(f" {i}" for i in ids)


class CardsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.x = rng.standard_normal((500, 8)).astype(np.float32)
    self.sae = toy.sae(activation=activations.TopK(3))
    self.enter_context(
      mock.patch.object(neighbours, "tokenizer_of", lambda store: Words())
    )

  def store(self, shuffle_seed):
    return create.write_store(
      f"{self.create_tempdir().full_path}/s",
      {
        "x": self.x,
        "doc": np.repeat(np.arange(10), 50),
        "pos": np.tile(np.arange(50), 10),
        "tok": np.arange(500),
      },
      bucket_rows=128,
      shard_rows=64,
      chunk_rows=32,
      shuffle_seed=shuffle_seed,
    )

  @parameterized.parameters(None, 0)
  def test_examples_have_the_latent_on_every_token(self, shuffle_seed):
    store = self.store(shuffle_seed)
    z = np.asarray(self.sae.encode(self.x))  # by token, whatever the order
    sizes = cards.Sizes(top=5, each=2, before=6, after=3)
    data = cards.make(
      self.sae, store, activity.Choice(latents=[4, 9]), sizes=sizes
    )
    feature_page.validate(data)
    self.assertEqual([c["latent"] for c in data["latents"]], [4, 9])
    for card in data["latents"]:
      mine = z[:, card["latent"]]
      top = [e["value"] for e in card["examples"] if e["group"] == "top"]
      np.testing.assert_allclose(top, np.sort(mine)[::-1][:5], rtol=1e-3)
      self.assertEqual(card["count"], (mine != 0).sum())
      self.assertAlmostEqual(card["density"], (mine != 0).mean())
      self.assertEqual(sum(card["histogram"]["counts"]), (mine > 0).sum())
      self.assertGreater(len(card["examples"]), 5)
      for e in card["examples"]:
        tokens = [int(t) for t in e["tokens"]]
        own = tokens[e["at"]]
        self.assertEqual((own // 50, own % 50), (e["doc"], e["pos"]))
        low, high = max(e["pos"] - 6, 0), min(e["pos"] + 3, 49)
        first = 50 * e["doc"]
        self.assertEqual(tokens, list(range(first + low, first + high + 1)))
        np.testing.assert_allclose(
          e["values"], mine[tokens], rtol=1e-3, atol=1e-6
        )
        self.assertAlmostEqual(e["values"][e["at"]], e["value"], places=5)

  def test_cuts_of_the_rows_change_nothing(self):
    store = self.store(1)
    choice = activity.Choice(random=6)
    whole = cards.make(self.sae, store, choice)
    for batch_rows in (17, 64):
      got = cards.make(self.sae, store, choice, batch_rows=batch_rows)
      self.assertEqual(got, whole)

  def test_quarters_hold_the_smallest_draws_of_their_range(self):
    store = self.store(None)
    choice = activity.Choice(latents=[4], seed=5)
    found = observing.observe(self.sae, store, choice, top=1, per_bin=3)
    (mine,) = cards.picked(found, 3)
    z = np.asarray(self.sae.encode(self.x))[:, 4]
    (rows,) = np.nonzero(z > 0)
    edges = activity.edges()
    bins = activity.bins(z[rows])
    share = np.sqrt(edges[bins] * edges[bins + 1]) / z.max()
    quarter = np.minimum(4 * share, 3).astype(int) + 1
    draws = activity.draws(5, rows)
    for q in range(1, 5):
      inside = np.flatnonzero(quarter == q)
      want = rows[inside[np.argsort(draws[inside])[:3]]].tolist()
      want = sorted(set(want) - {int(z.argmax())})
      self.assertEqual(sorted(r for g, _, r in mine if g == str(q)), want)
      # A bin is a factor of 2^(1/4), so that edges are near the quarters.
      for _, value, _ in (e for e in mine if e[0] == str(q)):
        self.assertBetween(value / z.max(), (q - 1) / 4 * 0.84, q / 4 * 1.19)

  def test_neighbours_are_those_of_all_cosines(self):
    W = np.asarray(toy.rows(30, 8))
    unit = np.asarray(toy.unit(W))
    W = np.where(np.arange(30)[:, None] == 7, 0, W)
    with mock.patch.object(cards, "_COSINES", 70):  # blocks of two
      got = cards.nearest(W, np.array([0, 3, 7, 29]), 4)
    self.assertEqual(got[2], [])
    for place, latent in ((0, 0), (1, 3), (3, 29)):
      cosine = unit @ unit[latent]
      cosine[[latent, 7]] = -2
      want = np.argsort(-cosine)[:4]
      self.assertEqual([o["latent"] for o in got[place]], want.tolist())
      np.testing.assert_allclose(
        [o["value"] for o in got[place]], cosine[want], atol=6e-4
      )

  def test_companions_are_active_on_the_same_rows(self):
    found = observing.observe(
      self.sae, self.store(None), activity.Choice(latents=[4, 9])
    )
    active = np.asarray(self.sae.encode(self.x)) != 0
    (mine, _) = cards.companions(found, 23)
    for other in mine:
      a, b = active[:, 4], active[:, other["latent"]]
      want = (a & b).sum() / np.sqrt(a.sum() * b.sum())
      self.assertAlmostEqual(other["value"], want, delta=6e-4)
    self.assertNotIn(4, [o["latent"] for o in mine])
    values = [o["value"] for o in mine]
    self.assertEqual(values, sorted(values, reverse=True))

  def test_a_dead_latent_has_a_card_without_examples(self):
    b = np.array(self.sae.encoder.b)
    b[4] = -1e6
    sae = self.sae.replace(encoder=self.sae.encoder.replace(b=b))
    data = cards.make(sae, self.store(None), activity.Choice(latents=[4]))
    feature_page.validate(data)
    (card,) = data["latents"]
    self.assertEqual((card["count"], card["max"]), (0, 0))
    self.assertEqual((card["examples"], card["together"]), ([], []))

  def test_a_store_of_another_width_is_refused(self):
    with self.assertRaisesRegex(errors.InputError, "store=.*SAE, 6, not 8"):
      cards.make(toy.sae(d=6), self.store(None), activity.Choice())


if __name__ == "__main__":
  absltest.main()
