"""What a training step exchanges between devices is known and bounded."""

import math

import jax.numpy as jnp
from absl.testing import absltest, parameterized

from benchmarks import step_programs
from saejax.plans import programs
from saejax.training import sharding

SIZES = step_programs.Sizes(rows=256, d=64, n=1024, k=16)
MESH = (1, 2, 4)
ROWS, D, OWN = SIZES.rows // MESH[1], SIZES.d, SIZES.n // MESH[2]
K_AUX, PREFIXES = SIZES.k, 5
# Gathered: values and indices of the candidates of every shard.
CODE, AUX_CODE = (2, ROWS, MESH[2] * SIZES.k), (2, ROWS, MESH[2] * K_AUX)
CANDIDATES = (2, ROWS, MESH[2] * 4 * SIZES.k)  # of a selection over the batch
# Of activation size: what is gathered, and what is summed, without AuxK and with
# it; then most collectives in a step, likewise.
GATHERED = {
  "topk": CODE,
  "abstopk": CODE,
  "hierarchical_topk": CODE,
  "batchtopk": CANDIDATES,
  "matryoshka": CANDIDATES,
}
ONE, ENTRIES, RUNS = (ROWS, D), (1, ROWS, D), (PREFIXES, ROWS, D)
SUMMED = {
  "topk": [ONE],
  "abstopk": [ONE],
  "batchtopk": [ENTRIES],
  "matryoshka": [ENTRIES, RUNS],
  "hierarchical_topk": [],  # squares of columns instead of residuals
  "jumprelu": [ONE],
}
WITH_AUX = {
  "jumprelu": [ONE],
  "hierarchical_topk": [ONE, ONE],
}  # others: one more
MOST = {
  "topk": (12, 15),
  "abstopk": (10, 14),
  "batchtopk": (17, 21),
  "matryoshka": (17, 21),
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
    found = programs.collectives(program.as_text())
    for aux in (False, True):
      step = programs.executed(found, aux)
      large = {
        kind: step_programs.large(step, kind, SIZES, MESH)
        for kind in programs.KINDS
      }
      codes = [GATHERED[name]] + [AUX_CODE] * aux if name in GATHERED else []
      self.assertEqual(large.pop("all-gather"), codes)
      sums = SUMMED[name]
      if aux:
        sums = WITH_AUX.get(name, [ONE, *sums])
      self.assertCountEqual(large.pop("all-reduce"), sums)
      self.assertEqual(set(map(tuple, large.values())), {()}, large)
      self.assertLessEqual(len(step), MOST[name][aux])
      self.check_small(step)

  def check_small(self, step):
    """Others have a number per row and entry, or are gradients of weights."""
    for c in step:
      self.assertGreater(c.times, 0, c)  # devices agree on the passes
      for _, shape in c.arrays:
        known = (CODE, AUX_CODE, CANDIDATES, ONE, ENTRIES, RUNS)
        if OWN in shape or shape in known:
          continue
        if math.prod(shape) == OWN * D:  # W or its gradient, by columns
          continue
        # A shard's entries are k per row and some room.
        most = 1.5 * ROWS * K_AUX if c.times == 1 else ROWS
        self.assertLessEqual(math.prod(shape), most, c)


if __name__ == "__main__":
  absltest.main()
