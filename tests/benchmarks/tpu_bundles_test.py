"""Tests of benchmarks/tpu_bundles.py, and of the committed counts."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

from absl.testing import absltest

from benchmarks import tpu_bundles

ROOT = pathlib.Path(tpu_bundles.__file__).parent.parent
COMMITTED = ROOT / "benchmarks/results/tpu-bundles.json"
ALLOWED = 1.1  # of the committed counts

# A loop of 30 bundles, of which the first pass alone runs 25.
PROGRAM = "\n".join(
  [
    "     0   :  { %1 = smov 0 }",
    "  0x10 LB: > { %2 = sphi }",
    "  0x11   : > { %3 = sbr.rel (%p1) target = $region7 }",
    *(f"  {hex(at)}   : > {{ vst }}" for at in range(0x12, 0x12 + 25)),
    "  0x40 PF: > { vmatmul } /* Start/End empty region 7 */",
    "  0x41   : > { vmatmul }",
    "  0x42   : > { %4 = sbr.rel (!%p2) target = $region9 }",
    "  0x43   :  { exit }",
  ]
)


class ParserTest(absltest.TestCase):
  def test_counts_the_body_without_what_the_first_pass_alone_runs(self):
    self.assertEqual(tpu_bundles.steady_bundles(PROGRAM), 5)

  def test_counts_the_innermost_loop(self):
    inner = PROGRAM.replace("  0x43", "  0x43 LB: >> { vld }\n  0x44")
    self.assertEqual(tpu_bundles.steady_bundles(inner), 1)


class BudgetTest(absltest.TestCase):
  def test_kernels_keep_to_the_committed_counts(self):
    if importlib.util.find_spec("libtpu") is None:
      self.skipTest("libtpu is not installed (extra 'aot', make aot)")
    written = self.create_tempfile("counts.json").full_path
    subprocess.run(
      [sys.executable, tpu_bundles.__file__, f"--write={written}"],
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      cwd=ROOT,
      check=True,
      capture_output=True,
    )
    found, want = (
      json.loads(pathlib.Path(path).read_text())
      for path in (written, COMMITTED)
    )
    self.assertEqual(found["sizes"], want["sizes"])
    for chip, rows in want["chips"].items():
      for name, row in rows.items():
        bundles = found["chips"][chip][name]["bundles"]
        self.assertLessEqual(bundles, ALLOWED * row["bundles"], (chip, name))


if __name__ == "__main__":
  absltest.main()
