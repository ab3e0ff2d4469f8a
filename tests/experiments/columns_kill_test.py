"""Methods that read more of a row than x: harvested by flags, trained from the
stores on disk, killed with SIGKILL in the middle and repeated.
"""

import os
import pathlib
import subprocess
import sys
import time
from unittest import mock

from absl.testing import absltest, parameterized

from benchmarks import kill_resume
from saejax import errors
from saejax.report import extras
from tests import shared
from tests.experiments import corpora, script

HARVEST = (
  "--harvest.context=64",
  "--harvest.rows=2048",
  "--harvest.held_out_rows=512",
  "--harvest.bucket_rows=2048",
  "--harvest.shard_rows=1024",
  "--harvest.chunk_rows=256",
  "--harvest.calibration_rows=256",
)
TRAIN = (
  "--sae.n=32",
  "--sae.k=4",
  "--sae.aux_weight=0",  # which takes half of the time to compile
  "--train.batch_rows=64",
  "--train.epochs=6",
  "--train.checkpoint_steps=30",
  "--train.log_steps=5",
)
NO_REPORT = errors.InputError("report", "", "is not drawn again", "look at one")
METHODS = {
  "tide": (
    ["--harvest.cond=position"],
    ["--sae.recipe=tide", "--sae.timesteps=400"],
  ),
  "transcoder": (
    ["--harvest.point=resid_mid", "--harvest.target_point=mlp_out"],
    ["--sae.recipe=topk"],
  ),
}


class ColumnsKillTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def harvest(self, *flags):
    """The folders of the two stores."""
    texts = corpora.wikitext(self.folder)
    code, out, err = script.run(
      "harvest",
      f"--harvest.model={shared.path('models/babyllama-105')}",
      f"--harvest.corpus={texts}",
      f"--harvest.dir={self.folder / 'stores'}",
      *HARVEST,
      *flags,
    )
    self.assertEqual(code, 0, err)
    return out.split()

  def start(self, flags):
    return subprocess.Popen(
      [sys.executable, "experiments/train.py", *flags],
      cwd=script.ROOT,
      env={**os.environ, "PYTHONPATH": str(script.ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def kill(self, run, flags):
    """Kills a run as soon as it has a complete checkpoint."""
    process = self.start(flags)
    while process.poll() is None and not kill_resume.completed(run):
      time.sleep(0.002)
    process.kill()
    out, _ = process.communicate()
    self.assertLess(process.returncode, 0, out)
    self.assertFalse((run / "n32" / "points.json").exists())

  @parameterized.parameters(*METHODS)
  def test_weights_and_metrics_are_those_of_an_undisturbed_run(self, name):
    harvest, train = METHODS[name]
    stores = zip(("store", "held_out"), self.harvest(*harvest), strict=True)
    flags = [*(f"--{n}={path}" for n, path in stores), *TRAIN, *train]
    whole, killed = self.folder / "whole", self.folder / "killed"
    code, _, err = script.run("train", f"--run_dir={whole}", *flags)
    self.assertEqual(code, 0, err)
    self.kill(killed, [f"--run_dir={killed}", *flags])
    # In this process, which has compiled the step, and without the report.
    with mock.patch.object(extras, "check", side_effect=NO_REPORT):
      code, _, err = script.run("train", f"--run_dir={killed}", *flags)
    self.assertEqual(code, 0, err)
    one, two = (
      {
        str(path.relative_to(run)): kill_resume.content(path, run)
        for path in kill_resume.files(run)
        if "saes" in path.parts or path.name in ("metrics.jsonl", "points.json")
      }
      for run in (whole, killed)
    )
    self.assertGreaterEqual(len(one), 4)
    self.assertEqual(two, one)


if __name__ == "__main__":
  absltest.main()
