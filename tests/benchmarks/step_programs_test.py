"""Tests of benchmarks/step_programs.py on the text of a program."""

from absl.testing import absltest

from benchmarks import step_programs
from benchmarks.step_programs import Sizes
from saejax.plans import programs

PROGRAM = """\
HloModule step

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = f32[8]{0} all-reduce(%x), to_apply=%add, metadata={op_name="count"}
}

%off (p: f32[4,16]) -> f32[4,16] {
  %a = f32[4,16]{1,0} all-reduce(%p), to_apply=%add
}

%few (p: f32[4,16]) -> f32[4,16] {
  %f = f32[4,2]{1,0} all-gather(%p), dimensions={1}
}

%many (p: f32[4,16]) -> f32[4,16] {
  %m = f32[4,32]{1,0} all-gather(%p), dimensions={1}
}

%on (p: f32[4,16]) -> f32[4,16] {
  %b = (f32[4,16]{1,0}, /*index=1*/bf16[64]{0}) all-reduce(%p, %q), to_apply=%s
  %s = f32[4,16]{1,0} conditional(%i, %p, %p), branch_computations={%few, %many}
}

ENTRY %main (x: f32[4,16]) -> f32[4,16] {
  %w = (s32[], f32[8]) while(%t), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"31"}}
  %u = (s32[], f32[8]) while(%t), condition=%c, body=%body
  %g = (f32[4]{0}, f32[16]{0}) all-gather-start(%x), dimensions={0}
  %d = f32[16]{0} all-gather-done(%g)
  %k.7 = f32[4,16]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  %o = (s32[64]{0}, s32[64]{0}) sort(%x, %y), dimensions={0}
  ROOT %z = f32[4,16]{1,0} conditional(%p, %x, %x), \
true_computation=%on, false_computation=%off
}
"""


class TextTest(absltest.TestCase):
  def test_collectives_have_their_arrays_branch_and_passes(self):
    found = programs.collectives(PROGRAM)
    short = [(c.kind, c.arrays, c.branch, c.times) for c in found]
    self.assertIn(("all-reduce", (("f32", (8,)),), (), 31), short)
    self.assertIn(("all-reduce", (("f32", (8,)),), (), 0), short)
    self.assertIn(("all-gather", (("f32", (16,)),), (), 1), short)
    both = (("f32", (4, 16)), ("bf16", (64,)))
    self.assertIn(("all-reduce", both, (("z", 1),), 1), short)
    self.assertEqual(found[0].source, "count")
    self.assertEqual(next(c for c in found if c.arrays == both).bytes, 384)

  def test_a_step_executes_one_branch_and_the_largest_inside(self):
    found = programs.collectives(PROGRAM)
    without, with_aux = (programs.executed(found, aux) for aux in (False, True))
    self.assertLen(without, 4)
    self.assertLen(with_aux, 5)
    shapes = [shape for c in with_aux for _, shape in c.arrays]
    self.assertIn((4, 32), shapes)
    self.assertNotIn((4, 2), shapes)

  def test_kernels_sorts_and_large_arrays_are_named(self):
    text = PROGRAM
    held = step_programs.holdings(text, Sizes(4, 16, 32, 2), (1, 1, 1))
    self.assertEqual(held["kernels"], {"k": 1})
    self.assertEqual(held["sorts"], [(64,)])
    self.assertEqual(held["large"], ["[B, n]"])


if __name__ == "__main__":
  absltest.main()
