"""Tests of steps whose selection is over the batch, in the sparse engine."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.kernels.fused_encode import batch
from saejax.recipes import batch_sparse
from saejax.training import step
from tests import toy
from tests.training.step_test import CASES, HYPER, batches, start


class BatchEngineTest(parameterized.TestCase):
  @parameterized.parameters((40, 1, "dense"), (128, 2, "sparse"))
  def test_auto_of_a_batch_is_sparse_from_64_latents_per_kept(self, n, k, want):
    recipe = batch_sparse.batchtopk(8, n, k, dead_after_tokens=10**6)
    self.assertEqual(start(recipe).sae.engine("auto", train=True), want)
    self.assertEqual(start(recipe).sae.engine("auto"), "dense")

  @parameterized.parameters(False, True)
  def test_a_batch_that_candidates_do_not_hold_is_done_over(self, stacked):
    recipe = CASES["batch"][0]
    state, (x,) = start(recipe, dead=True), batches(1, 32, 8)
    hyper = HYPER
    if stacked:
      two = lambda a: jnp.stack([a, a])
      state, hyper = jax.tree.map(two, state), jax.tree.map(two, HYPER)
    make = partial(step.make_step, recipe, stacked=stacked)
    want, metrics = jax.jit(make(engine="dense"))(state, hyper, x)
    for candidates, redone in ((1, 1), (16, 0)):
      with mock.patch.multiple(batch, BATCH_BYTES=0, CANDIDATES=candidates):
        got, found = jax.jit(make(engine="sparse"))(state, hyper, x)
      np.testing.assert_array_equal(found["redone"], redone)
      np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-5)
      toy.assert_trees_close(got.sae, want.sae, rtol=1e-4, atol=2e-5)
      toy.assert_trees_equal(got.stats, want.stats)


if __name__ == "__main__":
  absltest.main()
