"""Every flagfile parses, and says what it is."""

import re

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
    name = re.search(r"experiments/(\w+)\.py", text)[1]
    module = script.load(name)
    values = flags.FlagValues()
    flags.DEFINE_multi_string("flagfile", [], "", flag_values=values)
    argv = [f"{name}.py", f"--flagfile={path}"]
    config_cls = config.widened(module.Config, argv)
    config.define(config_cls, values)
    config.parse(argv, values)
    found = config.from_flags(config_cls, values)
    stem = path.stem.replace("-", "_")
    self.assertIn(found.run_dir, (f"runs/{path.stem}", f"runs/{stem}"))


if __name__ == "__main__":
  absltest.main()
