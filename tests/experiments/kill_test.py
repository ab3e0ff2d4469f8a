"""A small real run killed with SIGKILL ends as an undisturbed one."""

import os
import pathlib
import shlex
import subprocess
import sys

from absl.testing import absltest

from tests.experiments import scaling_test, script


class KillTest(absltest.TestCase):
  def test_stores_weights_and_metrics_are_those_of_an_undisturbed_run(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    flags = [
      flag
      for flag in scaling_test.arguments(folder)
      if not flag.startswith("--harvest.dir")
    ]
    small = ("--sae.n=64", "--sae.k=4", "--train.checkpoint_steps=4")
    small += ("--sae.aux_weight=0.125",)  # which scaling_test leaves out
    done = subprocess.run(
      [
        sys.executable,
        "benchmarks/kill_resume.py",
        "--command=python experiments/scaling.py",
        f"--args={shlex.join([*flags, *small])}",
        "--kills=4",
        "--signals=SIGKILL,SIGINT,SIGHUP",
        f"--folder={folder / 'trials'}",
      ],
      cwd=script.ROOT,
      env={**os.environ, "PYTHONPATH": str(script.ROOT)},
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    self.assertRegex(done.stdout.splitlines()[-1], "4 kills")


if __name__ == "__main__":
  absltest.main()
