"""Every flagfile parses, and says what it is."""

from absl import flags
from absl.testing import absltest, parameterized

from saejax import config
from tests.experiments import script

FILES = sorted((script.ROOT / "experiments" / "flags").glob("*.flags"))


class FlagfileTest(parameterized.TestCase):
  @parameterized.parameters(*[path.name for path in FILES])
  def test_flagfile_makes_a_config_and_opens_with_its_source(self, name):
    path = script.ROOT / "experiments" / "flags" / name
    text = path.read_text()
    for word in ("Paper:", "Command:", "Time:", "Expect:"):
      self.assertIn(word, text)
    module = script.load("scaling")
    values = flags.FlagValues()
    flags.DEFINE_multi_string("flagfile", [], "", flag_values=values)
    config.define(module.Config, values)
    config.parse(["scaling.py", f"--flagfile={path}"], values)
    found = config.from_flags(module.Config, values)
    self.assertEqual(found.run_dir, f"runs/{path.stem}")
    self.assertGreaterEqual(len(found.sae.n), 3)


if __name__ == "__main__":
  absltest.main()
