"""Tests of rows that are trained on as they are computed: order, memory, resume."""

import dataclasses
import json
import pathlib
import threading
import time

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import buffer, files, harvest, online, rows, shared
from saejax.errors import InputError
from tests.data import tiny

ROWS = 1_000


def source(count=ROWS):
  number = np.arange(count, dtype=np.float32)
  columns = {"x": np.stack([number, -number], 1), "doc": np.arange(count) // 10}
  return files.array_rows(columns)


class Slow:
  """A source that waits before each block, and drops rows by their values."""

  group, files = None, {}

  def __init__(self, inner, wait=lambda: 0.0, drop=lambda x: x < 0):
    self.inner, self.wait, self.drop = inner, wait, drop
    self.columns, self.about = inner.columns, inner.about
    self.given = 0

  def prepare(self, recorded):
    return None

  def count(self, most):
    return self.inner.count(most)

  def blocks(self, spans, resume=None):
    for number, span in enumerate(spans):
      first = span.start if number or resume is None else resume.row
      for start in range(first, min(span.stop, self.count(2**62)), 7):
        stop = min(start + 7, span.stop)
        (block,) = self.inner.blocks([rows.Span(start, stop)])
        time.sleep(self.wait())
        keep = ~self.drop(block.values["x"][:, 0])
        self.given += stop - start
        yield rows.Block(
          number,
          {name: value[keep] for name, value in block.values.items()},
          rows.Resume({}, stop),
          {"outlier": int((~keep).sum())},
        )


def stream(given=None, seed=0, batch_rows=30, **sizes):
  sizes = {"most_rows": ROWS, "buffer_rows": 200} | sizes
  made = online.rows(given or source(), **sizes)
  return shared.readers([made], batch_rows=batch_rows, seed=seed)[0]


def taken(batches, count):
  with batches:
    return [next(batches)["x"][:, 0] for _ in range(count)]


class OrderTest(parameterized.TestCase):
  @parameterized.parameters(60, 201, 999, 5_000)
  def test_every_row_of_an_epoch_comes_once(self, buffer_rows):
    got = np.concatenate(taken(stream(buffer_rows=buffer_rows), 100))
    for epoch in range(3):
      part = np.sort(got[epoch * ROWS : (epoch + 1) * ROWS])
      np.testing.assert_array_equal(part, np.arange(ROWS))
    self.assertFalse((got[:ROWS] == got[ROWS : 2 * ROWS]).all())

  def test_a_row_is_at_most_a_buffer_away_from_its_place(self):
    got = np.concatenate(taken(stream(), 33))
    away = np.abs(got[:990] - np.arange(990))
    self.assertLess(away.max(), 200)
    self.assertGreater(np.median(away), 30)

  def test_the_order_depends_on_seed_and_buffer_but_not_on_time(self):
    generator = np.random.default_rng(0)
    jitter = lambda: generator.uniform(0, 2e-4)
    one, two, other, larger = (
      taken(stream(*a, **k), 40)
      for a, k in (
        ((), {}),
        ((Slow(source(), jitter),), {}),
        ((), {"seed": 1}),
        ((), {"buffer_rows": 300}),
      )
    )
    np.testing.assert_array_equal(one, two)
    self.assertFalse(np.array_equal(one, other))
    self.assertFalse(np.array_equal(one, larger))

  def test_a_larger_buffer_mixes_more_documents(self):
    found = []
    for buffer_rows in (60, 200, 2_000):
      with stream(buffer_rows=buffer_rows) as batches:
        found.append(batches.measure(next(batches))["doc_entropy"])
    self.assertEqual(found, sorted(found))
    self.assertGreater(found[-1], 0.95)
    self.assertLess(found[0], 0.8)

  def test_rows_dropped_by_value_leave_the_others(self):
    got = taken(stream(Slow(source(), drop=lambda x: x % 5 == 3)), 60)
    kept = [i for i in range(ROWS) if i % 5 != 3]
    for epoch in range(2):
      part = np.concatenate(got)[epoch * 800 : (epoch + 1) * 800]
      np.testing.assert_array_equal(np.sort(part), kept)


class ResumeTest(parameterized.TestCase):
  @parameterized.parameters(60, 200, 5_000)
  def test_every_position_continues_the_stream(self, buffer_rows):
    sizes = {"buffer_rows": buffer_rows, "given": Slow(source())}
    got, states = [], []
    with stream(**sizes) as whole:
      for _ in range(80):
        states.append(json.loads(json.dumps(whole.get_state())))
        got.append(next(whole))
    for at in range(0, 78, 3):
      with stream(**sizes) as again:
        again.set_state(states[at])
        self.assertEqual(again.get_state(), states[at])
        for batch in got[at : at + 2]:
          same = next(again)
          np.testing.assert_array_equal(same["x"], batch["x"])
          np.testing.assert_array_equal(same["row"], batch["row"])

  def test_at_most_two_buckets_are_computed_again(self):
    counted = Slow(source())
    with stream(counted) as whole:
      for _ in range(30):
        next(whole)
      state = whole.get_state()
    counted = Slow(source())
    with stream(counted) as again:
      again.set_state(state)
      next(again)
    self.assertLess(counted.given, 200 + 200)
    self.assertGreater(state["resume"]["row"], 600)

  def test_a_position_of_another_order_is_refused_by_name(self):
    state = stream().get_state()
    for name, other in (
      ("seed", stream(seed=1)),
      ("buffer_rows", stream(buffer_rows=300)),
      ("content", stream(source(900))),
    ):
      state["order"] = dict(other.get_state()["order"]) | {
        key: value
        for key, value in state["order"].items()
        if key != "content" or name == "content"
      }
      with self.assertRaisesRegex(InputError, rf"position\.{name}"):
        other.set_state(state)


class MemoryTest(absltest.TestCase):
  def test_no_more_rows_are_read_than_there_is_room_for(self):
    counted = Slow(source())
    with stream(counted) as batches:
      given = 0
      for _ in range(40):
        given += len(next(batches)["x"])
        time.sleep(2e-3)
        self.assertLessEqual(counted.given - given, 200 + 7)

  def test_close_stops_the_thread_at_once(self):
    counted = Slow(source(), wait=lambda: 1e-3)
    batches = stream(counted)
    next(batches)
    batches.close()
    read = counted.given
    time.sleep(0.05)
    self.assertEqual(counted.given, read)
    names = [thread.name for thread in threading.enumerate()]
    self.assertNotIn("online", names)

  def test_an_error_of_the_source_comes_with_the_batch_that_needs_it(self):
    class Broken(Slow):
      def blocks(self, spans, resume=None):
        for block in super().blocks(spans, resume):
          if block.resume.row > 500:
            raise OSError("unreadable")
          yield block

    whole = taken(stream(), 10)
    with stream(Broken(source())) as batches:
      for want in whole:  # of the first 300 rows or so
        np.testing.assert_array_equal(next(batches)["x"][:, 0], want)
      with self.assertRaisesRegex(OSError, "unreadable"):
        for _ in range(20):
          next(batches)


class RefusalTest(parameterized.TestCase):
  def test_a_buffer_below_two_batches(self):
    with self.assertRaisesRegex(InputError, "buffer_rows=50: must have room"):
      stream(buffer_rows=50)

  @parameterized.parameters("most_rows", "buffer_rows", "statistics_rows")
  def test_sizes_below_two(self, name):
    with self.assertRaisesRegex(InputError, f"{name}=1"):
      online.rows(source(), **{"most_rows": ROWS, name: 1})

  def test_a_buffer_larger_than_memory(self):
    with self.assertRaisesRegex(InputError, "buffer_rows=.*memory is"):
      online.rows(source(), most_rows=ROWS, buffer_rows=2**50)

  def test_rows_that_are_all_dropped(self):
    all_rows = Slow(source(), drop=lambda x: x >= 0)
    with (
      stream(all_rows) as batches,
      self.assertRaisesRegex(InputError, r"gave none \(dropped: outlier 1000"),
    ):
      next(batches)
    with self.assertRaisesRegex(InputError, "the first 1000 are all dropped"):
      stream(all_rows).sample(5)


class StatisticsTest(absltest.TestCase):
  def test_they_are_those_of_the_first_rows_whenever_asked(self):
    made = online.rows(source(), most_rows=ROWS, statistics_rows=100)
    want = np.arange(100.0)
    with shared.readers([made], batch_rows=30, seed=0)[0] as batches:
      before = batches.sample(20)["x"]
      for _ in range(50):
        next(batches)
      np.testing.assert_array_equal(batches.sample(20)["x"], before)
    self.assertLess(before.max(), 100)
    np.testing.assert_allclose(made.stats["mean"], [want.mean(), -want.mean()])
    self.assertAlmostEqual(made.stats["mean_square"], 2 * np.mean(want**2))


class SharedTest(absltest.TestCase):
  def test_readers_at_different_positions_share_one_reading(self):
    counted = Slow(source())
    made = online.rows(counted, most_rows=ROWS, buffer_rows=200)
    want = taken(stream(), 20)
    slow, fast = shared.readers([made, made], batch_rows=30, seed=0)
    with slow, fast:
      ahead = stream()
      for _ in range(5):
        next(ahead)
      fast.set_state(ahead.get_state())
      ahead.close()
      for number in range(5):  # the one that is behind goes first
        np.testing.assert_array_equal(next(slow)["x"][:, 0], want[number])
      for number in range(5, 20):
        for reader in (slow, fast):
          np.testing.assert_array_equal(next(reader)["x"][:, 0], want[number])
      self.assertLess(counted.given, 20 * 30 + 200 + 7)


class TextTest(absltest.TestCase):
  """Text through a model, beside a harvest of the same settings."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    plain = tiny.config(tiny.corpus(self.folder / "texts"), self.folder / "a")
    settings = dataclasses.asdict(plain)
    self.store, self.held_out = harvest.harvest(plain, source=tiny.source())
    self.config = harvest.OnlineConfig(
      **settings | {"dir": str(self.folder / "b")},
      buffer_rows=600,
      statistics_rows=500,
    )

  def test_rows_and_held_out_store_are_those_of_a_harvest(self):
    made, held_out = harvest.online(self.config, source=tiny.source())
    self.assertEqual(held_out.content, self.held_out.content)
    whole = tiny.everything(self.store)
    got = []
    with shared.readers([made], batch_rows=35, seed=0)[0] as batches:
      for _ in range(self.store.rows // 35):
        batch = next(batches)
        got.append(batch | dict(batches.provenance(batch["row"])))
    joined = {n: np.concatenate([batch[n] for batch in got]) for n in whole}
    number = lambda v: (v["doc"] * 1000 + v["pos"]).tolist()
    known = {token: i for i, token in enumerate(number(whole))}
    found = [known[token] for token in number(joined)]
    self.assertLen(set(found), self.store.rows // 35 * 35)
    for name, values in whole.items():
      np.testing.assert_array_equal(joined[name], values[found])

  def test_the_content_names_rows_but_no_layout(self):
    content = lambda **changes: (
      harvest.online(
        dataclasses.replace(self.config, **changes), source=tiny.source()
      )[0].content
    )
    self.assertEqual(content(), content(chunk_rows=64))
    for name, value in (
      ("buffer_rows", 800),
      ("rows", 900),
      ("statistics_rows", 400),
      ("context", 20),
      ("outlier_multiple", 3.0),
    ):
      self.assertNotEqual(content(), content(**{name: value}), name)


class BufferTest(absltest.TestCase):
  def test_a_bucket_says_where_the_source_gives_it_again(self):
    spans = [rows.Span(i, i + 100) for i in range(0, ROWS, 100)]
    filling = buffer.Filling(Slow(source()), spans, 200)
    first, second = filling.bucket(), filling.bucket()
    self.assertIsNone(first.resume)
    self.assertEqual(second.resume, rows.Resume({}, 100))
    np.testing.assert_array_equal(second.row, np.arange(100, 200))
    x = filling.take(second.places)["x"][:, 0]
    np.testing.assert_array_equal(x, np.arange(100, 200))
    filling.close()


if __name__ == "__main__":
  absltest.main()
