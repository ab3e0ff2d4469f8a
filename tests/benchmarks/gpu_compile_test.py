"""Tests of benchmarks/gpu_compile.py, and of the committed results."""

import importlib
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
from absl.testing import absltest

from tests import structure_test

# A script imports its neighbours by their names.
BENCHMARKS = structure_test.ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))
gpu_case = importlib.import_module("gpu_case")
gpu_compile = importlib.import_module("gpu_compile")

# A loop of 31 trips with two kernels and a condition, and two branches.
TEXT = """HloModule jit_step

%fused (p.1: f32[9,5]) -> f32[9,5] {
  %p.1 = f32[9,5]{1,0} parameter(0)
  %inside = f32[7,9,5]{2,1,0} broadcast(%p.1), dimensions={1,2}
}

%body (t: (s32[], f32[9,5])) -> (s32[], f32[9,5]) {
  %t = (s32[], f32[9,5]{1,0}) parameter(0)
  %a = f32[9,5]{1,0} fusion(%t), kind=kLoop, calls=%fused
  %b = s32[] fusion(%t), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[9,5]{1,0}) tuple(%b, %a)
}

%condition (t: (s32[], f32[9,5])) -> pred[] {
  %t = (s32[], f32[9,5]{1,0}) parameter(0)
  ROOT %c = pred[] fusion(%t), kind=kLoop, calls=%fused
}

%dear (x: f32[9,5]) -> f32[9,5] {
  %x = f32[9,5]{1,0} parameter(0)
  %y = f32[9,5]{1,0} copy(%x)
  ROOT %z = f32[9,5]{1,0} copy(%y)
}

%cheap (x: f32[9,5]) -> f32[9,5] {
  %x = f32[9,5]{1,0} parameter(0)
  ROOT %y = f32[9,5]{1,0} copy(%x)
}

ENTRY %main (x: f32[9,5]) -> f32[9,5] {
  %x = f32[9,5]{1,0} parameter(0)
  %t = (s32[], f32[9,5]{1,0}) tuple(%x)
  %w = (s32[], f32[9,5]{1,0}) while(%t), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"31"}}
  ROOT %z = f32[9,5]{1,0} conditional(%w), branch_computations={%dear, %cheap}
}
"""


class ProgramTest(absltest.TestCase):
  def test_counts_loops_by_their_trips_and_the_cheapest_branch(self):
    program = gpu_compile.parse(TEXT)
    self.assertEqual(program.entry, "main")
    self.assertEqual(gpu_compile.launches(program, "main"), 31 * 3 + 1)

  def test_arrays_inside_fusions_are_not_in_memory(self):
    program = gpu_compile.parse(TEXT)
    self.assertEqual(gpu_compile.arrays(program), {(9, 5)})

  def test_reads_a_compiled_program(self):
    f = lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y @ y, x)
    x = jax.ShapeDtypeStruct((6, 6), jnp.float32)
    text = jax.jit(f).lower(x).compile().as_text()
    program = gpu_compile.parse(text)
    self.assertIn((6, 6), gpu_compile.arrays(program))
    self.assertGreaterEqual(gpu_compile.launches(program, program.entry), 3)


class CommittedTest(absltest.TestCase):
  def test_the_sparse_step_sorts_nothing_gathers_nothing_and_fits(self):
    path = pathlib.Path(BENCHMARKS, "results/gpu-compile.json")
    found = json.loads(path.read_text())
    sparse = [row for row in found["programs"] if row["engine"] == "sparse"]
    self.assertContainsSubset(gpu_case.SIZES, {row["size"] for row in sparse})
    for row in sparse:
      self.assertTrue(row["fits"], row)
      for nothing in ("sorts", "gathered", "recomputed_matmuls"):
        self.assertFalse(row[nothing], row)
      self.assertEqual(row["compare_and_swap"], 0, row)

  def test_no_engine_sorts_more_than_k_entries_of_a_row(self):
    path = pathlib.Path(BENCHMARKS, "results/gpu-compile.json")
    for row in json.loads(path.read_text())["programs"]:
      for shape in row["sorts"]:
        k = gpu_case.sizes(row["size"])["k"]
        self.assertLessEqual(int(shape.split(",")[-1]), k, row)


if __name__ == "__main__":
  absltest.main()
