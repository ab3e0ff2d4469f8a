"""experiments/dashboard.py: a page of latents of a small language model."""

import json
import pathlib
import re

import jax
import numpy as np
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
      "dir": self.folder / "passes",
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

  def test_effects_agree_with_each_other_and_the_model(self):
    self.save(about={"site": self.store.meta["site"]})
    code, _out, err = self.run_script(
      model=self.model, random=3, ablation=True, attribution=True, quarter=1,
      top=3, batch_windows=7,
    )  # fmt: skip
    self.assertEqual(code, 0, err)
    self.assertRegex(err, r"two forward passes on 1\d windows and a forward")
    self.assertRegex(err, r"windows of ablation (1\d) of \1")
    found = self.data()
    feature_page.validate(found)
    self.assertEqual(found["effects"]["measure"], "loss")
    pairs = []
    for card in found["latents"]:
      for w in card["ablation"]["windows"]:
        pairs.append((w["change"], w["linear"]))
      rows = {e["row"]: e for e in card["examples"]}
      self.assertTrue(
        {w["row"] for w in card["ablation"]["windows"]} <= set(rows)
      )
      for e in rows.values():
        self.assertLen(e["attribution"], len(e["tokens"]))
    change, linear = np.array(pairs).T
    self.assertGreater(np.abs(change).max(), 1e-4)
    self.assertGreater(np.corrcoef(change, linear)[0, 1], 0.8)

  def test_prompts_without_and_with_a_store(self):
    self.save(
      about={
        "model": {"name": self.model},
        "site": {"name": "layers.1.resid_post"},
      }
    )
    text = "One day, little dogs went to the park."
    prompt = {"prompt": text, "strongest": 3}
    code, _, err = self.run_script(store="", **prompt)
    self.assertEqual(code, 0, err)
    found = self.data()
    feature_page.validate(found)
    self.assertEqual("".join(found["prompts"][0]["tokens"]), text)
    self.assertNotIn("store", found)
    self.assertIn("promoted", found["latents"][0])
    bare = found["prompts"]
    code, _out, err = self.run_script(**prompt)
    self.assertEqual(code, 0, err)
    found = self.data()
    feature_page.validate(found)
    self.assertEqual(found["prompts"], bare)
    self.assertEqual(found["rows"], self.store.rows)
    self.assertTrue(any(c["examples"] for c in found["latents"]))

  def test_processes_share_a_pass(self):
    self.save(about={"site": self.store.meta["site"]})
    code, out, err = self.run_script(random=7)
    self.assertEqual(code, 0, err)
    self.assertIn("7 latents", out)
    self.assertFalse((self.folder / "passes").exists())
    want, two = self.data(), {"random": 7, "processes": 2}
    self.written.unlink()
    code, out, err = self.run_script(process=1, **two)
    self.assertEqual(code, 0, err)
    self.assertIn("(other processes are not done)", out)
    self.assertFalse(self.written.exists())
    code, out, err = self.run_script(process=0, **two)
    self.assertEqual(code, 0, err)
    self.assertEqual(self.data(), want)
    code, _, err = self.run_script(process=2, **two)
    self.assertEqual(code, 2)
    self.assertIn("--process=2: must be in [0, 2)", err)

  def test_exports(self):
    self.save(about={"site": self.store.meta["site"]})
    for kind, file in (
      ("neuronpedia", "batch-0.json"),
      ("delphi", "model.layers.1/config.json"),
    ):
      target = self.folder / kind
      code, _, err = self.run_script(export=kind, write=target, random=5)
      self.assertEqual(code, 0, err)
      self.assertTrue((target / file).exists())
      code, _out, err = self.run_script(export=kind, write=target)
      self.assertEqual(code, 2)
      self.assertIn("must be a folder that is empty", err)

  def test_bad_input_is_refused_by_name_and_nothing_is_written(self):
    self.save()
    for flags, message in (
      ({"latents": "3,64"}, "--latents=64: must be in [0, 64)"),
      ({"store": self.folder}, "must be a store"),
      ({"sae": self.folder / "none"}, "none"),
      ({"random": 0}, "--random=0: must be at least 1"),
      ({"export": "np"}, "--export=np: must be neuronpedia or delphi"),
      ({"store": ""}, "--store=: must not be empty, except for prompts"),
      ({"store": "", "prompt": "a", "ablation": True}, "--ablation=true"),
      ({"prompt": "a", "model": self.model, "site": "x"}, "--site=x"),
      ({"prompt": "a", "model": self.folder / "m"}, "--model="),
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
