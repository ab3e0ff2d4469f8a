"""Tests of saejax.studies.arms: points of arms, and going on after a stop."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
from absl.testing import absltest

from saejax.errors import InputError
from saejax.recipes import batch_sparse, row_sparse
from saejax.studies import arms
from saejax.training.config import TrainConfig
from tests import shared, toy

D, N = 16, 32
CONFIG = TrainConfig(
  steps=60, batch_rows=64, learning_rate=3e-3, checkpoint_steps=20
)
SEEDS = 2


def rows():
  truth = toy.dictionary(N, D)
  x = np.asarray(toy.planted(jax.random.key(0), 2048, truth))
  return arms.planted({"x": x[:1536]}, {"x": x[1536:]}, {"rows": "planted"})


def chosen(rows, made=None):
  options = arms.options(CONFIG, rows)

  def topk(k):
    if made is not None:
      made.append(k)
    return row_sparse.topk(D, N, k, **options)

  batchtopk = lambda k: batch_sparse.batchtopk(D, N, k, **options)
  return [
    arms.Arm(name="TopK", make=topk, n=N, k=(2, 4), facts={"family": "row"}),
    arms.Arm(name="Batch TopK", make=batchtopk, n=N, k=(3,)),
  ]


class ArmsTest(absltest.TestCase):
  def test_points_say_what_was_trained_and_a_second_run_reads_them(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    r, made = rows(), []
    measure = lambda trained: [{"own": s.n} for s in trained.saes]
    points = arms.run(
      folder, chosen(r, made), r, CONFIG, seeds=SEEDS, measure=measure
    )
    self.assertLen(points, 6)
    self.assertEqual(
      {(p["arm"], p["k"], p["seed"]) for p in points[:4]},
      {("TopK", k, s) for k in (2, 4) for s in (0, 1)},
    )
    for p in points:
      self.assertEqual(p["own"], N)
      self.assertEqual(p["status"], "ok")
      self.assertGreater(p["fvu"], 0)
    self.assertEqual(points[0]["family"], "row")
    self.assertLess(points[2]["fvu"], points[0]["fvu"])
    self.assertNotEmpty(made)

    made.clear()
    self.assertEqual(
      arms.run(folder, chosen(r, made), r, CONFIG, seeds=SEEDS), points
    )
    self.assertEmpty(made)  # nothing was trained again

    # An arm that is not there is trained to the same numbers.
    path = folder / "arms" / "Batch_TopK.json"
    before = json.loads(path.read_text())["points"]
    path.unlink()
    again = arms.run(folder, chosen(r), r, CONFIG, seeds=SEEDS, measure=measure)
    for now, then in zip(again[4:], before, strict=True):
      self.assertEqual({**now, "seconds": 0}, {**then, "seconds": 0})

  def test_rows_are_read_once_a_pass_on_one_device_and_on_the_host(self):
    r = rows()
    order = lambda x: x[np.lexsort(x.T)]
    draw = arms.source(r.train, CONFIG)._draw
    read = np.concatenate([np.asarray(draw(i)["x"]) for i in range(24)])
    np.testing.assert_array_equal(order(read), order(r.train.x))
    several = dataclasses.replace(CONFIG, mesh=(1, 2, 1))
    stream = arms.source(r.train, several)._batches
    for i in range(3):
      np.testing.assert_array_equal(next(stream)["x"], draw(i)["x"])

  def test_settings_of_stores_are_refused(self):
    for field, value in (
      ("window_chunks", 8),
      ("lanes", 2),
      ("eval_rows", 100),
      ("eval_steps", 100),
    ):
      config = dataclasses.replace(CONFIG, **{field: value})
      with self.assertRaisesRegex(InputError, f"train.{field}={value}"):
        arms.check(config)

  def test_checkpoints_are_removed_once_points_are_there(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    r, seen = rows(), []
    own = folder / "arms" / "Batch_TopK"

    def measure(trained):
      seen.append(sorted(p.name for p in (own / "checkpoints").iterdir()))
      return [{}] * len(trained.saes)

    made = chosen(r)[1:]
    arms.run(folder, made, r, CONFIG, seeds=SEEDS, measure=measure)
    self.assertIn("60", seen[0])
    self.assertFalse((own / "checkpoints").exists())
    self.assertTrue((own / "metrics.jsonl").exists())
    # Those of a run that was killed between the two.
    (own / "checkpoints" / "60").mkdir(parents=True)
    arms.run(folder, made, r, CONFIG, seeds=SEEDS)
    self.assertFalse((own / "checkpoints").exists())

  def test_another_arm_in_the_folder_is_refused(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    r, short = rows(), dataclasses.replace(CONFIG, steps=3)
    made = chosen(r)[1:]
    arms.run(folder, made, r, short, seeds=SEEDS)
    (folder / "arms" / "Batch_TopK.json").unlink()
    other = dataclasses.replace(short, learning_rate=1e-3)
    with self.assertRaisesRegex(InputError, "holds a run with .*learning_rate"):
      arms.run(folder, made, r, other, seeds=SEEDS)
    path = folder / "arms" / "Batch_TopK" / "fingerprint.json"
    path.write_text(path.read_text().replace("0", "1", 1))
    with self.assertRaisesRegex(InputError, "fingerprint.json"):
      arms.run(folder, made, r, short, seeds=SEEDS)

  def test_an_arm_whose_members_all_diverge_is_marked(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    r, config = rows(), dataclasses.replace(CONFIG, steps=5, learning_rate=1e38)
    points = arms.run(folder, chosen(r)[:1], r, config, seeds=SEEDS)
    for point in points:
      self.assertRegex(point["status"], "^diverged at step [0-9]+$")


KILLED = """
import os, pathlib, sys
from saejax.studies import arms
from saejax.training import run_folder
from tests.studies import arms_test

folder, at = pathlib.Path(sys.argv[1]), int(sys.argv[2])
save = run_folder.RunFolder.save

def saved(self, step, *rest):
  save(self, step, *rest)
  if step == at:
    self.wait()
    os.kill(os.getpid(), 9)

run_folder.RunFolder.save = saved
r = arms_test.rows()
weights = lambda trained: [{"W": s.W_dec.tolist()} for s in trained.saes]
arms.run(
  folder, arms_test.chosen(r), r, arms_test.CONFIG, seeds=2, measure=weights
)
"""


class KillTest(absltest.TestCase):
  def test_an_arm_killed_inside_ends_as_an_undisturbed_one(self):
    folder = pathlib.Path(self.create_tempdir().full_path)

    def run(name, at):
      done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder / name), str(at)],
        cwd=shared.ROOT,
        capture_output=True,
        text=True,
      )
      self.assertEqual(done.returncode, -9 if at else 0, done.stderr[-2000:])
      return done.stderr

    run("whole", 0)
    run("killed", 40)
    self.assertFalse((folder / "killed/arms/TopK.json").exists())
    self.assertIn("TopK: resuming from step 40", run("killed", 0))
    for name in ("TopK", "Batch_TopK"):
      whole, killed = (
        json.loads((folder / run / "arms" / f"{name}.json").read_text())
        for run in ("whole", "killed")
      )
      for one, two in zip(whole["points"], killed["points"], strict=True):
        self.assertEqual({**one, "seconds": 0}, {**two, "seconds": 0})


if __name__ == "__main__":
  absltest.main()
