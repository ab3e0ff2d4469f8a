"""Tests of saejax.data.batches: samples leave the position of a stream alone."""

import numpy as np
from absl.testing import absltest

from saejax.data import batches, streams
from saejax.data.store import create
from saejax.errors import InputError

ROWS, D, BATCH = 1_000, 3, 50


def arrays():
  x = np.arange(ROWS * D, dtype=np.float32).reshape(ROWS, D)
  return {"x": x, "score": np.arange(ROWS, dtype=np.float32)}


def pieces(count=ROWS // BATCH):
  held = arrays()
  for i in range(0, count * BATCH, BATCH):
    yield {name: a[i : i + BATCH] for name, a in held.items()}


class SampleTest(absltest.TestCase):
  def streams(self):
    folder = self.create_tempdir().full_path
    store = create.write_store(
      folder + "/store",
      arrays(),
      bucket_rows=256,
      shard_rows=256,
      chunk_rows=64,
    )
    return [
      batches.StoreBatches(store, batch_rows=BATCH, seed=0),
      streams.array_batches(arrays(), batch_rows=BATCH, seed=0),
      batches.IteratorBatches(pieces()),
    ]

  def test_a_sample_leaves_the_position_alone(self):
    for one, other in zip(self.streams(), self.streams(), strict=True):
      with self.subTest(type(one).__name__):
        for _ in range(5):
          found = one.sample(40)["x"]
          self.assertBetween(len(found), 1, 64)
          np.testing.assert_array_equal(next(one)["x"], next(other)["x"])
        self.assertEqual(one.get_state(), other.get_state())

  def test_rows_of_a_sample_are_whole_and_spread(self):
    for stream in self.streams()[:2]:
      with self.subTest(type(stream).__name__):
        first = stream.sample(100)["x"][:, 0]
        self.assertContainsSubset(first, arrays()["x"][:, 0])
        self.assertLess(first.min(), 300 * D)
        self.assertGreater(first.max(), 700 * D)

  def test_not_finite_rows_of_a_store_are_left_out(self):
    x = arrays()["x"]
    x[::2] = np.nan
    store = create.write_store(self.create_tempdir().full_path + "/s", {"x": x})
    stream = batches.StoreBatches(store, batch_rows=BATCH, seed=0)
    self.assertLen(stream.sample(ROWS)["x"], ROWS // 2)


class IteratorTest(absltest.TestCase):
  def test_the_reservoir_holds_each_row_given_with_equal_chance(self):
    counts = np.zeros(ROWS)
    for seed in range(60):
      stream = batches.IteratorBatches(pieces(), reservoir_rows=200, seed=seed)
      for _ in stream:
        pass
      kept = stream.sample(200)
      np.testing.assert_array_equal(kept["x"][:, 0], kept["score"] * D)
      self.assertLen(np.unique(kept["score"]), 200)
      counts[kept["score"].astype(int)] += 1
    # 60 draws at 1/5: blocks of 100 rows have 1200 +- 31.
    np.testing.assert_allclose(counts.reshape(10, -1).sum(1), 1200, atol=125)

  def test_a_position_is_reached_by_taking_batches(self):
    one, other = (batches.IteratorBatches(pieces()) for _ in range(2))
    for _ in range(7):
      next(one)
    other.set_state(one.get_state())
    np.testing.assert_array_equal(next(other)["row"], next(one)["row"])
    self.assertEqual(one.fields, ("x", "score"))
    with self.assertRaisesRegex(ValueError, "cannot go back"):
      other.set_state({"batches": 3})

  def test_an_empty_iterator_is_refused(self):
    with self.assertRaisesRegex(InputError, "at least one batch"):
      batches.IteratorBatches(iter(()))


if __name__ == "__main__":
  absltest.main()
