"""Harvests by a model on a mesh: the store of one device, up to rounding."""

import dataclasses
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import harvest
from saejax.errors import InputError
from tests.data import tiny
from tests.data.text import rules_test


class HarvestMeshTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.config = dataclasses.replace(
      rules_test.config(str(self.folder)), point="mlp_hidden", score="entropy"
    )

  def harvest(self, **changes):
    return harvest.harvest(dataclasses.replace(self.config, **changes))

  def test_a_mesh_is_no_part_of_a_stores_identity(self):
    for alone, divided in zip(
      self.harvest(),
      self.harvest(
        mesh=(2, 2), first_device=3, dir=str(self.folder / "others")
      ),
      strict=True,
    ):
      self.assertEqual(alone.path.name, divided.path.name)
      self.assertNotEqual(alone.path, divided.path)
      want, got = tiny.everything(alone), tiny.everything(divided)
      self.assertEqual(want.keys(), got.keys())
      for name, column in want.items():
        if column.dtype == np.float32:
          atol = 1e-5 * np.abs(column).max()
          np.testing.assert_allclose(got[name], column, rtol=0, atol=atol)
        else:
          np.testing.assert_array_equal(got[name], column)

  @parameterized.parameters(
    ({"mesh": (3, 1)}, "harvest.forward_batch=4: must divide by 3"),
    ({"mesh": (1, 8)}, "harvest.mesh=.1, 8.: the 8 devices of the model axis"),
    ({"mesh": (2, 8)}, "needs 16 devices from number 0"),
    ({"mesh": (1, 2), "first_device": 7}, "2 devices from number 7"),
    ({"mesh": (1,)}, "harvest.mesh=.*two sizes"),
    ({"mesh": (0, 2)}, "harvest.mesh=.*at least 1"),
  )
  def test_meshes_that_do_not_fit_are_refused_before_any_file(
    self, changes, part
  ):
    with self.assertRaisesRegex(InputError, part):
      self.harvest(**changes)
    self.assertFalse((self.folder / "stores").exists())


if __name__ == "__main__":
  absltest.main()
