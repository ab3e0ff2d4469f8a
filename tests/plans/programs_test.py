"""Tests of saejax.plans.programs."""

from absl.testing import absltest, parameterized

from saejax.plans import planner, programs

# As the compiler for TPUs writes a loop whose body exchanges an array.
LOOP = """
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%body (p: (s32[], f32[64,8])) -> (s32[], f32[64,8]) {
  %all-reduce.1 = f32[64,8]{1,0:T(8,128)} all-reduce(%part), to_apply=%add
}

%condition (q: (s32[], f32[64,8])) -> pred[] {
  %end = s32[]{:T(128)} constant(16)
  ROOT %less = pred[]{:T(512)} compare(%i, %end), direction=COMPARED
}

ENTRY %main (a: f32[64,8]) -> f32[64,8] {
  %loop = (s32[], f32[64,8]) while(%start), condition=%condition, body=%body
}
"""


class TripsTest(parameterized.TestCase):
  @parameterized.parameters(("LT", 16), ("NE", 0))
  def test_passes_of_a_loop_are_those_up_to_its_constant(self, compared, want):
    text = LOOP.replace("COMPARED", compared)
    (found,) = programs.collectives(text)
    self.assertEqual((found.kind, found.bytes), ("all-reduce", 2048))
    self.assertEqual(found.times, want)

  def test_a_stated_number_of_passes_precedes(self):
    stated = 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    (found,) = programs.collectives(LOOP.replace("body=%body", stated))
    self.assertEqual(found.times, 3)


class RefusalTest(absltest.TestCase):
  def test_the_largest_buffers_of_a_refused_program_are_named(self):
    message = """Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm.
  Largest program allocations in hbm:

  1. Size: 8.00G
     Operator: op_name="jit(step)/mul"
     Shape: f32[1048576,2048]{1,0:T(8,128)}
     Unpadded size: 8.00G

  2. Size: 512.0M
     Shape: bf16[131072,2048]{1,0:T(8,128)(2,1)}
"""
    self.assertEqual(
      planner._largest(message),
      [
        "8.00G: f32[1048576,2048]{1,0:T(8,128)}",
        "512.0M: bf16[131072,2048]{1,0:T(8,128)(2,1)}",
      ],
    )
    self.assertEqual(planner._refusal(message), int(18.5 * 2**30))


if __name__ == "__main__":
  absltest.main()
