"""Tests of saejax.training.compiling."""

import threading
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import machine, processes
from saejax.training import compiling


class Meeting:
  """A program whose compilation waits until others compile too."""

  in_tree = out_tree = None

  def __init__(self, name: str, barrier: threading.Barrier):
    self.name, self.barrier = name, barrier

  def as_text(self) -> str:
    return self.name

  def compile(self) -> str:
    self.barrier.wait(timeout=30)
    return self.name


class TogetherTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_programs_keep_their_names(self, cores):
    lowered = {
      factor: jax.jit(lambda x, f=factor: f * x).lower(jnp.ones(3))
      for factor in (2.0, 3.0, 5.0)
    }
    with mock.patch.object(machine, "cores", return_value=cores):
      compiled = compiling.together(lowered)
    self.assertEqual([*compiled], [2.0, 3.0, 5.0])
    for factor, program in compiled.items():
      np.testing.assert_array_equal(program(jnp.ones(3)), np.full(3, factor))

  def test_equal_programs_are_compiled_once(self):
    lower = lambda f, x: jax.jit(lambda x: f * x).lower(x)
    found = compiling.together(
      {
        "a": lower(2.0, jnp.ones(3)),
        "again": lower(2.0, jnp.ones(3)),
        "other": lower(3.0, jnp.ones(3)),
        "tree": jax.jit(lambda x: {"y": 2.0 * x}).lower(jnp.ones(3)),
      }
    )
    self.assertIs(found["a"], found["again"])
    self.assertIsNot(found["a"], found["other"])
    self.assertEqual([*found["tree"](jnp.ones(3))], ["y"])
    np.testing.assert_array_equal(found["other"](jnp.ones(3)), np.full(3, 3))

  def test_two_cores_compile_two_programs_at_the_same_time(self):
    barrier = threading.Barrier(2)
    programs = {name: Meeting(name, barrier) for name in "abcd"}
    with mock.patch.object(machine, "cores", return_value=2):
      found = compiling.together(programs)  # else the barrier breaks
    self.assertEqual(found, {name: name for name in "abcd"})

  def test_one_process_of_several_compiles_in_order_and_waits(self):
    order = []
    programs = {
      name: mock.Mock(compile=lambda name=name: order.append(name))
      for name in "abcd"
    }
    wait = lambda: order.append("sync")
    with (
      mock.patch.object(jax, "process_count", return_value=2),
      mock.patch.object(processes, "sync", wait),
    ):
      compiling.together(programs)
    self.assertEqual(order, [*"abcd", "sync"])

  def test_none_is_none(self):
    self.assertEqual(compiling.together({}), {})


if __name__ == "__main__":
  absltest.main()
