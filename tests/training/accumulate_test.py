"""A batch computed in parts gives what the whole batch gives."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.recipes import batch_sparse, nested, row_sparse, thresholds
from saejax.sae.context import Batch
from saejax.training import (
  config,
  fit,
  members,
  moments,
  passes,
  sharding,
  step,
)
from saejax.training.parts import bias_rule, losses, rules, tilted
from saejax.training.recipe import Hyper, Term
from tests import toy

D, N, ROWS = 8, 32, 24
OPTIONS = {"dead_after_tokens": ROWS // 2, "clip_norm": 1.0, "steps": 20}
SUMS = {
  "topk": partial(row_sparse.topk, D, N, 2, k_aux=4),
  "gated": partial(thresholds.gated, D, N, coefficient=0.1),
  "msae": partial(nested.msae, D, N, levels=4),
}


HYPER = Hyper(learning_rate=jnp.asarray(3e-3))


def started(recipe):
  sample = 3 * toy.rows(ROWS, D, seed=50) + 1
  return step.init_state(recipe, jax.random.key(0), sample=sample)


def stepped(recipe, parts, batches, **how):
  """States and metrics after each batch."""
  one = jax.jit(step.make_step(recipe, accumulate=parts, **how))
  state, found = jax.jit(lambda: started(recipe))(), []
  for batch in batches:
    state, metrics = one(state, HYPER, batch)
    found.append((state, metrics))
  return found


def batches(weighted: bool, count: int = 4) -> list[Batch]:
  """Rows off centre; with weights of which some are 0."""
  made = []
  for i in range(count):
    x = 3 * toy.rows(ROWS, D, seed=i) + 1
    weight = jnp.abs(toy.rows(ROWS, 1, seed=90 + i)[:, 0])
    weight = jnp.where(jnp.arange(ROWS) % 5 == i, 0, weight)
    made.append(Batch(x=x, weight=weight if weighted else None))
  return made


class AccumulateTest(parameterized.TestCase):
  @parameterized.parameters(("topk", True), ("gated", False), ("msae", False))
  def test_parts_give_what_the_batch_gives(self, name, weighted):
    recipe, given = SUMS[name](**OPTIONS), batches(weighted)
    whole = stepped(recipe, 1, given)
    for got, want in zip(stepped(recipe, 4, given), whole, strict=True):
      toy.assert_trees_close(got[1], want[1], rtol=2e-4, atol=1e-5)
      toy.assert_trees_close(got[0].sae, want[0].sae, rtol=2e-4, atol=2e-5)
      since = rules.SINCE_FIRED
      np.testing.assert_array_equal(got[0].stats[since], want[0].stats[since])
    if name == "topk":  # the parts agree on AuxK, which is not idle
      self.assertGreater(whole[-1][1]["aux"], 0)

  def test_stacked_members_with_several_k_are_computed_in_parts(self):
    recipe = lambda k: row_sparse.topk(D, N, k, k_aux=4, **OPTIONS)
    own = [fit.member(seed, k=k) for seed, k in ((0, 2), (1, 4))]
    mesh, found = sharding.make_mesh((1, 1, 1)), []
    for parts in (1, 3):
      group = members.Group(
        recipe, own, mesh=mesh, stacked=True, accumulate=parts
      )
      group.check(("x",))
      states = group.init(toy.rows(20, D))
      for batch in batches(False):
        states, metrics, _ = group.run(states, [batch])
      found.append((states[0].sae, metrics[0]))
    toy.assert_trees_close(found[1], found[0], rtol=2e-4, atol=2e-5)

  def test_methods_that_parts_do_not_add_up_to_are_refused(self):
    topk = SUMS["topk"](**OPTIONS)
    of_batch = lambda record: jnp.square(jnp.mean(record.forward.x_hat))
    density = (*topk.rules, bias_rule.BiasAdaptation(targets=(0.1,)))
    refused = {
      "selects latents over": batch_sparse.batchtopk(D, N, 3, **OPTIONS),
      "does not average": dataclasses.replace(topk, reduce=tilted.Tilted(1.0)),
      "batch loss 'square'": dataclasses.replace(
        topk, terms={"square": Term(fn=of_batch)}
      ),
      "BiasAdaptation": dataclasses.replace(topk, rules=density),
    }
    for words, recipe in refused.items():
      state, (batch,) = (
        jax.eval_shape(lambda r=recipe: started(r)),
        batches(False, 1),
      )
      one = step.make_step(recipe, accumulate=2)
      with self.assertRaisesRegex(InputError, f"accumulate.*{words}"):
        jax.eval_shape(one, state, HYPER, batch)

  def test_a_number_of_parts_that_does_not_divide_the_batch_is_refused(self):
    with self.assertRaisesRegex(InputError, "accumulate.*divide"):
      config.TrainConfig(batch_rows=10, accumulate=4)
    with self.assertRaisesRegex(InputError, "accumulate.*divide"):
      passes._split(batches(False, 1)[0], 5)

  def test_merged_moments_are_those_of_all_rows(self):
    x, weight = 5 + toy.rows(30, D), jnp.arange(30) % 4 / 2
    parts = [moments.measured(x[i::3], weight[i::3]) for i in range(3)]
    zeros = jax.tree.map(jnp.zeros_like, parts[0])
    merged = zeros
    for part in parts:
      merged = merged.merged(part)
    want = losses.variance(x, weight)
    np.testing.assert_allclose(merged.variance, want, rtol=1e-5)
    mean = losses.mean_row(x, weight)
    np.testing.assert_allclose(merged.mean, mean, rtol=1e-5)
    same = jnp.full((6, D), 1e3)
    self.assertEqual(moments.measured(same).merged(zeros).variance, 0)


if __name__ == "__main__":
  absltest.main()
