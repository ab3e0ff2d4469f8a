"""saejax/features/overview.py: which latents are shown, and their cards."""

from unittest import mock

import numpy as np
from absl.testing import absltest

from saejax import errors
from saejax.data.store import create
from saejax.data.text import neighbours
from saejax.features import activity, cards, overview, summary
from saejax.sae import activations
from tests import toy
from tests.features.cards_test import Words


def total(*counts):
  empty = summary.of_entries(np.arange(len(counts)), 100, summary.NONE, 1)
  return summary.dataclasses.replace(empty, count=np.array(counts))


class PicksTest(absltest.TestCase):
  def test_the_ends_come_first_and_the_dead_never(self):
    W = np.eye(6, dtype=np.float32)
    found = overview.picks(total(5, 0, 9, 2, 0, 3), W)
    self.assertEqual(
      [(p.latent, p.why) for p in found[:2]],
      [(2, overview.MOST_DENSE), (3, overview.LEAST_DENSE)],
    )
    self.assertEqual({p.why for p in found[2:]}, {overview.RANDOM})
    self.assertEqual(sorted(p.latent for p in found), [0, 2, 3, 5])
    again = overview.picks(total(5, 0, 9, 2, 0, 3), W)
    self.assertEqual(found, again)
    self.assertLen(overview.picks(total(*[3] * 50), np.eye(50), count=10), 10)
    self.assertEmpty(overview.picks(total(0, 0), W[:2]))

  def test_the_most_split_is_the_parent_with_most_children(self):
    rng = np.random.default_rng(0)
    parents = np.eye(8)[:4]
    near = lambda i, s: parents[i] + s * rng.standard_normal(8)
    W = np.stack([near(0, 0.1), near(2, 0.3), near(2, 0.01), near(2, 0.2)])
    W = np.concatenate([W, np.eye(8)[5:8], 5 * near(2, 0.25)[None]])
    live = np.array([0, 1, 2, 3, 4, 5, 6])  # the last child is dead
    found = overview.most_split(W, live, parents)
    self.assertEqual((found.latent, found.parent), (2, 2))
    self.assertEqual(sorted(found.family), [1, 2, 3])
    alone = overview.most_split(W, live)
    self.assertIsNone(alone.parent)
    self.assertEqual(sorted(alone.family), [1, 2, 3])
    self.assertEqual(alone.family[0], alone.latent)

  def test_without_a_shared_direction_there_is_none(self):
    self.assertIsNone(overview.most_split(np.eye(4), np.arange(4)))
    self.assertIsNone(overview.most_split(np.eye(4), np.arange(4), np.eye(4)))


class MakeTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.x = np.random.default_rng(0).standard_normal((300, 8))
    self.sae = toy.sae(activation=activations.TopK(3))

  def store(self):
    columns = {"x": self.x.astype(np.float32), "tok": np.arange(300)}
    columns |= {"doc": np.arange(300) // 50, "pos": np.arange(300) % 50}
    sizes = {"bucket_rows": 128, "shard_rows": 64, "chunk_rows": 32}
    folder = f"{self.create_tempdir().full_path}/s"
    return create.write_store(folder, columns, **sizes)

  def test_cards_are_those_of_named_latents_in_one_pass(self):
    store, W = self.store(), np.asarray(self.sae.W_dec)
    sizes = cards.Sizes(top=4, each=0, before=5, after=2, near=3)
    words = mock.patch.object(neighbours, "tokenizer_of", lambda _: Words())
    with words, mock.patch.object(store, "read", wraps=store.read) as read:
      found = overview.make(
        self.sae, store, lambda t: overview.picks(t, W), sizes=sizes
      )
      rows = sum(b - a for (a, b, *_), _ in read.call_args_list)
      self.assertEqual(rows, 300)
      latents = sorted(c["latent"] for c in found["latents"])
      named = cards.make(
        self.sae, store, activity.Choice(latents=latents), sizes=sizes
      )
    by = {card["latent"]: card for card in found["latents"]}
    for card in named["latents"]:
      mine = dict(by[card["latent"]])
      mine.pop("pick")
      self.assertEqual(mine, {name: card[name] for name in mine})
    dense = found["latents"][0]["count"]
    self.assertEqual(dense, max(c["count"] for c in found["latents"]))
    self.assertEqual((found["rows"], found["n"]), (300, self.sae.n))

  def test_a_store_without_text_is_refused(self):
    with self.assertRaisesRegex(errors.InputError, "must have a tokenizer"):
      overview.make(self.sae, self.store(), lambda _: [])


if __name__ == "__main__":
  absltest.main()
