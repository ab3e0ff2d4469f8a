"""Tests of saejax.presets."""

import pathlib

from absl.testing import absltest, parameterized

from saejax import presets
from saejax.errors import InputError
from tests import shared


class PresetsTest(parameterized.TestCase):
  @parameterized.parameters(
    (["--preset=quickstart"],),
    (["-preset=quickstart"],),
    (["--preset", "quickstart"],),
  )
  def test_a_preset_is_its_flagfile(self, argv):
    (flag,) = presets.expanded(argv)
    path = pathlib.Path(flag.removeprefix("--flagfile="))
    self.assertIn("--run_dir=runs/quickstart", path.read_text())

  def test_other_arguments_stay_in_their_places(self):
    argv = ["x.py", "--a=1", "--preset=claims", "--presets=2", "--b"]
    found = presets.expanded(argv)
    self.assertEqual(found[:2] + found[3:], argv[:2] + argv[3:])

  @parameterized.parameters("nope", "", "../setup")
  def test_an_unknown_one_is_refused_with_those_there_are(self, name):
    with self.assertRaisesRegex(InputError, "preset=.*quickstart.*flagfile"):
      presets.expanded([f"--preset={name}"])

  def test_experiments_links_to_them(self):
    link = pathlib.Path(shared.ROOT, "experiments", "flags")
    self.assertTrue(link.is_symlink())
    self.assertEqual(link.resolve(), presets.FOLDER)
    self.assertFalse(pathlib.Path(link.readlink()).is_absolute())


if __name__ == "__main__":
  absltest.main()
