"""The sharded step compiles for TPUs, by libtpu alone and without one.

Skipped where libtpu is not installed (extra `aot`, in an environment of its
own); a compilation takes up to a minute. benchmarks/tpu_steps.py compiles the
steps of more recipes, and for more chips.
"""

import math

from absl.testing import absltest, parameterized

from benchmarks import step_programs
from saejax.plans import programs
from saejax.training import sharding
from tests import compiled, tpu

SIZES = step_programs.Sizes(rows=8192, d=768, n=65536, k=32)
KERNELS = {
  "topk": ["encode_candidates", "encode_largest"],
  "jumprelu": ["jumprelu_forward", "jumprelu_backward"],
  "batchtopk": ["encode_candidates", "encode_largest"],
}


class TpuCompileTest(parameterized.TestCase):
  def compile(self, name, shape, members=0):
    """One step on a mesh of ensemble, data and latent, and what it holds."""
    chips = tpu.topology("v5e").devices
    program = step_programs.compiled(
      step_programs.recipe(name, SIZES, "bfloat16"),
      SIZES,
      sharding.make_mesh(shape, chips),
      members=members,
    )
    memory = program.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    self.assertLess(used, 16e9)  # of a v5e chip
    text = program.as_text()
    self.assertCountEqual(programs.kernels(text), KERNELS[name])
    return text

  def exchanged(self, text, shape, aux):
    """Shapes of activation size that are gathered and summed in a step."""
    step = programs.executed(programs.collectives(text), aux)
    large = lambda kind: step_programs.large(step, kind, SIZES, shape)
    others = [k for k in programs.KINDS if k[:4] != "all-"]
    self.assertEmpty([c for kind in others for c in large(kind)])
    return large("all-gather"), large("all-reduce")

  def test_topk_holds_no_array_of_all_latents_and_gathers_once(self):
    shape = (1, 2, 2)
    text = self.compile("topk", shape)
    held = step_programs.holdings(text, SIZES, shape)
    self.assertEmpty(held["large"])
    rows, d, k = SIZES.rows // 2, SIZES.d, SIZES.k
    # XLA sorts the indices of scatters.
    for sizes in compiled.sorts(text):
      self.assertLessEqual(math.prod(sizes), rows * k)
    code = aux_code = (2, rows, 2 * k)  # k_aux is k
    gathered, summed = self.exchanged(text, shape, False)
    self.assertEqual((gathered, summed), ([code], [(rows, d)]))
    gathered, summed = self.exchanged(text, shape, True)
    self.assertEqual((gathered, summed), ([code, aux_code], [(rows, d)] * 2))

  def test_batchtopk_gathers_the_candidates_of_rows_once(self):
    shape = (1, 2, 2)
    text = self.compile("batchtopk", shape)
    rows, d, k = SIZES.rows // 2, SIZES.d, SIZES.k
    for sizes in compiled.sorts(text):  # of the indices of scatters
      self.assertLessEqual(math.prod(sizes), rows * 4 * k)
    gathered, summed = self.exchanged(text, shape, False)
    self.assertEqual(gathered, [(2, rows, 2 * 4 * k)])
    self.assertEqual(summed, [(1, rows, d)])

  def test_dense_steps_sum_reconstructions_once_and_sort_nothing(self):
    shape = (1, 2, 2)
    text = self.compile("jumprelu", shape)
    self.assertEmpty(compiled.sorts(text))
    gathered, summed = self.exchanged(text, shape, False)
    self.assertEqual((gathered, summed), ([], [(SIZES.rows // 2, SIZES.d)]))

  @parameterized.parameters("topk", "jumprelu")
  def test_steps_of_stacked_members_compile_and_fit(self, name):
    self.compile(name, (2, 1, 2), members=2)


if __name__ == "__main__":
  absltest.main()
