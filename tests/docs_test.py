"""The examples in docs/ run."""

import contextlib
import pathlib
import re
from typing import Any

from absl.testing import absltest

import saejax

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"


def own_method() -> list[str]:
  """The page's code: the method, and its use."""
  text = (DOCS / "own-method.md").read_text()
  return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def defined() -> dict[str, Any]:
  """The names that the page's method defines."""
  space: dict[str, Any] = {"__name__": "soft"}
  exec(own_method()[0], space)
  return space


class OwnMethodTest(absltest.TestCase):
  def test_the_method_of_under_40_lines_trains_and_loads(self):
    method, use = own_method()
    self.assertLess(len([line for line in method.splitlines() if line]), 40)
    space = defined()
    exec(use.replace("print(", "("), space)
    loss = space["metrics"]["loss"]
    self.assertLess(loss[-1].max(), 0.3 * loss[0].min())
    folder = self.create_tempdir().full_path + "/sae"
    saejax.save(space["saes"][0], folder)
    parts = {"soft.SoftThreshold": space["SoftThreshold"]}
    sae = saejax.load(folder, parts=parts)
    x = space["draw"](0)
    self.assertTrue((sae.encode(x) == space["saes"][0].encode(x)).all())


class OwnActivationsTest(absltest.TestCase):
  def test_the_examples_run_in_order(self):
    text = (DOCS / "own-activations.md").read_text()
    self.enter_context(contextlib.chdir(self.create_tempdir().full_path))
    space: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
      exec(block.replace("print(", "("), space)
    self.assertLess(space["metrics"].fvu, 1)
    self.assertEqual(space["store"].rows, 20_000)
    self.assertEqual(saejax.about("saes/mine"), {"data": "mine"})
    metrics = space["metrics"]
    self.assertAlmostEqual(metrics.nmse, metrics.fvu, delta=0.01)


if __name__ == "__main__":
  absltest.main()
