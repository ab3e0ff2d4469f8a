"""experiments/hypotheses.py: what planted texts with a label share."""

import json
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax.studies import hypotheses
from tests.experiments import script

WORDS = ("we", "went", "there", "with", "them", "and", "sat", "down", "again")


def embed(texts):
  """Bags of words in 24 dimensions, in which the planted words weigh most."""
  known = (*WORDS, "loud", "warm")
  R = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))[0]
  count = np.array([[text.split().count(w) for w in known] for text in texts])
  weight = np.where(np.isin(known, ("loud", "warm")), 3.0, 0.5)
  return ((count * weight) @ R[: len(known)]).astype(np.float32)


class HypothesesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.data = self.folder / "texts.jsonl"
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(300):
      words = list(rng.choice(WORDS, 5))
      loud, warm = (int(u < 0.35) for u in rng.random(2))
      words += ["loud"] * loud + ["warm"] * warm
      label = warm - loud + 0.2 * rng.normal()
      text = " ".join(rng.permutation(words))
      kind = "good" if label > 0.1 else "bad"
      lines.append({"text": text, "label": label, "kind": kind})
    self.write(lines)
    self.enter_context(
      mock.patch.object(hypotheses, "embedder", lambda _: embed)
    )

  def write(self, lines):
    self.data.write_text("".join(json.dumps(line) + "\n" for line in lines))

  def run_script(self, **more):
    flags = {
      "data": self.data, "run_dir": self.folder / "run", "n": 16, "k": 3,
      "steps": 100, "batch_rows": 64, "count": 4,
    } | more  # fmt: skip
    return script.run("hypotheses", *(f"--{k}={v}" for k, v in flags.items()))

  def test_planted_words_are_found_and_significant(self):
    code, _out, err = self.run_script()
    self.assertEqual(code, 0, err)
    found = json.loads((self.folder / "run/results.json").read_text())
    said = {
      p["text"]: np.sign(p["coefficient"])
      for p in found["points"]
      if p["significant"]
    }
    self.assertEqual(said, {"loud": -1, "warm": 1})
    self.assertEqual(found["data"]["judge"], "able")
    self.assertEqual(found["data"]["tested_on"], 150)
    self.assertGreater(found["data"]["r2"], 0.7)
    self.assertIn("loud", (self.folder / "run/report.html").read_text())

  @parameterized.parameters(
    ({"data": "none.jsonl"}, "--data=none.jsonl: must be a file"),
    ({"text_field": "body"}, "--text_field=body: must be a text"),
    ({"label_field": "kind"}, "--label_field=kind: must be a number"),
    ({"positive": "x", "label_field": "kind"}, "must take two values"),
    ({"judge": "oracle"}, "--judge=oracle: must be one of"),
    ({"judge": "http"}, "--http.url=: must not be empty"),
    ({"count": 30}, "--count=30: must be at most 16"),
  )
  def test_refusals_are_one_line_and_exit_code_2(self, more, said):
    code, _, err = self.run_script(**more)
    self.assertEqual(code, 2)
    self.assertIn(said, err)
    self.assertEqual(err.count("\n"), 1)


if __name__ == "__main__":
  absltest.main()
