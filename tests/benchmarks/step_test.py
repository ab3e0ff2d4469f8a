"""Tests of benchmarks/step.py and peers.py, at a size of milliseconds."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(*flags: str) -> subprocess.CompletedProcess[str]:
  environment = {k: v for k, v in os.environ.items() if "PEERS" not in k}
  environment.pop("XLA_FLAGS", None)
  return subprocess.run(
    [sys.executable, str(ROOT / "benchmarks" / "step.py"), *flags],
    capture_output=True,
    text=True,
    timeout=300,
    env={**environment, "PYTHONPATH": str(ROOT)},
  )


SMALL = ["--batch=64", "--d=16", "--n=128", "--k=4", "--rounds=3", "--warmup=1"]


class StepTest(absltest.TestCase):
  def test_the_last_line_is_the_json_that_is_promised(self):
    out = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / "o"
    done = start(
      *SMALL,
      "--device=cpu",
      "--allow_busy",
      f"--out={out}",
      f"--peers_python={sys.executable}",
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    result = json.loads(done.stdout.splitlines()[-1])
    self.assertEqual(result, json.loads(out.read_text()))
    for name in ("sparse", "dense", "floor", "matmul", "adam"):
      self.assertGreater(result["ms"][name], 0)
      low, high = result["quartiles"]["ms"][name]
      self.assertBetween(result["ms"][name], low, high)
    self.assertGreater(result["ratio_dense"], 0)
    self.assertGreater(result["ratio_floor"], 0)
    # Who has no PyTorch has no peers, and is told which are absent.
    known = {*result["ratio_peers"], *result["absent"]}
    self.assertContainsSubset({"sae_lens", "sparsify"}, known)
    self.assertEqual(result["hardware"]["platform"], "cpu")
    self.assertIn("jax", result["versions"])
    self.assertEqual(
      result["hardware"]["malloc"]["MALLOC_MMAP_THRESHOLD_"], "1073741824"
    )

  def test_bad_sizes_are_one_line_and_exit_code_2(self):
    done = start("--k=9", "--n=8")
    self.assertEqual(done.returncode, 2)
    self.assertRegex(done.stderr, r"^--k=9: must be at most n=8; .*\n$")


if __name__ == "__main__":
  absltest.main()
