"""Tests of benchmarks/step.py and its contenders, at a size of milliseconds."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from absl.testing import absltest

from saejax.kernels import native

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


SMALL = [
  *("--batch=64", "--d=16", "--n=128", "--k=4", "--rounds=3", "--tries=1"),
  "--sample_seconds=0.001",
]


class StepTest(absltest.TestCase):
  def test_the_last_line_is_the_json_that_is_promised(self):
    out = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / "o"
    compiler = any(map(shutil.which, native.COMPILERS))
    ours = ["xla", "native"] if compiler else ["xla"]
    done = start(
      *SMALL,
      "--methods=topk,batchtopk,jumprelu",
      f"--ours={','.join(ours)}",
      f"--out={out}",
      f"--peers_python={sys.executable}",
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    result = json.loads(done.stdout.splitlines()[-1])
    self.assertEqual(result, json.loads(out.read_text()))
    methods = [each["method"] for each in result["results"]]
    self.assertEqual(methods, ["topk", "batchtopk", "jumprelu"])
    for each in result["results"]:
      for name in (*ours, "floor", "matmul", "adam"):
        low, high = each["quartiles"]["ms"][name]
        self.assertBetween(each["ms"][name], low, high)
        self.assertGreater(low, 0)
        self.assertGreater(each["peak_bytes"][name], 2**20)
      self.assertEqual(list(each["share_of_floor"]), ours)
      # Who has no PyTorch has no peers, and is told which are absent.
      known = {*each["times_ours"]["xla"], *each["absent"]}
      peers = {"sae_lens+malloc", "sparsify+malloc", "torch_index_add+malloc"}
      self.assertContainsSubset(peers, known)
      self.assertEqual(each["hardware"]["malloc"]["MALLOC_ARENA_MAX"], "1")
      self.assertIn("jax", each["versions"])

  def test_bad_sizes_are_one_line_and_exit_code_2(self):
    done = start("--k=9", "--n=8")
    self.assertEqual(done.returncode, 2)
    self.assertRegex(done.stderr, r"^--k=9: must be at most n=8; .*\n$")


if __name__ == "__main__":
  absltest.main()
