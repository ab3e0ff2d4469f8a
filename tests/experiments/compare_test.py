"""experiments/compare.py: a page of two SAEs of a small language model."""

import json
import pathlib

import jax
from absl.testing import absltest

from saejax.data import harvest
from saejax.report import compare_page
from saejax.sae import activations, files, initial
from tests import shared
from tests.experiments import corpora, script

MODEL = "models/babyllama-105"


class CompareTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    _, self.store = harvest.harvest(
      harvest.HarvestConfig(
        model=str(shared.path(MODEL)),
        layer=1,
        corpus=str(corpora.stories(self.folder)),
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
    self.site = self.store.meta["site"]
    self.written = self.folder / "page.html"

  def save(self, name, seed=0, d=128, n=64, about=None):
    sae = initial.init(
      jax.random.key(seed), d=d, n=n, activation=activations.TopK(4)
    )
    files.save(sae, self.folder / name, about=about or {})

  def run_script(self, **more):
    flags = {
      "a": self.folder / "a",
      "b": self.folder / "b",
      "store": self.store.path,
      "write": self.written,
      "dir": self.folder / "sums",
    }
    flags |= more
    return script.run("compare", *(f"--{k}={v}" for k, v in flags.items()))

  def test_a_page_of_saes_of_different_n(self):
    self.save("a", about={"site": self.site})
    self.save("b", seed=1, n=96, about={"site": self.site})
    out_json = self.folder / "data.json"
    code, out, err = self.run_script(json=out_json, show=7, top=3)
    self.assertEqual(code, 0, err)
    self.assertIn(f"matched pairs: {self.written}", out)
    self.assertFalse((self.folder / "sums").exists())
    data = json.loads(out_json.read_text())
    compare_page.validate(data)
    self.assertEqual((data["saes"]["a"]["n"], data["saes"]["b"]["n"]), (64, 96))
    self.assertEqual(data["saes"]["a"]["name"], "a")
    self.assertEqual(data["rows"], self.store.rows)
    self.assertLessEqual(data["saes"]["a"]["l0"], 4)
    for item in data["items"]:
      self.assertNotEmpty(item["members"])
    texts = [
      "".join(e["tokens"]) for c in data["latents"]["b"] for e in c["examples"]
    ]
    self.assertNotEmpty(texts)
    for text in texts:
      self.assertRegex(text, "dogs|park|ball|day|little|play|went")

  def test_the_last_of_several_processes_writes_the_page(self):
    self.save("a")
    self.save("b", seed=1)
    code, out, err = self.run_script(process=1, processes=2)
    self.assertEqual(code, 0, err)
    self.assertIn("other processes are not done", out)
    self.assertFalse(self.written.exists())
    code, out, err = self.run_script(process=0, processes=2)
    self.assertEqual(code, 0, err)
    self.assertTrue(self.written.exists())

  def test_bad_input_is_refused_by_name_and_nothing_is_written(self):
    self.save("a", about={"site": self.site})
    self.save("b", about={"site": self.site})
    self.save("narrow", d=64)
    elsewhere = {"layer": 2, "point": "resid_post"}
    self.save("other", about={"site": elsewhere})
    other = self.folder / "other"
    for flags, message in (
      ({"b": self.folder / "none"}, "--b="),
      ({"b": self.folder / "narrow"}, "--b=width 64: must be of the site of a"),
      ({"b": other}, "must be of the site of a, site layer 1"),
      (
        {"a": other, "b": other},
        "must be of the site of the SAE, site layer 2",
      ),
      ({"store": self.folder}, "must be a store"),
      ({"near": 13}, "--near=13: must be at most 12"),
      ({"match": "best"}, "--match=best: must be one of auto, exact, mnn"),
      ({"tau": 2}, "--tau=2.0: must be in [0, 1]"),
      ({"a": ""}, "--a=: must not be empty"),
    ):
      code, _, err = self.run_script(**flags)
      self.assertEqual(code, 2, err)
      self.assertIn(message, err)
    self.assertFalse(self.written.exists())


if __name__ == "__main__":
  absltest.main()
