"""The scaling script end to end, on a small real model and real text."""

import json
import math
import pathlib
import re

from absl.testing import absltest

import saejax
from saejax.data import harvest
from saejax.studies import evaluate
from saejax.training import log
from tests import shared
from tests.experiments import script

SMALL = (
  "--harvest.layer=3",
  "--harvest.context=64",
  "--harvest.rows=6000",
  "--harvest.held_out_rows=1000",
  "--harvest.bucket_rows=2048",
  "--harvest.shard_rows=1024",
  "--harvest.chunk_rows=256",
  "--harvest.calibration_rows=256",
  "--sae.n=32,64,128",
  "--sae.k=2,4,8",
  "--train.batch_rows=256",
  "--train.log_steps=1",
  "--train.checkpoint_steps=10",
  "--resamples=20",
  "--sae.aux_weight=0",  # which takes half of the time to compile
)


def arguments(folder: pathlib.Path) -> list[str]:
  """Flags of a small run on babyllama, its text and stores in `folder`."""
  text = folder / "text"
  if not text.exists():
    text.mkdir()
    source = shared.path("data/text/wikitext2-valid.txt").read_text()
    for i in range(60):
      (text / f"{i}.txt").write_text(source[i * 400 : (i + 1) * 400])
  return [
    f"--harvest.model={shared.path('models/babyllama-105')}",
    f"--harvest.corpus={text}",
    f"--harvest.dir={folder / 'stores'}",
    *SMALL,
  ]


class ScalingTest(absltest.TestCase):
  def test_it_writes_all_that_it_promises_and_repeats_by_its_flags(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    run_dir = folder / "run"
    code, _, err = script.run(
      "scaling",
      f"--run_dir={run_dir}",
      *arguments(folder),
      "--train.members=stacked",
    )
    self.assertEqual(code, 0, err)
    self.assertRegex(err, "preflight: 6,000 rows")
    found = json.loads((run_dir / "results.json").read_text())
    self.assertLen(found["points"], 9)
    for point in found["points"]:
      self.assertEqual(point["status"], "ok")
      self.assertLessEqual(point["l0"], point["k"])
      self.assertBetween(point["nmse"], 0, 1)
      self.assertGreater(point["group_seconds"], 0)
      name = f"n{point['n']}-k{point['k']}-seed0"
      sae = saejax.load(run_dir / "saes" / name)
      self.assertEqual((sae.n, sae.activation.k), (point["n"], point["k"]))
    fit = found["fit"]
    for key in ("alpha", "beta_k", "beta_n", "gamma", "zeta", "eta", "r2"):
      self.assertTrue(math.isfinite(fit[key]), key)
    self.assertIn("intervals", fit)
    self.assertIn("holdout_error", fit)
    for name in ("loss_against_n", "loss_against_k", "residuals"):
      self.assertTrue((run_dir / f"{name}.png").exists())
    page = (run_dir / "report.html").read_text()
    self.assertNotRegex(page, r'(src|href)="(http|/)')  # self-contained
    for n in (32, 64, 128):
      records = log.read(run_dir / f"n{n}")
      steps = [r["step"] for r in records if r["kind"] == "train"]
      self.assertEqual(steps, list(range(1, 24)))
      self.assertNotEmpty(list((run_dir / f"n{n}" / "events").iterdir()))

    # The same flags again: nothing is trained anew.
    before = (run_dir / "n32" / "points.json").stat().st_mtime_ns
    code, _, err = script.run("scaling", f"--flagfile={run_dir / 'run.flags'}")
    self.assertEqual(code, 0, err)
    self.assertIsNone(re.search("step 1/", err))
    after = (run_dir / "n32" / "points.json").stat().st_mtime_ns
    self.assertEqual(after, before)
    again = json.loads((run_dir / "results.json").read_text())
    self.assertEqual(again["points"], found["points"])

  def test_too_small_a_grid_has_no_law_and_is_evaluated_in_the_model_later(
    self,
  ):
    folder = pathlib.Path(self.create_tempdir().full_path)
    run_dir = folder / "run"
    flags = [*arguments(folder), "--sae.n=32", "--sae.k=2,8"]
    flags.append(f"--run_dir={run_dir}")
    code, _, err = script.run("scaling", *flags, "--downstream_tokens=1")
    self.assertEqual(code, 2)
    self.assertIn("--downstream_tokens=1: must fit a whole document", err)
    self.assertFalse(run_dir.exists())  # refused before any work
    code, _, err = script.run("scaling", *flags)
    self.assertEqual(code, 0, err)
    before = json.loads((run_dir / "results.json").read_text())
    self.assertIsNone(before["fit"])
    self.assertIn("sae.n", before["fit_reason"])
    self.assertLen(before["points"], 2)
    self.assertIn("--downstream_tokens=", (run_dir / "report.html").read_text())
    self.assertIsNone(before["downstream"])

    # The flag is given later: nothing is trained.
    code, _, err = script.run("scaling", *flags, "--downstream_tokens=900")
    self.assertEqual(code, 0, err)
    self.assertNotIn("step 1/", err)
    self.assertNotIn("compiling the training step", err)
    found = json.loads((run_dir / "results.json").read_text())
    self.assertEqual(found["downstream"]["tokens_asked"], 900)
    for point, old in zip(found["points"], before["points"], strict=True):
      self.assertEqual(point | old, point)
    self.compare_with_evaluate(folder, found["points"])
    few, many = (p["ce_increase"] for p in found["points"])
    self.assertLess(many, few)

    # Once more: what was measured is read.
    repeat = f"--flagfile={run_dir / 'run.flags'}"
    code, _, err = script.run("scaling", repeat, flags[-1])
    self.assertEqual(code, 0, err)
    self.assertNotIn("evaluate: ", err)
    again = json.loads((run_dir / "results.json").read_text())
    self.assertEqual(again["points"], found["points"])

  def compare_with_evaluate(self, folder, points):
    """The measures are those of `saejax evaluate` on as many tokens."""
    of_harvest = {"layer": 3, "context": 64, "calibration_rows": 256}
    records, _, _ = evaluate.evaluate(
      evaluate.Config(
        sae=(str(folder / "run"),),
        harvest=harvest.HarvestConfig(
          model=str(shared.path("models/babyllama-105")),
          corpus=str(folder / "text"),
          **of_harvest,
        ),
        tokens=900,
        dir=str(folder / "evaluations"),
      )
    )
    for point in points:
      own = records[f"n32-k{point['k']}-seed0"]
      model, pca = own["model"], own["controls"]["pca"]
      lost = model["ce"] - model["clean"]
      self.assertAlmostEqual(point["ce_increase"], lost, places=5)
      self.assertAlmostEqual(point["ce_increase_pca"], pca["ce_increase"], 5)


if __name__ == "__main__":
  absltest.main()
