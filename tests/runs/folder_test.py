"""Tests of saejax.runs.folder: whose run a folder holds."""

import dataclasses
import json
import pathlib

from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.runs import folder
from saejax.training import loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  train: loop.TrainConfig = loop.TrainConfig()
  k: int = 8


class OpenedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path, "run")

  def open(self, config: Config) -> None:
    with folder.opened(self.path, config):
      pass

  def test_the_same_settings_open_it_again_and_others_do_not(self):
    self.open(Config())
    self.open(Config())
    with self.assertRaisesRegex(InputError, "has a run with k"):
      self.open(Config(k=4))

  def test_cadence_and_devices_are_not_part_of_the_identity(self):
    self.open(Config())
    self.open(Config(train=loop.TrainConfig(log_steps=3, mesh=(2, 1, 1))))

  def test_without_its_identity_it_is_refused_and_nothing_is_written(self):
    self.open(Config())
    (self.path / folder.IDENTITY).unlink()
    flags = (self.path / folder.FLAGS).read_bytes()
    with self.assertRaisesRegex(InputError, "identity.json.*restore it"):
      self.open(Config(k=4))
    self.assertEqual((self.path / folder.FLAGS).read_bytes(), flags)
    self.assertFalse((self.path / folder.IDENTITY).exists())

  @parameterized.parameters("[]", "{", "null", "[" * 100_000)
  def test_a_damaged_identity_is_refused_by_name(self, text):
    self.open(Config())
    (self.path / folder.IDENTITY).write_text(text)
    with self.assertRaisesRegex(InputError, "identity.json"):
      self.open(Config())

  def test_the_identity_is_json_without_the_folder(self):
    self.open(Config())
    found = json.loads((self.path / folder.IDENTITY).read_text())
    self.assertEqual(found["k"], 8)
    self.assertNotIn("run_dir", found)


if __name__ == "__main__":
  absltest.main()
