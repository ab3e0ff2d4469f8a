"""Plans for eight devices: what the compiler says, and the mesh that is found."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.plans import chips, floors, planner, topologies
from saejax.recipes import arguments
from saejax.sae.context import Batch
from saejax.training import config, step

D, N, K, ROWS = 64, 1024, 8, 256
CHIP = chips.Chip(
  name="test", flops=1e12, bandwidth=1e11, memory=2**30, link=1e10
)


def planned(name="topk", members=1, stacked=False, rows=ROWS, **given):
  train = config.TrainConfig(batch_rows=rows, steps=1000)
  given = given or {"k": K}
  recipe = arguments.make(
    name, d=D, n=N, arguments=given, **train.options(1000)
  )
  x = jax.ShapeDtypeStruct((rows, D), jnp.float32)
  return planner.Step(
    recipe=recipe, batch=Batch(x=x), members=members, stacked=stacked
  )


def devices(**changed):
  chip = dataclasses.replace(CHIP, **changed)
  return topologies.Topology(
    name="test:8", chip=chip, devices=tuple(jax.devices()[:8])
  )


class PlannerTest(parameterized.TestCase):
  @parameterized.parameters((1, 1, 8), (1, 8, 1), (1, 2, 4))
  def test_arguments_are_the_bytes_of_state_and_batch(self, *mesh):
    made = planned()
    found = planner.compiled(made, devices(), mesh)
    state = jax.eval_shape(
      lambda key: step.init_state(made.recipe, key), jax.random.key(0)
    )
    leaves = [a for a in jax.tree.leaves(state) if hasattr(a, "shape")]
    split = lambda a: mesh[2] if N in a.shape else 1
    wanted = sum(
      np.prod(a.shape) * 4 / split(a)
      for a in leaves
      if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)
    )
    wanted += ROWS * D * 4 / mesh[1]
    self.assertAlmostEqual(found["memory"]["arguments"] / wanted, 1, delta=0.02)
    self.assertTrue(found["fits"])

  def test_options_that_save_memory_are_planned(self):
    small = {"param_dtype": "bfloat16", "second_moments": "row"}
    train = config.TrainConfig(batch_rows=ROWS, steps=1000, **small)
    options = train.options(1000)
    recipe = arguments.make("topk", d=D, n=N, arguments={"k": K}, **options)
    made = dataclasses.replace(
      planned(), recipe=recipe, accumulate=4, shard_optimizer=True
    )
    found = planner.compiled(made, devices(), (1, 2, 4))
    # Weights in bfloat16 on 4 devices, first moments in float32 on 8.
    wanted = 2 * N * D * (2 / 4 + 4 / 8) + ROWS * D * 4 / 2
    self.assertAlmostEqual(found["memory"]["arguments"] / wanted, 1, delta=0.1)
    held = floors.parameters(made.sae) / 4
    least = floors.work(made.sae, rows=ROWS, mesh=(2, 4), engine="sparse")
    update = (2 * 6 + 2) / 2 + 4 + 8 * 3
    more = (update - floors.ADAM_BYTES) * held
    self.assertEqual(found["bytes"]["minimum"], least.bytes + more)

  def test_latents_over_devices_exchange_candidates_and_reconstructions(self):
    found = planner.compiled(planned(), devices(), (1, 1, 8))
    kinds = found["collectives"]["without_aux"]["kinds"]
    code, x = 2 * ROWS * 8 * K * 4, ROWS * D * 4
    self.assertBetween(kinds["all-gather"]["bytes"], code, 1.2 * code)
    self.assertBetween(kinds["all-reduce"]["bytes"], x, 1.6 * x)
    both = found["collectives"]["with_aux"]["on_links"]
    self.assertGreater(both, found["collectives"]["without_aux"]["on_links"])

  def test_the_mesh_follows_the_links(self):
    """Few rows: gradients cost more than candidates; many rows: less."""
    few = next(planner.meshes(planned(), devices()))
    self.assertEqual(few, (1, 1, 8))
    many = next(planner.meshes(planned(rows=ROWS * 256), devices()))
    self.assertEqual(many, (1, 8, 1))

  def test_what_does_not_fit_is_tried_on_other_meshes(self):
    found = planner.plan(planned(), devices(memory=2**16), tries=2)
    self.assertLen(found, 2)
    self.assertFalse(any(record["fits"] for record in found))
    self.assertGreater(found[0]["memory"]["total"], 2**16)

  def test_members_in_turn_hold_all_states_and_stacked_one_program(self):
    one = planner.compiled(planned(), devices(), (1, 1, 8))
    turn = planner.compiled(planned(members=4), devices(), (1, 1, 8))
    self.assertEqual(
      turn["memory"]["temporaries"], one["memory"]["temporaries"]
    )
    self.assertBetween(
      turn["memory"]["others"] / one["memory"]["arguments"], 2, 3
    )
    stacked = planner.compiled(
      planned(members=4, stacked=True), devices(), (4, 1, 2)
    )
    self.assertEqual(stacked["memory"]["others"], 0)
    # A member a device, on 2 devices of latents instead of 8.
    self.assertEqual(stacked["flops"]["minimum"], 4 * one["flops"]["minimum"])

  def test_a_dense_engine_does_more(self):
    dense = planner.compiled(
      planned("jumprelu", coefficient=1e-3), devices(), (1, 1, 8)
    )
    sparse = planner.compiled(planned(), devices(), (1, 1, 8))
    self.assertEqual(dense["engine"], "dense")
    self.assertAlmostEqual(
      dense["flops"]["minimum"], 10 * ROWS * D * N / 8, delta=2 * ROWS * N
    )
    self.assertGreater(dense["flops"]["compiled"], sparse["flops"]["minimum"])

  @parameterized.parameters(
    (
      "Ran out of memory in memory space hbm. Used 28.70G of 15.75G hbm.",
      28.70 * 2**30,
    ),
    (
      "Ran out of memory on HBM, the total memory required for HLO temporaries "
      "(512.00G) exceeds available HBM (15.75G).",
      512 * 2**30,
    ),
  )
  def test_the_compilers_refusals_are_read(self, message, wanted):
    def refuse(self):
      raise jax.errors.JaxRuntimeError(message)

    with mock.patch.object(jax.stages.Lowered, "compile", refuse):
      found = planner.compiled(planned(), devices(), (1, 1, 8))
    self.assertFalse(found["fits"])
    self.assertAlmostEqual(found["memory"]["total"], wanted, delta=1)

  @parameterized.parameters(
    ((1, 2, 2), "must use the 8 devices"), ((1, 3, 1), "must use|needs|divide")
  )
  def test_a_mesh_that_cannot_be_is_refused(self, mesh, rule):
    with self.assertRaisesRegex(InputError, rule):
      planner.plan(planned(), devices(), mesh=mesh)

  def test_sizes_that_nothing_divides_are_refused(self):
    made = planned(rows=255)
    odd = topologies.Topology(
      name="test:7", chip=CHIP, devices=tuple(jax.devices()[:7])
    )
    with self.assertRaisesRegex(InputError, "no mesh of 7 devices"):
      planner.plan(made, odd)


if __name__ == "__main__":
  absltest.main()
