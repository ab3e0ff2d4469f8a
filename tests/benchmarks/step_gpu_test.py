"""Tests of benchmarks/step_gpu.py at sizes of milliseconds, on a CPU."""

import importlib
import json
import pathlib
import sys

import numpy as np
from absl.testing import absltest

from tests import structure_test

# A script imports its neighbours by their names.
sys.path.append(str(structure_test.ROOT / "benchmarks"))
gpu_case = importlib.import_module("gpu_case")
step_gpu = importlib.import_module("step_gpu")


class RunTest(absltest.TestCase):
  def test_cases_are_timed_or_reported_and_the_json_is_whole(self):
    out = pathlib.Path(self.create_tempdir().full_path, "out.json")
    config = step_gpu.GpuConfig(
      sizes=("A",),
      contenders=("floor", "check", "sparse", "sparsify"),
      tiny=True,
      rounds=2,
      case_seconds=200,
      out=str(out),
    )
    self.assertEqual(step_gpu.main(config), 0)
    found = json.loads(out.read_text())
    rows, figures = found["cases"]["A"], found["figures"]["A"]
    self.assertTrue(rows["check"]["ok"], rows["check"])
    self.assertGreater(rows["sparse"]["ms"], 0)
    self.assertLess(rows["sparse"]["loss_last"], rows["sparse"]["loss_first"])
    self.assertIn("absent", rows["sparsify"]["error"])
    self.assertAlmostEqual(
      figures["of_floor"]["sparse"],
      figures["floor_ms"] / rows["sparse"]["ms"],
      delta=1e-3 * figures["of_floor"]["sparse"] + 1e-4,
    )
    # What runs on a CPU says nothing about the aims.
    self.assertEqual({row["met"] for row in found["aims"]}, {None})

  def test_without_time_every_case_is_named(self):
    config = step_gpu.GpuConfig(seconds=0.0, tiny=True)
    out = pathlib.Path(self.create_tempdir().full_path, "out.json")
    step_gpu.main(step_gpu.dataclasses.replace(config, out=str(out)))
    cases = json.loads(out.read_text())["cases"]
    for size in gpu_case.SIZES:
      self.assertSameElements(cases[size], config.contenders)
      for row in cases[size].values():
        self.assertEqual(row, {"error": "no time left"})

  def test_a_process_that_fails_or_takes_too_long_is_reported(self):
    program = [sys.executable, "-c"]
    failed = step_gpu.run([*program, "raise MemoryError('full')"], 60, {})
    self.assertEqual(failed["error"], "exit 1: MemoryError: full")
    late = step_gpu.run([*program, "import time; time.sleep(60)"], 0.5, {})
    self.assertEqual(late["error"], "not done in 0 s")

  def test_the_check_finds_a_wrong_result(self):
    self.assertEqual(gpu_case._error([1.0, np.nan], np.ones(2)), np.inf)
    self.assertAlmostEqual(gpu_case._error([1.0, 2.0], np.array([1, 4.0])), 0.5)


class FiguresTest(absltest.TestCase):
  def test_ratios_are_to_the_floor_and_to_the_fastest_peer(self):
    shape = {"B": 10, "d": 2, "n": 8, "k": 1}
    found = {
      "floor": {"matmul_ms": 1.0, "adam_ms": 2.0, "copy_bytes_per_s": 1e3},
      "sparse": {"ms": 4.0, "peak_bytes": 7},
      "sparsify": {"ms": 12.0},
      "sae_lens": {"ms": 9.0},
      "openai_dense": {"error": "out of memory"},
    }
    row = step_gpu.summary(found, shape)
    self.assertEqual(row["of_floor"]["sparse"], 0.75)
    self.assertEqual(row["tokens_per_second"]["sparse"], 2500)
    self.assertEqual(row["fastest_peer"], "sae_lens")
    self.assertEqual(row["over_fastest_peer"], 2.25)
    # 6 B k d + 2 n d + 52 d n bytes at a byte a millisecond.
    self.assertEqual(row["formula_floor_ms"], 1 + 120 + 32 + 832)
    aims = step_gpu.aims({"B": row, "D": step_gpu.summary({}, shape)})
    self.assertEqual([a["met"] for a in aims], [True, True, None, None, False])

  def test_what_matters_most_comes_first_and_nothing_is_left_out(self):
    config = step_gpu.GpuConfig()
    order = step_gpu.cases(config)
    self.assertEqual(order[:3], [("B", c) for c in step_gpu.OURS[:3]])
    self.assertLen(
      set(order), len(config.sizes) * len(config.contenders), order
    )


if __name__ == "__main__":
  absltest.main()
