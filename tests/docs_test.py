"""The examples in docs/ run."""

import pathlib
import re

from absl.testing import absltest

import saejax

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"


class OwnMethodTest(absltest.TestCase):
  def test_the_method_of_under_40_lines_trains_and_loads(self):
    text = (DOCS / "own-method.md").read_text()
    method, use = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    self.assertLess(len([line for line in method.splitlines() if line]), 40)
    space = {"__name__": "soft"}
    exec(method, space)
    exec(use.replace("print(", "("), space)
    loss = space["metrics"]["loss"]
    self.assertLess(loss[-1].max(), 0.3 * loss[0].min())
    folder = self.create_tempdir().full_path + "/sae"
    saejax.save(space["saes"][0], folder)
    parts = {"soft.SoftThreshold": space["SoftThreshold"]}
    sae = saejax.load(folder, parts=parts)
    x = space["draw"](0)
    self.assertTrue((sae.encode(x) == space["saes"][0].encode(x)).all())


if __name__ == "__main__":
  absltest.main()
