"""What processes say and refuse, as far as one of them can tell."""

import os
import pathlib
from unittest import mock

import jax.numpy as jnp
from absl.testing import absltest, parameterized

from saejax import processes
from saejax.errors import InputError
from saejax.processes import DistributedConfig


class OneProcessTest(parameterized.TestCase):
  def test_nothing_happens_in_one_process(self):
    tree = {"a": jnp.ones(3)}
    self.assertIs(processes.local(tree)["a"], tree["a"])
    self.assertEqual(processes.gathered([1, "a"]), [[1, "a"]])
    self.assertEqual(processes.first(lambda: 3), 3)
    processes.agree({"a": 1})
    processes.check_shared("nowhere")
    self.assertIsNone(processes.stop_signal())
    with processes.logged(pathlib.Path("nowhere")):
      pass
    self.assertFalse(pathlib.Path("nowhere").exists())

  def test_an_error_of_the_only_process_is_raised_as_it_is(self):
    error = InputError("a", 1, "b", "c")
    with self.assertRaises(InputError) as raised:
      processes.first(mock.Mock(side_effect=error))
    self.assertIs(raised.exception, error)

  @parameterized.parameters(
    ({"processes": 0}, "processes=0: must be at least 1"),
    ({"processes": 2, "process": 2}, r"process=2: must be in \[0, 2\)"),
    ({"coordinator": "host"}, "coordinator=host: must be HOST:PORT"),
    ({"heartbeat_timeout_seconds": 0}, "heartbeat_timeout_seconds=0"),
  )
  def test_settings_out_of_range_are_refused(self, settings, text):
    with self.assertRaisesRegex(InputError, text):
      DistributedConfig(**settings)

  @parameterized.parameters(
    ({}, False),
    ({"SLURM_NTASKS": "4"}, False),  # in the script of sbatch, before srun
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a[1-4]"}, True),
    ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, False),
  )
  def test_clusters_are_found(self, environment, wanted):
    given = {"JAX_PLATFORMS": "cpu", **environment}
    with mock.patch.dict(os.environ, given, clear=True):
      self.assertEqual(processes._on_cluster(), wanted)

  @parameterized.parameters(
    ("UNKNOWN: Gloo AllGather failed: Connection closed by peer", True),
    ("INTERNAL: Shutdown barrier in coordination service has failed", True),
    ("RESOURCE_EXHAUSTED: Out of memory", False),
    ("train.mesh=1,1,1: no connection", False),
  )
  def test_a_lost_process_is_told_from_other_errors(self, text, wanted):
    self.assertEqual(processes._is_lost(ValueError(text)), wanted)


if __name__ == "__main__":
  absltest.main()
