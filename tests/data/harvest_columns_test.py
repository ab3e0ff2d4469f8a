"""Columns of a harvest of text beside x: several layers, drawn layers, scores."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import models
from saejax.data import harvest, spec
from saejax.errors import InputError
from saejax.models import taps
from tests import shared
from tests.data import harvest_model_test, tiny

SCALES = np.asarray([1, 5, 40], np.float32)


def layered(function=tiny.forward):
  """Three layers: the rows of `tiny`, each at another scale."""

  def forward(ids, mask):
    return function(ids, mask)[:, :, None] * SCALES[:, None]

  return dataclasses.replace(tiny.source(forward), sites=3)


class LayersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.corpus = tiny.corpus(self.folder / "corpus")

  def harvest(self, name="stores", source=None, **changes):
    changes = {"layers": (0, 2, 5), **changes}
    config = tiny.config(self.corpus, self.folder / name, **changes)
    return harvest.harvest(config, source=source or layered())

  def test_x_has_every_layer_of_a_token(self):
    single = harvest.harvest(
      tiny.config(self.corpus, self.folder / "single"), source=tiny.source()
    )
    for store, one in zip(self.harvest(), single, strict=True):
      self.assertEqual(store.columns["x"].axes, ("site", "d"))
      all_, alone = tiny.everything(store), tiny.everything(one)
      for name in ("doc", "pos", "tok"):
        np.testing.assert_array_equal(all_[name], alone[name])
      want = alone["x"][:, None] * SCALES[:, None]
      np.testing.assert_allclose(all_["x"], want, rtol=1e-6)

  def test_one_layer_is_drawn_for_each_token_with_equal_chances(self):
    for store in self.harvest(cond="layer"):
      self.assertEqual(store.columns["x"].shape, (tiny.D,))
      all_ = store.whole(*store.columns)
      share = np.bincount(all_["cond"], minlength=3) / store.rows
      self.assertLess(
        np.abs(share - 1 / 3).max(), 3 * (0.25 / store.rows) ** 0.5
      )
      want = tiny.vectors()[all_["tok"]] * SCALES[all_["cond"], None]
      np.testing.assert_allclose(all_["x"][:, 1:], want[:, 1:], rtol=1e-6)
      # Independent of the token.
      common = all_["tok"] == np.bincount(all_["tok"]).argmax()
      self.assertLen(np.unique(all_["cond"][common]), 3)

  def test_outliers_are_those_of_their_own_layer(self):
    # Layers differ in scale by more than the multiple: one median for all would
    # drop a layer, and keep the outliers of another.
    for cond in ("", "layer"):
      train, _ = self.harvest(f"stores-{cond}", cond=cond, rows=100_000)
      alone, _ = harvest.harvest(
        tiny.config(self.corpus, self.folder / "single", rows=100_000),
        source=tiny.source(),
      )
      self.assertEqual(train.rows, alone.rows)
      self.assertEqual(train.stats["dropped"], alone.stats["dropped"])

  def test_the_draw_has_its_seed_and_a_stopped_harvest_the_same_bytes(self):
    self.harvest("whole", cond="layer")
    calls = 0

    def stops(ids, mask):
      nonlocal calls
      calls += 1
      if calls == 17:
        raise KeyboardInterrupt
      return tiny.forward(ids, mask)

    with self.assertRaises(KeyboardInterrupt):
      self.harvest("stopped", layered(stops), cond="layer")
    self.harvest("stopped", cond="layer")
    self.assertEqual(
      tiny.files(self.folder / "stopped"), tiny.files(self.folder / "whole")
    )
    other, _ = self.harvest("other", cond="layer", seed=1)
    first, _ = self.harvest("whole", cond="layer")
    of_token = lambda store: {
      (doc, pos): cond
      for doc, pos, cond in zip(
        *store.whole("doc", "pos", "cond").values(), strict=True
      )
    }
    one, two = of_token(first), of_token(other)
    self.assertLess(np.mean([one[t] == two[t] for t in one if t in two]), 0.5)

  @parameterized.parameters(
    ({"layers": (1, 1)}, "harvest.layers=.*different"),
    ({"layers": (-1, 1)}, "harvest.layers=.*from 0"),
    ({"layers": (), "cond": "layer"}, "harvest.cond=layer.*harvest.layers"),
    ({"cond": "depth"}, "harvest.cond=depth.*position, layer or empty"),
    ({"score": "length"}, "harvest.score=length.*entropy or empty"),
    ({"target_point": "mlp_out"}, "harvest.target_point=mlp_out.*empty"),
  )
  def test_settings_that_do_not_go_together(self, changes, message):
    with self.assertRaisesRegex(InputError, message):
      self.harvest(**changes)


class ModelTest(absltest.TestCase):
  def config(self, **changes):
    folder = pathlib.Path(self.create_tempdir().full_path)
    values = {
      "model": str(shared.path("models/babyllama-105")),
      "corpus": str(tiny.corpus(folder / "corpus", 20)),
      "dir": str(folder / "stores"),
      "dtype": "float32",
      "rows": 500,
      "held_out_rows": 200,
      "held_out_fraction": 0.3,
      "context": 32,
      "bucket_rows": 512,
      "shard_rows": 256,
      "chunk_rows": 64,
      "outlier_multiple": 0.0,
    }
    return harvest.HarvestConfig(**(values | changes))

  def test_layers_and_entropy_are_those_of_a_forward(self):
    config = self.config(layers=(1, 3), score="entropy")
    _, found = harvest.harvest(config)
    self.assertEqual(found.trained, ("x", "score"))
    self.assertEqual(found.meta["site"]["layer"], [1, 3])
    self.assertLen(found.meta["site"]["module"], 2)
    rows = found.whole(*found.columns)
    source = spec.subject_of(config)
    first = rows["doc"] == rows["doc"][0]
    first &= rows["pos"] < config.context - len(source.prefix)
    ids = np.asarray([[*source.prefix, *rows["tok"][first]]], np.int32)
    model = models.load(config.model)
    mask = np.ones(ids.shape, bool)
    sites = [f"layers.{layer}.resid_post" for layer in config.layers]
    read = taps.read(model, ids, mask, sites)
    skip = len(source.prefix)
    for i, site in enumerate(sites):
      np.testing.assert_allclose(
        rows["x"][first][:, i], read[site][0, skip:], atol=1e-4
      )
    p = jax.nn.softmax(model(ids, mask)[0, skip:])
    want = -jnp.sum(p * jnp.log(p), axis=-1)
    np.testing.assert_allclose(rows["score"][first], want, atol=1e-3)
    self.assertGreater(float(want.std()), 0.1)

  def test_a_layer_that_the_model_lacks_and_an_encoder_are_refused(self):
    with self.assertRaisesRegex(InputError, "harvest.layers=9.*has 5"):
      harvest.harvest(self.config(layers=(1, 9)))
    minilm = harvest_model_test.minilm()
    with self.assertRaisesRegex(InputError, "harvest.score=entropy.*encoder"):
      harvest.harvest(self.config(model=minilm, score="entropy"))


if __name__ == "__main__":
  absltest.main()
