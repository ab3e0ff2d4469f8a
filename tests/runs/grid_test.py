"""Tests of saejax.runs.grid: a member that diverges in a run on stores."""

import contextlib
import io
import json
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest

import saejax
from saejax.runs import grid
from saejax.runs.config import sae_config
from saejax.training import loop
from tests import toy


class GridTest(absltest.TestCase):
  def test_a_member_that_diverges_is_marked_and_not_trained_again(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    x = np.asarray(toy.rows(600, 8))
    write = lambda name, rows, split: saejax.write_store(
      folder / name, {"x": rows}, split=split
    )
    given = grid.Grid(
      path=folder / "run",
      store=write("train", x[:500], "train"),
      held_out=write("held_out", x[500:], "held_out"),
      sae=sae_config(n=(16,), k=4, rates=(1.0, 1e38)),
      train=loop.TrainConfig(steps=6, batch_rows=32),
    )
    with contextlib.redirect_stderr(io.StringIO()) as said:
      good, bad = points = grid.train(given)
    self.assertEqual(good["status"], "ok")
    self.assertRegex(bad["status"], "^diverged at step [0-9]+$")
    self.assertIn(f"k4-rate=1e+38-seed0: {bad['status']}", said.getvalue())
    names = {path.name for path in (folder / "run" / "saes").iterdir()}
    marked = "n16-k4-rate=1e+38-seed0-diverged"
    self.assertEqual(names, {"n16-k4-rate=1-seed0", marked})
    about = saejax.about(folder / "run" / "saes" / marked)
    self.assertEqual(about["status"], bad["status"])
    with mock.patch.object(loop, "together") as trained:
      again = grid.train(given)
    trained.assert_not_called()
    self.assertEqual(json.dumps(again), json.dumps(points))


if __name__ == "__main__":
  absltest.main()
