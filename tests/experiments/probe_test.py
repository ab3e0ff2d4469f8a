"""experiments/probe.py: labelled texts, an SAE and its controls."""

import json
import pathlib

import jax
from absl.testing import absltest

from saejax.sae import activations, files, initial
from tests import shared
from tests.experiments import script

WORDS = {"animal": ("cat", "dog", "hen"), "toy": ("ball", "kite", "doll")}


class ProbeTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    records = [
      {"text": f"Tom and Ann saw {i} times a {word}.", "kind": kind, "one": 1}
      for i in range(12)
      for kind, words in WORDS.items()
      for word in words
    ]
    self.corpus = self.folder / "texts.jsonl"
    self.corpus.write_text("\n".join(map(json.dumps, records)) + "\n")
    self.save("a", 128)

  def save(self, name, d):
    sae = initial.init(
      jax.random.key(0), d=d, n=64, activation=activations.TopK(4)
    )
    files.save(sae, self.folder / "trained" / "saes" / name)

  def run_script(self, **more):
    flags = {
      "sae": self.folder / "trained",
      "run_dir": self.folder / "run",
      "harvest.model": str(shared.path("models/babyllama-105")),
      "harvest.layer": 1,
      "harvest.corpus": self.corpus,
      "harvest.dir": self.folder / "stores",
      "labels": "kind",
      "k": "1,4",
      "ablate": "2",
      "repeats": 2,
    }
    return script.run(
      "probe", *(f"--{k}={v}" for k, v in (flags | more).items())
    )

  def test_features_of_an_sae_beside_controls(self):
    code, out, err = self.run_script()
    self.assertEqual(code, 0, err)
    self.assertRegex(
      out,
      r"(?s)top 1 +top 4 +all +TPP 2\nllm .*\npca .*\na +4\.0 .*"
      r"\nrandom-n64-k4 +4\.0 .*\[.*, .*\]",
    )
    found = json.loads((self.folder / "run" / "results.json").read_text())
    self.assertEqual(found["data"]["classes"], {"animal": 36, "toy": 36})
    scores = {point["sae"]: point for point in found["points"]}
    # The words themselves are in the activations.
    self.assertGreater(scores["llm"]["sae_test_accuracy"], 0.9)
    record = json.loads(
      (self.folder / "run" / "records" / "a-sparse_probing.json").read_text()
    )
    metrics = record["eval_result_metrics"]
    self.assertEqual(
      metrics["llm"]["llm_test_accuracy"], scores["llm"]["sae_test_accuracy"]
    )
    self.assertEqual(
      metrics["sae"]["sae_top_4_test_accuracy"],
      scores["a"]["sae_top_4_test_accuracy"],
    )
    page = (self.folder / "run" / "report.html").read_text()
    self.assertIn("do not choose by it", page)
    (self.folder / "run" / "results.json").unlink()
    again, repeated, _ = self.run_script()  # from what is kept
    self.assertEqual((again, repeated), (0, out))
    lines = [json.loads(line) for line in self.corpus.read_text().splitlines()]
    for i, line in enumerate(lines):  # labels at random
      line["kind"] = "toy" if i * 7919 % 72 < 36 else "animal"
    self.corpus.write_text("\n".join(map(json.dumps, lines)) + "\n")
    _, other, _ = self.run_script()
    self.assertNotEqual(other, out)

  def test_refusals_name_the_flag(self):
    for flags, message in (
      ({"labels": "stars"}, "--labels=stars.*line 1 has kind, one, text"),
      ({"labels": "one"}, "--labels=one.*at least two values"),
      ({"evals": "tpp,scr"}, "--evals=scr.*sparse_probing, tpp"),
      ({"k": "0"}, "--k=0.*at least 1"),
      ({"k": "1,65"}, "--k=1,65.*at most 64"),
      ({"harvest.rows": 40}, "--labels.*two classes of 30 documents"),
    ):
      code, _, err = self.run_script(**flags)
      self.assertEqual(code, 2, err)
      self.assertRegex(err, message)
    self.save("b", 16)
    code, _, err = self.run_script()
    self.assertEqual(code, 2, err)
    self.assertRegex(err, "--sae=b.*width of the site, 128, and has 16")


if __name__ == "__main__":
  absltest.main()
