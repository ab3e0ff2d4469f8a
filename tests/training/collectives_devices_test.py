"""What a training step exchanges between devices is known and bounded."""

import math

import jax.numpy as jnp
from absl.testing import absltest, parameterized

from benchmarks import step_programs
from saejax.training import sharding

SIZES = step_programs.Sizes(rows=256, d=64, n=1024, k=16)
MESH = (1, 2, 4)
ROWS, D, OWN = SIZES.rows // MESH[1], SIZES.d, SIZES.n // MESH[2]
K_AUX, PREFIXES = SIZES.k, 4  # of a reconstruction of its own, beside the whole
# Gathered: values and indices of the candidates of every shard.
CODE, AUX_CODE = (2, ROWS, MESH[2] * SIZES.k), (2, ROWS, MESH[2] * K_AUX)
# Of activation size: what is gathered, and how many [B, d] are summed, without
# AuxK and with it; then most collectives in a step, likewise.
GATHERED = {"topk", "abstopk", "hierarchical_topk"}
SUMMED = {
  "topk": (1, 2),
  "abstopk": (1, 2),
  "batchtopk": (1, 2),
  "matryoshka": (1 + PREFIXES, 2 + PREFIXES),
  "hierarchical_topk": (0, 2),  # squares of columns instead of residuals
  "jumprelu": (1, 1),
}
MOST = {
  "topk": (12, 15),
  "abstopk": (10, 14),
  "batchtopk": (15, 22),
  "matryoshka": (15, 22),
  "hierarchical_topk": (16, 20),
  "jumprelu": (8, 8),
}


class CollectivesTest(parameterized.TestCase):
  @parameterized.parameters(*MOST)
  def test_large_ones_are_those_of_the_design_and_others_few(self, name):
    mesh = sharding.make_mesh(MESH)
    program = step_programs.compiled(
      step_programs.recipe(name, SIZES, "float32"),
      SIZES,
      mesh,
      kernels="auto",
      dtype=jnp.float32,
    )
    found = step_programs.collectives(program.as_text())
    for aux in (False, True):
      step = step_programs.executed(found, aux)
      large = {
        kind: step_programs.large(step, kind, SIZES, MESH)
        for kind in step_programs.KINDS
      }
      codes = [CODE] + [AUX_CODE] * aux if name in GATHERED else []
      self.assertEqual(large.pop("all-gather"), codes)
      self.assertEqual(large.pop("all-reduce"), [(ROWS, D)] * SUMMED[name][aux])
      self.assertEqual(set(map(tuple, large.values())), {()}, large)
      self.assertLessEqual(len(step), MOST[name][aux])
      self.check_small(step)

  def check_small(self, step):
    """Others have a number per row and entry, or are gradients of weights."""
    for c in step:
      self.assertGreater(c.times, 0, c)  # devices agree on the passes
      for _, shape in c.arrays:
        if OWN in shape or shape in (CODE, AUX_CODE, (ROWS, D)):
          continue
        if math.prod(shape) == OWN * D:  # W or its gradient, by columns
          continue
        most = ROWS * K_AUX if c.times == 1 else ROWS
        self.assertLessEqual(math.prod(shape), most, c)


if __name__ == "__main__":
  absltest.main()
