"""Bad input to the scripts: one line, exit code 2, nothing lost."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.store import create
from tests.experiments import script

D = 16
TINY = (
  "--sae.n=32",
  "--sae.k=4",
  "--train.batch_rows=64",
  "--train.checkpoint_steps=5",
)


def make_store(folder, rows=1_000, d=D, nan=False, seed=0):
  x = np.random.default_rng(seed).normal(size=(rows, d)).astype(np.float32)
  if nan:
    x[rows // 2, 0] = np.nan
  return create.write_store(
    folder,
    {"x": x, "doc": np.arange(rows) // 50},
    about={
      "model": {"name": "tiny"},
      "site": {"layer": 2, "point": "resid_post"},
    },
    bucket_rows=512,
    shard_rows=256,
    chunk_rows=64,
  )


def snapshot(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob("*"))
    if p.is_file() and p.name != ".lock"
  }


class BadInputTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.run_dir = self.folder / "run"
    self.store = make_store(self.folder / "store").path
    self.held_out = make_store(self.folder / "held", 300, seed=1).path

  def train(self, *more, store=None, held_out=None):
    return script.run(
      "train",
      f"--run_dir={self.run_dir}",
      f"--store={store or self.store}",
      f"--held_out={held_out or self.held_out}",
      *TINY,
      *more,
    )

  def assert_refused(self, found, flag, *words):
    code, _, err = found
    self.assertEqual(code, 2, err)
    lines = [x for x in err.splitlines() if not x.startswith("preflight")]
    self.assertLen(lines, 1, err)
    self.assertStartsWith(lines[0], flag)
    for word in words:
      self.assertIn(word, lines[0])
    self.assertIn(";", lines[0])  # rule; remedy

  @parameterized.parameters(
    ("--sae.k=33", "--sae.k=33", "n=32"),
    ("--sae.k=0", "--sae.k=0", "in [1, n=32]"),
    ("--sae.n=0", "--sae.n=0", "at least 1"),
    ("--sae.n=32,32", "--sae.n=32,32", "different"),
    ("--sae.seeds=0", "--sae.seeds=0", "at least 1"),
    ("--sae.prep=zscore", "--sae.prep=zscore", "centre_scale"),
    ("--train.batch_rows=0", "--train.batch_rows=0", "at least 1"),
    ("--train.batch_rows=x", "--train.batch_rows=x", "whole number"),
    ("--train.learning_rate=-1", "--train.learning_rate=-1", "positive"),
    ("--train.mesh=1,1,3", "--train.mesh", "devices"),
    ("--train.batch_rows=2000", "--train.batch_rows=2000", "1000"),
    ("--train.warmup_steps=500", "--train.warmup_steps=500", "of the run"),
    ("--sae.n=100000000", "--sae.n=100000000", "of memory"),
    ("--sae.n=1000000000000000000", "--sae.n=1", "of memory"),
    ("--train.mesh=1,1", "--train.mesh", "three"),
    ("--train.batch_row=64", "--train.batch_row", "--train.batch_rows"),
    ("--sae.latents=64", "--sae.latents", "--help"),
    ("--flagfile=none.flags", "--flagfile=none.flags", "cannot be opened"),
    ("64", "argument=64", "not a flag"),
  )
  def test_flag(self, flag, shown, word):
    self.assert_refused(self.train(flag), shown, word)
    self.assertFalse(self.run_dir.exists())  # so a correction is not refused

  def test_a_method_whose_batch_has_no_parts(self):
    found = self.train("--sae.recipe=batchtopk", "--train.accumulate=2")
    self.assert_refused(found, "--train.accumulate=2", "batchtopk", "whole")
    self.assertFalse(self.run_dir.exists())

  @parameterized.parameters(
    ("--harvest.model=other", "other", "tiny"),
    ("--harvest.layer=3", "3", "2"),
    ("--harvest.point=mlp_out", "mlp_out", "resid_post"),
    ("--harvest.d=384", "384", "16"),
  )
  def test_store_of_another_model_site_or_width(self, flag, wanted, found):
    self.assert_refused(self.train(flag), flag.split("=")[0], wanted, found)

  def test_rows_that_teach_nothing_are_refused_and_outliers_warned_of(self):
    path = self.folder / "equal"
    equal = create.write_store(path, np.ones((1000, 16), np.float32)).path
    self.assert_refused(self.train(store=equal), "--store", "rows are equal")
    self.assertFalse(self.run_dir.exists())
    x = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    x[3] *= 2000
    far = create.write_store(self.folder / "far", x).path
    code, _, err = self.train(store=far)
    self.assertEqual(code, 0, err)
    self.assertRegex(err, "warning: .*far: norms reach .* times the median")

  def test_held_out_of_another_width(self):
    other = make_store(self.folder / "wide", d=8).path
    self.assert_refused(self.train(held_out=other), "--held_out", "d=16")

  @parameterized.parameters(
    ("train", "train", "must have other rows"),
    ("held_out", "train", "--store"),
    ("train", "other", "layer=2 (now 3)"),
    ("train", "tokens", "tokenizer.hash=b"),
  )
  def test_a_held_out_store_that_is_none(self, store, held_out, words):
    site = {"layer": 2, "point": "resid_post"}
    model, tokenizer = {"name": "tiny"}, {"hash": "b", "kind": "bpe"}
    made = {
      "train": {"split": "train", "site": site, "tokenizer": tokenizer},
      "held_out": {"split": "held_out", "site": site, "model": model},
      "other": {"site": {**site, "layer": 3}, "model": model},
      "tokens": {"tokenizer": {"hash": "c"}},
    }
    paths = {}
    for seed, name in enumerate({store, held_out}):
      x = np.random.default_rng(seed).normal(size=(300, D))
      paths[name] = create.write_store(
        self.folder / name,
        x.astype(np.float32),
        about={k: v for k, v in made[name].items() if k != "split"},
        split=made[name].get("split"),
      ).path
    code, _, err = self.train(store=paths[store], held_out=paths[held_out])
    self.assertEqual(code, 2, err)
    self.assertIn(words, err)
    self.assertFalse(self.run_dir.exists())

  def test_what_decides_no_result_is_accepted(self):
    self.assertEqual(self.train()[0], 0)
    points = (self.run_dir / "n32" / "points.json").read_bytes()
    moved = self.folder / "moved"
    shutil.copytree(self.store, self.folder / "copy")
    again = [
      self.train("--train.log_steps=3", "--train.checkpoint_steps=7"),
      self.train(store=f"{self.store}/"),
      self.train(store=os.path.relpath(self.store)),
      self.train(store=self.folder / "copy"),
    ]
    self.run_dir.rename(moved)
    again.append(script.run("train", f"--flagfile={moved / 'run.flags'}"))
    for code, _, err in again:
      self.assertEqual(code, 0, err)
    self.assertFalse(self.run_dir.exists())
    self.assertEqual((moved / "n32" / "points.json").read_bytes(), points)
    self.assertNotIn("run_dir", (moved / "run.flags").read_text())

  def test_a_store_of_other_rows_under_the_same_name_is_refused(self):
    self.assertEqual(self.train()[0], 0)
    shutil.rmtree(self.store)
    make_store(self.store, seed=7)
    self.assert_refused(self.train(), "--run_dir", "store=", "run.flags")

  def test_deleted_outputs_are_made_again(self):
    self.assertEqual(self.train()[0], 0)
    saes = self.run_dir / "saes"
    weights = saes / "n32-k4-seed0" / "sae.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    self.assertEqual(self.train()[0], 0)
    self.assertEqual(weights.read_bytes(), before)
    shutil.rmtree(saes)
    shutil.rmtree(self.run_dir / "n32" / "checkpoints")
    self.assertEqual(self.train()[0], 0)
    self.assertEqual(weights.read_bytes(), before)

  def test_home_is_expanded_in_every_path(self):
    self.enter_context(mock.patch.dict(os.environ, {"HOME": str(self.folder)}))
    code, _, err = script.run(
      "train",
      "--run_dir=~/run",
      "--store=~/store",
      "--held_out=~/held",
      *TINY,
    )
    self.assertEqual(code, 0, err)
    self.assertTrue((self.run_dir / "results.json").exists())

  def test_a_wild_rate_is_not_called_ok(self):
    for policy, rate, status in (
      ("skip", "1e30", "diverged at step"),
      ("stop", "30", "diverged"),
    ):
      with self.subTest(policy):
        code, _, err = self.train(
          f"--train.nonfinite={policy}",
          f"--train.learning_rate={rate}",
          "--train.epochs=2",
          "--train.warmup_steps=0",
          f"--run_dir={self.folder / policy}",
        )
        if code == 0:
          file = self.folder / policy / "results.json"
          (point,) = json.loads(file.read_text())["points"]
          self.assertIn(status, point["status"])
        else:  # every member was frozen
          self.assertIn("no member", err)

  def test_store_with_a_missing_shard(self):
    shard = next(p for p in (self.store / "x").rglob("c/*/*") if p.is_file())
    shard.unlink()
    self.assert_refused(self.train(), "--store", "missing")

  def test_store_with_a_corrupt_shard(self):
    shard = next(p for p in (self.store / "x").rglob("c/*/*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    self.assert_refused(self.train(), "path", "corrupt")

  def test_half_written_store(self):
    (self.store / "manifest.json").unlink()
    self.assert_refused(self.train(), "--store", "must be complete")

  def test_no_store(self):
    found = self.train(store=self.folder / "nowhere")
    self.assert_refused(found, "--store", "nowhere")

  def test_too_few_rows_for_one_batch(self):
    self.assert_refused(
      self.train("--train.batch_rows=2000"), "--train.batch_rows=2000", "1000"
    )

  def test_rows_that_are_not_finite_stop_with_their_step(self):
    bad = make_store(self.folder / "nan", nan=True).path
    code, _, err = self.train("--sae.prep=none", store=bad)
    self.assertEqual(code, 1)
    self.assertRegex(err, r"step \d+: rows of the batch are not finite")
    self.assertTrue((self.run_dir / "n32" / "nonfinite.json").exists())

  def test_another_run_in_the_folder(self):
    self.assertEqual(self.train()[0], 0)
    before = snapshot(self.run_dir)
    self.assert_refused(
      self.train("--sae.k=8"), "--run_dir", "sae.k.0=4 (now 8)", "run.flags"
    )
    self.assertEqual(snapshot(self.run_dir), before)

  def test_checkpoint_of_another_recipe(self):
    self.assertEqual(self.train()[0], 0)
    for name in ("identity.json", "run.flags", "n32/points.json"):
      (self.run_dir / name).unlink()
    before = snapshot(self.run_dir / "n32")
    self.assert_refused(
      self.train("--sae.recipe=batchtopk"), "--run_dir", "batchtopk"
    )
    self.assertEqual(snapshot(self.run_dir / "n32"), before)

  def test_checkpoint_of_another_shape(self):
    self.assertEqual(self.train()[0], 0)
    for name in ("identity.json", "run.flags"):
      (self.run_dir / name).unlink()
    shutil.move(self.run_dir / "n32", self.run_dir / "n64")
    (self.run_dir / "n64" / "points.json").unlink()
    self.assert_refused(self.train("--sae.n=64"), "--run_dir", "n=32")

  def test_no_space_on_disk_leaves_the_last_checkpoint(self):
    command = [
      sys.executable,
      script.ROOT / "experiments" / "train.py",
      f"--run_dir={self.run_dir}",
      f"--store={self.store}",
      f"--held_out={self.held_out}",
      *TINY,
      "--sae.n=2048",
      "--train.checkpoint_steps=5",
    ]
    environment = {**os.environ, "PYTHONPATH": str(script.ROOT)}
    limited = ["bash", "-c", 'ulimit -f 195 && exec "$@"', "-", *command]
    full = subprocess.run(
      limited,
      capture_output=True,
      text=True,
      env=environment,
      check=False,
    )
    self.assertEqual(full.returncode, 2, full.stderr)
    self.assertIn("--run_dir", full.stderr.splitlines()[-1])
    self.assertIn("room", full.stderr.splitlines()[-1])
    self.assertFalse((self.run_dir / "results.json").exists())
    again = subprocess.run(
      command, capture_output=True, text=True, env=environment, check=False
    )
    self.assertEqual(again.returncode, 0, again.stderr)
    self.assertTrue((self.run_dir / "results.json").exists())

  def test_unreadable_model_folder(self):
    empty = self.folder / "empty"
    empty.mkdir()
    found = script.run(
      "scaling",
      f"--run_dir={self.run_dir}",
      f"--harvest.model={empty}",
      f"--harvest.dir={self.folder}",
    )
    self.assert_refused(found, "--harvest.model", "config.json")

  def test_impossible_harvest(self):
    found = script.run("harvest", "--harvest.rows=0")
    self.assert_refused(found, "--harvest.rows=0", "at least 1")


if __name__ == "__main__":
  absltest.main()
