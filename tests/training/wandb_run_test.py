"""Tests of saejax.training.wandb_run, with a module in place of the package."""

import importlib
import io
import pathlib
import sys
from functools import partial
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax import flagfiles
from saejax.data import streams
from saejax.errors import InputError
from saejax.recipes import row_sparse
from saejax.runs import folder as run_folder
from saejax.training import log, loop, sources, wandb_run
from saejax.training.members import Member
from tests import toy

D, BATCH, STEPS = 8, 48, 40
X = np.random.default_rng(0).normal(size=(500, D)).astype(np.float32)
MEMBERS = tuple(
  Member(arguments=(("k", k),), seed=0, learning_rate=3e-3) for k in (2, 4)
)
recipe = partial(row_sparse.topk, D, 32, dead_after_tokens=300)

FAKE = """
calls, fails = [], None

def _called(name, /, **what):
  if name == fails:
    raise OSError(f"{name}\\nfailed")
  calls.append((name, what))

def Settings(**given):
  return given

class Run:
  def log(self, data, step):
    _called("log", data=data, step=step)
  def finish(self):
    _called("finish")

def init(**given):
  _called("init", **given)
  return Run()
"""


class WandbRunTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    modules = self.folder / "modules"
    (modules / "wandb").mkdir(parents=True)
    (modules / "wandb/__init__.py").write_text(FAKE)
    paths = [str(modules), *sys.path]
    self.enter_context(mock.patch.object(sys, "path", paths))
    self.enter_context(mock.patch.dict(sys.modules))
    sys.modules.pop("wandb", None)
    importlib.invalidate_caches()

  @property
  def fake(self):
    return importlib.import_module("wandb")

  def named(self, name):
    return [what for called, what in self.fake.calls if called == name]

  def train(self, name="run/n32", project="mine"):
    draw = streams.array_draw({"x": X}, batch_rows=BATCH, seed=0, epochs=20)
    self.said = io.StringIO()
    config = loop.TrainConfig(
      batch_rows=BATCH, checkpoint_steps=10, log_steps=5, wandb=project
    )
    return loop.train(
      recipe,
      MEMBERS,
      sources.Drawn(draw, 110, arrays={"x": X}),
      config=config,
      folder=self.folder / name,
      total_steps=STEPS,
      fingerprint={"rows": "abc"},
      stream=self.said,
    )

  def write(self, steps, name="run/n32", *, project="mine", step=0):
    """What the loop does to the log, without training."""
    folder, self.said = self.folder / name, io.StringIO()
    open_ = partial(wandb_run.opened, folder, project, {"rows": "abc"})
    with log.RunLog(
      folder, step=step, stream=self.said, tracker=open_
    ) as opened:
      for s in steps:
        opened.record(s, 10 * s, {"a": {"loss": s / 3}, "b": {"l0": 4}})

  def test_scalars_of_each_member_are_those_of_the_records(self):
    self.write([5, 10])
    (init,) = self.named("init")
    self.assertEqual(init["project"], "mine")
    self.assertEqual(init["config"], {"rows": "abc"})
    self.assertEqual(init["name"], "run/n32")
    self.assertEqual(pathlib.Path(init["dir"]), self.folder / "run/n32")
    self.assertEqual(
      self.named("log"),
      [{"data": {"a/loss": s / 3, "b/l0": 4.0}, "step": s} for s in (5, 10)],
    )
    self.assertLen(self.named("finish"), 1)

  def test_the_config_is_the_flags_of_the_run(self):
    (self.folder / "run").mkdir()
    text = "--train.steps=40\n--sae.recipe=a=b\n"
    path = self.folder / "run" / flagfiles.RUN_FLAGS
    path.write_bytes(flagfiles.sealed(text))
    self.write([1])
    (init,) = self.named("init")
    self.assertEqual(init["config"], {"train.steps": "40", "sae.recipe": "a=b"})

  def test_a_resumed_run_has_the_same_id(self):
    self.write([1, 2, 3])
    self.write([3, 4], step=2)
    self.write([1], "other/n32")
    first, second, other = self.named("init")
    self.assertEqual(first["id"], second["id"])
    self.assertEqual(second["resume"], "allow")
    self.assertNotEqual(other["id"], first["id"])

  @parameterized.parameters("init", "log", "finish")
  def test_a_failure_is_said_once_and_all_records_are_written(self, call):
    setattr(self.fake, "fails", call)  # noqa: B010
    self.write([1, 2, 3])
    self.assertEqual(self.said.getvalue().count("warning"), 1)
    self.assertIn(f"(OSError: {call} failed)", self.said.getvalue())
    self.assertLen(log.read(self.folder / "run/n32"), 3)

  def test_a_package_that_cannot_be_imported_changes_nothing(self):
    path = self.folder / "modules/wandb/__init__.py"
    path.write_text("raise ImportError('broken')")
    self.write([1, 2])
    self.assertIn("(ImportError: broken)", self.said.getvalue())
    self.assertLen(log.read(self.folder / "run/n32"), 2)

  def test_a_failure_in_training_changes_no_bit(self):
    without = self.train("run/plain", project="")
    self.assertNotIn("wandb", sys.modules)
    setattr(self.fake, "fails", "log")  # noqa: B010
    found = self.train()
    self.assertLen(self.named("init"), 1)
    self.assertIn("(OSError: log failed)", self.said.getvalue())
    for a, b in zip(found, without, strict=True):
      toy.assert_trees_equal(a.sae, b.sae)
    # The project is no part of the run: it is resumed with one.
    again = self.train("run/plain")
    self.assertLen(self.named("init"), 2)
    toy.assert_trees_equal(again[0].sae, found[0].sae)

  def test_a_missing_package_is_refused_before_anything_is_made(self):
    # A folder that W&B itself made is no package.
    (self.folder / "modules/wandb/__init__.py").unlink()
    hidden = [p for p in sys.path if "site-packages" not in p]
    with mock.patch.object(sys, "path", hidden):
      with self.assertRaises(InputError) as caught:
        wandb_run.check("mine")
      self.assertEqual(caught.exception.field, "train.wandb")
      self.assertIn("pip install 'saejax[wandb]'", str(caught.exception))
      self.assertNotIn("\n", str(caught.exception))
      with self.assertRaises(InputError):
        self.train()
    self.assertFalse((self.folder / "run").exists())

  @parameterized.parameters("a/b", "x" * 129, "50%")
  def test_an_impossible_project_is_refused(self, project):
    with self.assertRaisesRegex(InputError, "train.wandb"):
      wandb_run.check(project)

  def test_the_project_decides_no_result(self):
    config = loop.TrainConfig(wandb="mine")
    self.assertEqual(config.decisive(), loop.TrainConfig().decisive())
    self.assertIn("train.wandb", run_folder.NO_RESULT)


if __name__ == "__main__":
  absltest.main()
