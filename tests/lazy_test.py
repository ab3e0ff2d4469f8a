"""Tests of saejax.lazy, and of the names that `import saejax` offers."""

import pkgutil
import subprocess
import sys
import types

from absl.testing import absltest

import saejax
from tests import shared

CODE = """
import sys, saejax
assert "jax" not in sys.modules, "import saejax imports jax"
assert saejax.evals.matching.match and saejax.training.parts.losses.mse
assert saejax.data.store.reader.open is saejax.open_store
assert saejax.kernels
assert "torch" not in sys.modules
try:
  saejax.nothing
except AttributeError as error:
  assert "nothing" in str(error)
else:
  raise AssertionError("saejax.nothing exists")
"""


class LazyTest(absltest.TestCase):
  def test_a_fresh_process_reaches_every_subpackage_and_imports_no_more(self):
    done = subprocess.run(
      [sys.executable, "-c", CODE],
      cwd=shared.ROOT,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 0, done.stderr)

  def test_every_name_resolves_to_what_it_says(self):
    for name in saejax.__all__:
      value = getattr(saejax, name)
      self.assertIsNotNone(value, name)
      if name in saejax._MODULES:
        self.assertIsInstance(value, types.ModuleType, name)
    self.assertContainsSubset(saejax.__all__, dir(saejax))
    self.assertCountEqual(saejax.__all__, [*saejax._NAMES, *saejax._MODULES])

  def test_every_subpackage_is_a_name(self):
    found = pkgutil.iter_modules(saejax.__path__)
    packages = {module.name for module in found if module.ispkg}
    names = {*saejax._MODULES} - {"config", "errors"}
    self.assertEqual(packages - {"presets"} | {"kernels"}, names)


if __name__ == "__main__":
  absltest.main()
