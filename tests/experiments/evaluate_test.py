"""experiments/evaluate.py: a saved SAE in a language and an embedding model."""

import json
import pathlib

import jax
from absl.testing import absltest

from saejax.data import harvest, spec
from saejax.interop import conversion
from saejax.sae import activations, files, initial
from tests import shared
from tests.experiments import corpora, script

MODEL = "models/babyllama-105"


class Base(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    texts = corpora.stories(self.folder)
    self.flags = {
      "harvest.model": str(shared.path(MODEL)),
      "harvest.layer": 1,
      "harvest.corpus": texts,
      "harvest.context": 32,
      "harvest.held_out_fraction": 0.5,
      "tokens": 400,
      "dir": self.folder / "evaluations",
    }

  def save(self, name, n, about=None):
    sae = initial.init(
      jax.random.key(0), d=128, n=n, activation=activations.TopK(4)
    )
    files.save(sae, self.folder / "run" / "saes" / name, about=about or {})

  def run_script(self, **more):
    flags = {"sae": self.folder / "run"} | self.flags | more
    return script.run("evaluate", *(f"--{k}={v}" for k, v in flags.items()))


class EvaluateTest(Base):
  def test_every_sae_of_a_run_with_controls(self):
    config = harvest.HarvestConfig(model=str(shared.path(MODEL)), layer=1)
    meta = spec.subject_of(config).meta
    self.save("a", 64, {"model": meta["model"], "site": meta["site"]})
    self.save("b", 128)
    written = self.folder / "core.json"
    code, out, err = self.run_script(write=written)
    self.assertEqual(code, 0, err)
    self.assertRegex(
      out,
      r"(?s)^[0-9,]+ tokens, .*\nidentity .*\nzero .*\nmean .*\npca-4 .*"
      r"\nrandom-128-4 .*\na  .*\nb  .*\[.*, .*\]",
    )
    again, repeated, _ = self.run_script(write=written)
    self.assertEqual((again, repeated), (0, out))
    records = json.loads(written.read_text())
    self.assertEqual([r["sae_lens_id"] for r in records], ["a", "b"])
    for record in records:
      self.assertEqual(record["eval_type_id"], "core")
      for values in record["eval_result_metrics"].values():
        for value in values.values():
          self.assertIsInstance(value, int | float)
      losses = record["eval_result_metrics"]["model_performance_preservation"]
      self.assertGreater(
        losses["ce_loss_with_ablation"], losses["ce_loss_without_sae"]
      )

  def test_saebench_s_own_numbers_are_beside_the_corrected_ones(self):
    self.save("a", 64)
    written = self.folder / "core.json"
    compat = {"compat": "saebench", "tokens": 200, "harvest.forward_batch": 4}
    code, _, err = self.run_script(write=written, **compat)
    self.assertEqual(code, 0, err)
    (record,) = json.loads(written.read_text())
    theirs = record["eval_result_unstructured"]["compat"]["saebench"]
    ours = record["eval_result_metrics"]
    for category, values in ours.items():
      self.assertContainsSubset(values, theirs["metrics"][category])
    self.assertLen(theirs["details"], 64)
    keys = [one.keys() for one in theirs["details"]]
    self.assertEqual(keys, [o.keys() for o in record["eval_result_details"]])
    self.assertEqual(
      theirs["metrics"]["token_stats"]["total_tokens_eval_reconstruction"], 256
    )
    self.assertNotAlmostEqual(
      ours["reconstruction_quality"]["mse"],
      theirs["metrics"]["reconstruction_quality"]["mse"],
    )

  def test_published_weights_give_what_the_run_gives(self):
    self.save("a", 64)
    ours, theirs = self.folder / "run" / "saes" / "a", self.folder / "published"
    conversion.convert(str(ours), str(theirs), "saelens")
    found = []
    for number, name in enumerate((ours, theirs)):
      written = self.folder / f"{number}.json"
      code, _, err = self.run_script(sae=name, write=written)
      self.assertEqual(code, 0, err)
      (record,) = json.loads(written.read_text())
      found.append(record["eval_result_metrics"])
    for category, values in found[0].items():
      for name, value in values.items():
        self.assertAlmostEqual(found[1][category][name], value, places=4)

  def test_processes_share_the_text_and_the_last_one_merges(self):
    self.save("a", 64)
    small = {"harvest.forward_batch": 4, "harvest.pool_batches": 1}
    found = []
    for processes in (1, 3):
      written = self.folder / f"{processes}.json"
      for process in reversed(range(processes)):
        self.assertFalse(written.exists())
        code, out, err = self.run_script(
          write=written, process=process, processes=processes, **small
        )
        self.assertEqual(code, 0, err)
        self.assertEqual("not done" in out, process > 0)
      (record,) = json.loads(written.read_text())
      found.append(record)
    parts = list((self.folder / "evaluations").glob("*/part-*"))
    self.assertLen(parts, 4)
    self.assertEqual(found[0]["eval_id"], found[1]["eval_id"])
    keys = ("eval_result_metrics", "eval_result_details", "model", "controls")
    more = "eval_result_unstructured"
    whole, merged = (
      [record[k] for k in keys[:2]] + [record[more][k] for k in keys[2:]]
      for record in found
    )
    same_to(self, whole, merged, 1e-9)

  def test_another_site_and_no_sae_are_refused_by_name(self):
    config = harvest.HarvestConfig(model=str(shared.path(MODEL)), layer=2)
    meta = spec.subject_of(config).meta
    self.save("a", 64, {"model": meta["model"], "site": meta["site"]})
    code, _, err = self.run_script()
    self.assertEqual(code, 2)
    self.assertIn("--harvest.layer=1: must be that of the SAE a, layer 2", err)
    code, _, err = self.run_script(sae=self.folder / "nothing")
    self.assertEqual(code, 2)
    self.assertIn("nothing", err)
    code, _, err = self.run_script(**{"harvest.sites": "layers.1.resid_post"})
    self.assertEqual(code, 2)
    self.assertIn("one site at a time", err)
    code, _, err = self.run_script(tokens=10, **{"harvest.layer": 2})
    self.assertEqual(code, 2)
    self.assertRegex(err, "--tokens=10: must fit a whole document")
    code, _, err = self.run_script(compat="other")
    self.assertEqual(code, 2)
    self.assertIn("--compat=other: must be saebench", err)


def same_to(test, a, b, within):
  """Numbers of two equal trees are equal to a relative tolerance."""
  if isinstance(a, dict):
    test.assertEqual(a.keys(), b.keys())
    for key in a:
      same_to(test, a[key], b[key], within)
  elif isinstance(a, list):
    for one, other in zip(a, b, strict=True):
      same_to(test, one, other, within)
  elif isinstance(a, int | float):
    test.assertLessEqual(abs(a - b), within * max(1, abs(a)))
  else:
    test.assertEqual(a, b)


if __name__ == "__main__":
  absltest.main()
