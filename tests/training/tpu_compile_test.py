"""The sharded step compiles for TPUs, by libtpu alone and without one.

Skipped where libtpu is not installed (extra `aot`, in an environment of its
own); a compilation takes about a minute.
"""

import importlib.util
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from saejax.recipes import row_sparse
from saejax.training import sharding, step
from saejax.training.recipe import Hyper

D, N, K, BATCH, MEMBERS = 768, 16384, 32, 4096, 2
# Without them libtpu looks for the chips' own metadata server, or for a lock.
SETTINGS = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}


class TpuCompileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if importlib.util.find_spec("libtpu") is None:
      self.skipTest("libtpu is not installed (extra 'aot')")
    for name, value in SETTINGS.items():
      os.environ.setdefault(name, value)
    self.topology = topologies.get_topology_desc("v5e:2x2", platform="tpu")

  @parameterized.parameters(((1, 2, 2),), ((2, 1, 2),))
  def test_sparse_step_compiles_and_fits_on_four_chips(self, shape):
    mesh = Mesh(
      np.array(self.topology.devices).reshape(shape),
      sharding.AXES,
      axis_types=(AxisType.Auto,) * 3,
    )
    recipe = row_sparse.topk(D, N, K, dead_after_tokens=10**6, dtype="bfloat16")

    def init():
      keys = jax.random.split(jax.random.key(0), MEMBERS)
      return jax.vmap(partial(step.init_state, recipe))(keys)

    state = jax.eval_shape(init)
    where = sharding.state_shardings(mesh, state, stacked=True)
    abstract = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    state = jax.tree.map(abstract, state, where)
    one = NamedSharding(mesh, P("ensemble"))
    of_members = lambda dtype: jax.ShapeDtypeStruct(
      (MEMBERS,), dtype, sharding=one
    )
    hyper = Hyper(
      learning_rate=of_members(jnp.float32), k=of_members(jnp.int32)
    )
    x = jax.ShapeDtypeStruct(
      (BATCH, D), jnp.bfloat16, sharding=sharding.rows_sharding(mesh)
    )
    one_step = step.make_step(recipe, stacked=True, engine="sparse")
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      compiled = (
        jax.jit(one_step, donate_argnums=0, out_shardings=(where, None))
        .lower(state, hyper, x)
        .compile()
      )
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    self.assertLess(used, 16e9)  # of a v5e chip
    self.assertIn("all-gather", compiled.as_text())


if __name__ == "__main__":
  absltest.main()
