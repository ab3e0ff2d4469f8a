"""The sharded step compiles for TPUs, by libtpu alone and without one.

Skipped where libtpu is not installed (extra `aot`, in an environment of its
own); a compilation takes about a minute.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from saejax.kernels import dispatch
from saejax.recipes import row_sparse, thresholds
from saejax.training import sharding, step
from saejax.training.recipe import Hyper
from tests import tpu

D, N, K, BATCH, MEMBERS = 768, 32768, 32, 4096, 2


class TpuCompileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.topology = tpu.topology("v5e")

  def compile(self, recipe, engine, shape):
    """One step of two members on a mesh of ensemble, data and latent."""
    mesh = Mesh(
      np.array(self.topology.devices).reshape(shape),
      sharding.AXES,
      axis_types=(AxisType.Auto,) * 3,
    )

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
    one_step = step.make_step(recipe, stacked=True, engine=engine)
    abstract_mesh = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    with abstract_mesh, dispatch.kernels("pallas"):
      return (
        jax.jit(one_step, donate_argnums=0, out_shardings=(where, None))
        .lower(state, hyper, x)
        .compile()
      )

  def check(self, program, *kernels):
    memory = program.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    self.assertLess(used, 16e9)  # of a v5e chip
    for kernel in kernels:
      self.assertIn(kernel, program.as_text())

  @parameterized.parameters(((1, 2, 2),), ((2, 1, 2),))
  def test_sparse_step_compiles_and_fits_on_four_chips(self, shape):
    recipe = row_sparse.topk(D, N, K, dead_after_tokens=10**6, dtype="bfloat16")
    program = self.compile(recipe, "sparse", shape)
    self.check(program, "encode_candidates", "encode_largest")
    self.assertIn("all-gather", program.as_text())

  @parameterized.parameters(((1, 2, 2),), ((2, 1, 2),))
  def test_jumprelu_step_compiles_and_fits_on_four_chips(self, shape):
    recipe = thresholds.jumprelu(
      D,
      N,
      coefficient=1e-3,
      coefficient_warmup=0.0,
      dead_after_tokens=10**6,
      dtype="bfloat16",
    )
    program = self.compile(recipe, "dense", shape)
    self.check(program, "jumprelu_forward", "jumprelu_backward")


if __name__ == "__main__":
  absltest.main()
