"""Rules for rows: harvests record them, and edits keep what they drop."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import saejax
from saejax import models
from saejax.data import harvest
from saejax.data.text import rules, subject
from saejax.errors import InputError
from saejax.models import edits, ops, taps
from tests.data import tiny
from tests.models import gguf_files


class GuardedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.ids = jnp.asarray([[7, 1, 2, 3, 9], [1, 5, 7, 2, 0]])
    self.mask = jnp.asarray([[1] * 5, [0, 1, 1, 1, 1]], bool)
    h = np.random.default_rng(0).normal(0, 1, (2, 5, 4)).astype(np.float32)
    h[0, 3] = 1_000
    h[1, 4] = np.nan
    self.h = jnp.asarray(h)

  def edited(self, own, **settings):
    context = edits.Context(
      ids=self.ids,
      mask=self.mask,
      positions=ops.positions(self.mask),
      step=ops.positions(self.mask) - 5,
      sequence=jnp.arange(2),
    )
    edit = own.guarded(lambda h: h + 1, **settings)
    found, _ = jax.jit(edit)(self.h, context, None)
    found = np.asarray(found)
    changed = ~(found.view(np.uint32) == self.h.view(np.uint32)).all(-1)
    np.testing.assert_array_equal(
      found[changed], (np.asarray(self.h) + 1)[changed]
    )
    return changed.astype(int).tolist()

  @parameterized.parameters(
    # NaN is above every limit, and padding is no row.
    ({}, [[1, 1, 1, 1, 1], [0, 1, 1, 1, 0]]),
    ({"special": frozenset({7})}, [[0, 1, 1, 1, 1], [0, 1, 0, 1, 0]]),
    # Positions count real tokens.
    ({"first": 2}, [[0, 0, 1, 1, 1], [0, 0, 0, 1, 0]]),
    ({"drop_ids": (2, 3)}, [[1, 1, 0, 0, 1], [0, 1, 1, 0, 0]]),
    ({"limits": (100.0,)}, [[1, 1, 1, 0, 1], [0, 1, 1, 1, 0]]),
  )
  def test_edits_change_the_rows_that_no_rule_drops(self, own, want):
    self.assertEqual(self.edited(rules.RowRules(**own)), want)

  def test_the_site_chooses_the_limit(self):
    own = rules.RowRules(limits=(1e6, 0.0))
    self.assertEqual(self.edited(own, site=1), [[0] * 5] * 2)


def config(folder: str) -> harvest.HarvestConfig:
  """A harvest of the golden GGUF model on a corpus that is written here."""
  corpus = pathlib.Path(folder, "corpus")
  corpus.mkdir()
  words = ["the", "others", "in", "the", "end", "test", "the", "theme", "then"]
  rng = np.random.default_rng(0)
  for i in range(30):
    text = " ".join(rng.choice(words, 40))
    (corpus / f"{i}.txt").write_text(text)
  return harvest.HarvestConfig(
    model=str(gguf_files.GOLDEN),
    layer=1,
    corpus=str(corpus),
    dir=str(pathlib.Path(folder, "stores")),
    context=16,
    rows=400,
    held_out_rows=200,
    calibration_rows=200,
    forward_batch=4,
    dtype="float32",
    bucket_rows=256,
    shard_rows=128,
    chunk_rows=32,
  )


class HarvestTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.config = config(self.create_tempdir().full_path)

  def harvest(self, **changes):
    return harvest.harvest(
      harvest.HarvestConfig(**(vars(self.config) | changes))
    )

  def test_llama_has_no_row_of_a_first_position(self):
    for found in self.harvest():
      self.assertEqual(found.meta["drop_first"], 1)
      rows = tiny.everything(found)
      # No special tokens around windows: they start at multiples of 16.
      self.assertTrue((rows["pos"] % 16 > 0).all())
      self.assertGreater(found.stats["dropped"]["first"], 4)
      own = rules.from_store(found)
      self.assertEqual((own.first, own.special), (1, {1}))
      (limit,) = own.limits
      norms = np.linalg.norm(rows["x"], axis=-1)
      self.assertBetween(norms.max(), limit / 50, limit)

  def test_the_rule_can_be_set_and_is_part_of_the_stores_identity(self):
    train, _ = self.harvest(drop_first=0)
    own, _ = self.harvest()
    more, _ = self.harvest(drop_first=3)
    self.assertTrue((train.whole("pos")["pos"] % 16 == 0).any())
    self.assertEqual((more.whole("pos")["pos"] % 16).min(), 3)
    self.assertLen({train.path, own.path, more.path}, 3)
    same, _ = self.harvest(drop_first=1)
    self.assertEqual(same.path, own.path)

  def test_a_window_without_rows_is_refused(self):
    with self.assertRaisesRegex(
      InputError, "harvest.context=2: must be above 2"
    ):
      self.harvest(context=2, drop_first=2)
    with self.assertRaisesRegex(InputError, "harvest.drop_first=-2"):
      self.harvest(drop_first=-2)

  def test_an_edit_in_the_forward_pass_keeps_what_the_store_dropped(self):
    train, _ = self.harvest()
    own = rules.from_store(train)
    model = models.load(self.config.model)
    source = subject.at_site(self.config.model, 1, "resid_post")
    ids = jnp.asarray(source.encode("the others in the end")[None, :5])
    mask = jnp.ones(ids.shape, bool)
    site = "layers.1.resid_post"

    @jax.jit
    def logits(model, ids):
      edit = own.guarded(jnp.zeros_like)
      return taps.write(model, ids, mask, {site: edit})

    plain = np.asarray(jax.jit(lambda m, i: m(i, mask))(model, ids))
    found = np.asarray(logits(model, ids))
    # After the last layer, an edit of a token changes the logits there alone.
    same = np.isclose(found, plain, rtol=1e-5, atol=1e-5).all(-1)
    self.assertEqual(same.tolist(), [[True] + [False] * 4])

  def test_stores_of_other_rows_have_no_rules(self):
    x = np.ones((200, 4), np.float32)
    path = pathlib.Path(self.create_tempdir().full_path, "store")
    store = saejax.write_store(path, {"x": x})
    with self.assertRaisesRegex(InputError, "must be a harvest of text"):
      rules.from_store(store)


if __name__ == "__main__":
  absltest.main()
