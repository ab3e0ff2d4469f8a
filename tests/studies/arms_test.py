"""Tests of saejax.studies.arms: points of arms, and going on after a stop."""

import json
import pathlib

import jax
import numpy as np
from absl.testing import absltest

from saejax.errors import InputError
from saejax.recipes import batch_sparse, row_sparse
from saejax.studies import arms
from tests import toy

D, N = 16, 32
CONFIG = arms.StudyConfig(steps=60, batch_rows=64, seeds=2)


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
    points = arms.run(folder, chosen(r, made), r, CONFIG, measure=measure)
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
    self.assertEqual(arms.run(folder, chosen(r, made), r, CONFIG), points)
    self.assertEmpty(made)  # nothing was trained again

    # An arm that is not there is trained to the same numbers.
    path = folder / "arms" / "Batch_TopK.json"
    before = json.loads(path.read_text())["points"]
    path.unlink()
    again = arms.run(folder, chosen(r), r, CONFIG, measure=measure)
    for now, then in zip(again[4:], before, strict=True):
      self.assertEqual({**now, "seconds": 0}, {**then, "seconds": 0})

  def test_stream_reads_every_row_once_a_pass(self):
    r = rows()
    draw = arms.stream(r.train, CONFIG)
    read = np.concatenate([np.asarray(draw(i)["x"]) for i in range(24)])
    order = lambda x: x[np.lexsort(x.T)]
    np.testing.assert_array_equal(order(read), order(r.train.x))

  def test_bad_settings_name_their_field(self):
    for field in ("steps", "batch_rows", "seeds"):
      with self.assertRaisesRegex(InputError, field):
        arms.StudyConfig(**{field: 0})
    with self.assertRaisesRegex(InputError, "learning_rate"):
      arms.StudyConfig(learning_rate=0.0)


if __name__ == "__main__":
  absltest.main()
