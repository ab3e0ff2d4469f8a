"""experiments/dark_matter.py and universality.py on a small language model."""

import json
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest

from saejax.data import harvest
from saejax.sae import activations, files, initial
from tests import shared
from tests.experiments import corpora, script

MODEL = "models/babyllama-105"
EDITS = ("sae", "sae_linear", "sae_nonlinear", "zero")


class DarkMatterTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    made = tempfile.TemporaryDirectory()
    cls.addClassCleanup(made.cleanup)
    cls.place = pathlib.Path(made.name)
    cls.settings = {
      "model": str(shared.path(MODEL)),
      "corpus": str(corpora.wikitext(cls.place)),
      "context": 64,
      "rows": 2000,
      "held_out_fraction": 0.3,
      "held_out_rows": 1000,
      "bucket_rows": 1024,
      "shard_rows": 512,
      "chunk_rows": 256,
      "dir": str(cls.place / "stores"),
    }
    cls.stores = {
      layer: harvest.harvest(harvest.HarvestConfig(layer=layer, **cls.settings))
      for layer in (1, 2)
    }
    site = {layer: pair[0].meta["site"] for layer, pair in cls.stores.items()}
    for name, layer, n in (("a", 1, 64), ("wide", 1, 128), ("b", 2, 48)):
      sae = initial.init(
        jax.random.key(n), d=128, n=n, activation=activations.TopK(6)
      )
      files.save(sae, cls.place / name, about={"site": site[layer]})

  def setUp(self):
    super().setUp()
    self.run_dir = pathlib.Path(self.create_tempdir().full_path) / "run"

  def run_script(self, command, **flags):
    flags = {"run_dir": self.run_dir} | flags
    return script.run(command, *(f"--{k}={v}" for k, v in flags.items()))

  def dark_matter(self, **flags):
    train, held_out = self.stores[1]
    flags = {
      "sae": f"{self.place / 'a'},{self.place / 'wide'}",
      "store": train.path,
      "held_out": held_out.path,
      "resamples": 50,
    } | flags
    return self.run_script("dark_matter", **flags)

  def test_the_error_of_two_saes_over_their_widths(self):
    code, out, err = self.dark_matter(pursuit="false")
    self.assertEqual(code, 0, err)
    self.assertIn("linear share", out)
    found = json.loads((self.run_dir / "results.json").read_text())
    self.assertEqual([p["n"] for p in found["points"]], [64, 128])
    for point in found["points"]:
      self.assertLess(point["nonlinear_fvu"], point["fvu"])
      low, high = point["linear_share_interval"]
      self.assertBetween(point["linear_share"], low, high)
      self.assertEqual(point["l0"], 6)
      self.assertIn("token", point["baselines"])
      self.assertNotIn("pursuit", point)
    self.assertIn("nonlinear_slope", found["scaling"])
    self.assertLen(found["scaling"]["per_token"], 1)
    self.assertIn("Over widths", (self.run_dir / "report.html").read_text())

  def test_pursuit_and_parts_in_the_model_on_documents_of_one_store(self):
    model = {
      f"harvest.{k}": self.settings[k]
      for k in ("model", "corpus", "context", "held_out_fraction")
    }
    code, out, err = self.dark_matter(
      held_out="",
      sae=self.place / "a",
      tokens=400,
      **{"harvest.layer": 1},
      **model,
    )
    self.assertEqual(code, 0, err)
    self.assertIn("pursuit lowers", out)
    found = json.loads((self.run_dir / "results.json").read_text())
    data, point = found["data"], found["points"][0]
    total = data["fitted_rows"] + data["evaluated_rows"]
    self.assertEqual(total, self.stores[1][0].rows)
    self.assertGreater(point["pursuit_fvu_gain"], 0)
    cost = {
      k: v["ce_increase"] for k, v in point["model"].items() if k in EDITS
    }
    self.assertGreater(cost["sae"], cost["sae_linear"])
    self.assertGreater(cost["zero"], cost["sae_linear"])
    page = (self.run_dir / "report.html").read_text()
    self.assertIn("Gradient pursuit", page)
    self.assertIn("In the model", page)

  def test_matched_latents_of_two_layers(self):
    code, out, err = self.run_script(
      "universality",
      a=self.place / "a",
      b=self.place / "b",
      store_a=self.stores[1][0].path,
      store_b=self.stores[2][0].path,
      shuffles=20,
      correlation=0,
    )
    self.assertEqual(code, 0, err)
    self.assertIn("all pairs: 48 pairs", out)
    found = json.loads((self.run_dir / "results.json").read_text())
    self.assertEqual(found["data"]["alignment"], "equal tokens")
    self.assertEqual(found["data"]["b"]["n"], 48)
    every = found["points"][0]
    self.assertBetween(every["rsa"]["shuffled"]["p"], 1 / 21 - 1e-9, 1)
    self.assertBetween(every["svcca"]["score"], 0, 1)
    self.assertIn("Matched latents", (self.run_dir / "report.html").read_text())

  def test_an_sae_and_itself_are_the_same(self):
    code, _, err = self.run_script(
      "universality",
      a=self.place / "a",
      b=self.place / "a",
      store_a=self.stores[1][0].path,
      matching="hungarian",
      shuffles=20,
    )
    self.assertEqual(code, 0, err)
    every = json.loads((self.run_dir / "results.json").read_text())["points"][0]
    np.testing.assert_allclose(every["correlation"], 1, atol=1e-5)
    for kind in ("svcca", "rsa"):
      self.assertAlmostEqual(every[kind]["score"], 1, places=5)
      self.assertAlmostEqual(every[kind]["shuffled"]["p"], 1 / 21)

  def test_bad_input_is_refused_by_name_and_nothing_is_written(self):
    for command, flags, message in (
      (self.dark_matter, {"sae": self.place / "none"}, "--sae="),
      (self.dark_matter, {"sae": self.place / "b"}, "must be of the site of"),
      (self.dark_matter, {"store": self.place}, "must be a store"),
      (
        self.dark_matter,
        {"held_out": self.stores[1][0].path},
        "--held_out=",
      ),
      (self.dark_matter, {"compat": "x"}, "--compat=x: must be reference"),
      (self.dark_matter, {"tokens": 100}, "--harvest.layer="),
      (self.dark_matter, {"resamples": 0}, "--resamples=0: must be at least 1"),
    ):
      code, _, err = command(**flags)
      self.assertEqual(code, 2, err)
      self.assertIn(message, err)
    given = {"a": self.place / "a", "b": self.place / "b"}
    given |= {"store_a": self.stores[1][0].path}
    for flags, message in (
      ({}, "must be of the site of the SAE"),
      ({"b": self.place / "none"}, "--b="),
      ({"matching": "best"}, "--matching=best: must be one of many_to_one"),
      ({"store_a": ""}, "--store_a=: must not be empty"),
      ({"share": 2}, "--share=2.0: must be in [0, 1]"),
    ):
      code, _, err = self.run_script("universality", **given | flags)
      self.assertEqual(code, 2, err)
      self.assertIn(message, err)
    self.assertFalse((self.run_dir / "results.json").exists())


if __name__ == "__main__":
  absltest.main()
