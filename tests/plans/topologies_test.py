"""Names of devices to plan for."""

import importlib.util
from unittest import mock

from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.plans import chips, topologies


class TopologiesTest(parameterized.TestCase):
  @parameterized.parameters(
    ("v5p-256", "128 chips: use v5p:4x4x8"),
    ("v5e-16", "16 chips: use v5e:4x4"),
    ("v6e:16x32", "v6e:16x16"),
    ("v5e:3x3", "choose one of v5e:1x1"),
    ("v3:2x2", "gpu:h200x8"),
    ("h100", "gpu:h200x8"),
    ("gpu:h200x3", "gpu:h200x8"),
    ("gpu:a100x8", "gpu:h200x8"),
  )
  def test_what_cannot_be_had_is_refused_with_what_can(self, name, remedy):
    with self.assertRaisesRegex(InputError, remedy) as caught:
      topologies.find(name)
    self.assertEqual(
      (caught.exception.field, caught.exception.value), ("topology", name)
    )

  @parameterized.parameters(("v5e:2x2", "aot"), ("gpu:h200x8", "aot-gpu"))
  def test_a_missing_compiler_is_named(self, name, remedy):
    with (
      mock.patch.object(importlib.util, "find_spec", return_value=None),
      self.assertRaisesRegex(InputError, f"not installed.*{remedy}"),
    ):
      topologies.find(name)

  def test_devices_here_have_measured_rates(self):
    found = topologies.find("local")
    self.assertGreater(found.chip.flops, 1e8)
    self.assertGreater(found.chip.bandwidth, 1e7)
    self.assertGreater(found.chip.memory, 2**20)

  @parameterized.parameters(*chips.TPUS)
  def test_slices_are_shapes_of_growing_size(self, name):
    sizes = [chips.chips_of(shape) for shape in chips.TPUS[name].slices]
    self.assertEqual(sizes, sorted(set(sizes)))


if __name__ == "__main__":
  absltest.main()
