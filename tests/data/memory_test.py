"""How much memory there is: the least of machine, limit and container."""

import os
import pathlib
import resource
from unittest import mock

import jax
from absl.testing import absltest

from saejax.data import memory


class MemoryTest(absltest.TestCase):
  def test_the_least_of_machine_limit_and_container(self):
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    group = pathlib.Path(self.create_tempdir().full_path, "memory.max")
    with (
      mock.patch.object(memory, "_GROUPS", (str(group),)),
      mock.patch.object(resource, "getrlimit", return_value=free) as limit,
    ):
      self.assertEqual(memory.host(), machine)
      group.write_text("max\n")
      self.assertEqual(memory.host(), machine)
      group.write_text("3000000\n")
      self.assertEqual(memory.host(), 3_000_000)
      limit.return_value = (2_000_000, 2_000_000)
      self.assertEqual(memory.host(), 2_000_000)

  def test_a_device_without_memory_of_its_own_has_that_of_the_host(self):
    fake = mock.Mock()
    with mock.patch.object(jax, "local_devices", return_value=[fake]):
      fake.memory_stats.return_value = None
      self.assertEqual(memory.device(), memory.host())
      fake.memory_stats.return_value = {"bytes_limit": 80 * 10**9}
      self.assertEqual(memory.device(), 80 * 10**9)


if __name__ == "__main__":
  absltest.main()
