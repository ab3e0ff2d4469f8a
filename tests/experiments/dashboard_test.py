"""experiments/dashboard.py: a page of latents of a small language model."""

import json
import pathlib
import re

import jax
from absl.testing import absltest

from saejax.data import harvest
from saejax.report import feature_page
from saejax.sae import activations, files, initial
from tests import shared
from tests.experiments import corpora, script

MODEL = "models/babyllama-105"


class DashboardTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    texts = corpora.stories(self.folder)
    self.model = str(shared.path(MODEL))
    _, self.store = harvest.harvest(
      harvest.HarvestConfig(
        model=self.model,
        layer=1,
        corpus=str(texts),
        context=32,
        rows=400,
        held_out_fraction=0.5,
        held_out_rows=300,
        bucket_rows=256,
        shard_rows=128,
        chunk_rows=64,
        dir=str(self.folder / "stores"),
      )
    )
    self.written = self.folder / "page.html"

  def save(self, d=128, about=None):
    sae = initial.init(
      jax.random.key(0), d=d, n=64, activation=activations.TopK(4)
    )
    files.save(sae, self.folder / "sae", about=about or {})

  def run_script(self, **more):
    flags = {
      "sae": self.folder / "sae",
      "store": self.store.path,
      "write": self.written,
    }
    flags |= more
    return script.run("dashboard", *(f"--{k}={v}" for k, v in flags.items()))

  def data(self):
    text = self.written.read_text()
    return json.loads(
      re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    )

  def test_a_page_with_the_tokens_that_latents_favour(self):
    self.save(about={"site": self.store.meta["site"]})
    code, out, err = self.run_script(model=self.model, random=7)
    self.assertEqual(code, 0, err)
    self.assertIn(f"7 latents: {self.written}", out)
    found = self.data()
    feature_page.validate(found)
    self.assertEqual(found["rows"], self.store.rows)
    self.assertEqual(found["store"]["split"], "held_out")
    for card in found["latents"]:
      self.assertGreater(card["count"], 0)
      self.assertLen(card["promoted"], 10)
      self.assertGreater(
        card["promoted"][0]["logit"], card["suppressed"][0]["logit"]
      )
      for e in card["examples"]:
        text = "".join(e["tokens"])
        self.assertRegex(text, "dogs|park|ball|day|little|play|went")

  def test_bad_input_is_refused_by_name_and_nothing_is_written(self):
    self.save()
    for flags, message in (
      ({"latents": "3,64"}, "--latents=64: must be in [0, 64)"),
      ({"store": self.folder}, "must be a store"),
      ({"sae": self.folder / "none"}, "none"),
      ({"random": 0}, "--random=0: must be at least 1"),
    ):
      code, _, err = self.run_script(**flags)
      self.assertEqual(code, 2, err)
      self.assertIn(message, err)
    self.save(d=64)
    code, _, err = self.run_script()
    self.assertEqual(code, 2)
    self.assertIn("width of the SAE, 64, not 128", err)
    self.save(about={"site": {"layer": 2, "point": "resid_post"}})
    code, _, err = self.run_script()
    self.assertEqual(code, 2)
    self.assertIn("must be of the site of the SAE, site layer 2", err)
    self.assertFalse(self.written.exists())


if __name__ == "__main__":
  absltest.main()
