"""An evaluation killed in the middle continues, and gives the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time

from absl.testing import absltest

from tests.experiments import evaluate_test, script


class KillTest(evaluate_test.Base):
  def setUp(self):
    super().setUp()
    self.save("a", 64)
    self.small = {
      "harvest.forward_batch": 1,
      "harvest.pool_batches": 1,
      "save_seconds": 0,
    }

  def start(self, **more):
    flags = {"sae": self.folder / "run"} | self.flags | self.small | more
    return subprocess.Popen(
      [
        sys.executable,
        "experiments/evaluate.py",
        *(f"--{k}={v}" for k, v in flags.items()),
      ],
      cwd=script.ROOT,
      env={**os.environ, "PYTHONPATH": str(script.ROOT)},
      stderr=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )

  def test_the_same_command_gives_the_same_numbers_bit_for_bit(self):
    undisturbed, killed = self.folder / "whole", self.folder / "killed"
    code, _, err = self.run_script(
      dir=undisturbed, write=undisturbed / "core.json", **self.small
    )
    self.assertEqual(code, 0, err)
    process = self.start(dir=killed, write=killed / "core.json")
    end = time.monotonic() + 300
    while not list(killed.glob("*/part-*/sums.npz")):
      self.assertIsNone(process.poll(), "it was done before it was killed")
      self.assertLess(time.monotonic(), end)
      time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    self.assertFalse((killed / "core.json").exists())
    (sums,) = killed.glob("*/part-*/sums.npz")
    before = sums.read_bytes()
    code, _, err = self.run_script(
      dir=killed, write=killed / "core.json", **self.small
    )
    self.assertEqual(code, 0, err)
    self.assertNotEqual(sums.read_bytes(), before)
    self.assertNotIn("training rows", err)  # their facts were kept
    self.assertNotIn("batch 1 in the model", err)
    one, other = (
      json.loads((folder / "core.json").read_text())
      for folder in (undisturbed, killed)
    )
    for name in ("eval_result_metrics", "eval_result_details", "eval_id"):
      self.assertEqual(one[0][name], other[0][name])
    for name in ("model", "controls", "rows"):
      self.assertEqual(
        *(r[0]["eval_result_unstructured"][name] for r in (one, other))
      )

  def test_a_damaged_file_is_refused_by_name(self):
    code, _, err = self.run_script(**self.small)
    self.assertEqual(code, 0, err)
    (sums,) = (self.folder / "evaluations").glob("*/part-*/sums.npz")
    content = bytearray(sums.read_bytes())
    content[len(content) // 2] ^= 1
    sums.write_bytes(content)
    code, _, err = self.run_script(**self.small)
    self.assertEqual(code, 2)
    self.assertIn("sums.npz", err)
    self.assertIn("remove it", err)


if __name__ == "__main__":
  absltest.main()
