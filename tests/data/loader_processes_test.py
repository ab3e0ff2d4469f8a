"""Processes share one order of rows, resume each other's positions, and bound
what they read and hold."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import textwrap
import unittest
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import loader
from saejax.data.store import create, reader
from saejax.errors import InputError
from tests import shared
from tests.data import loader_test

take = loader_test.take


class ProcessesTest(parameterized.TestCase):
  store = loader_test.LoaderTest.store
  assert_same = loader_test.LoaderTest.assert_same

  def shared(self, found, processes, states=None, **arguments):
    """The batches that processes give together, and their last positions."""
    parts, last = [], []
    for index in range(processes):
      with contextlib.closing(
        iter(
          loader.batches(
            found, process_index=index, process_count=processes, **arguments
          )
        )
      ) as own:
        if states:
          own.set_state(states[index % len(states)])
        parts.append(take(own))
        last.append(own.get_state())
    names = parts[0][0] if parts[0] else ()
    together = [
      {name: np.concatenate([b[name] for b in batch]) for name in names}
      for batch in zip(*parts, strict=True)
    ]
    return together, last

  @parameterized.product(
    lanes=(1, 4), batch_rows=(40, 100), window_chunks=(4, 64)
  )
  def test_any_number_of_processes_gives_one_order(self, lanes, **settings):
    found = self.store(2100)
    arguments = {"seed": 3, "epochs": 2, "lanes": lanes, **settings}
    whole, last = self.shared(found, 1, **arguments)
    self.assertLen(whole, loader.count_batches(found, **arguments))
    rows = np.concatenate([b["row"] for b in whole])
    times = np.unique(rows, return_counts=True)[1]
    self.assertLessEqual(times.max(), 2)
    # With lanes the longer ones lose at most a chunk each.
    self.assertGreater(len(rows), 2 * 2100 - 100 - lanes * 64)
    for processes in (2, 4):
      got, ends = self.shared(found, processes, **arguments)
      self.assert_same(got, whole)
      self.assertEqual(ends, last * processes)

  @parameterized.parameters(1, 4)
  def test_other_numbers_of_processes_resume_at_a_position(self, lanes):
    found = self.store(2100)
    arguments = {"batch_rows": 100, "seed": 5, "epochs": 2, "lanes": lanes}
    arguments["window_chunks"] = 8
    whole, _ = self.shared(found, 1, **arguments)
    for saved, resumed in ((1, 4), (2, 1), (4, 2), (2, 4)):
      for at in (0, 1, 8, 20, 21, len(whole) - 1, len(whole)):
        states = []
        for index in range(saved):
          own = iter(
            loader.batches(
              found, process_index=index, process_count=saved, **arguments
            )
          )
          take(own, at)
          states.append(json.loads(json.dumps(own.get_state())))
          own.close()
        got, _ = self.shared(found, resumed, states, **arguments)
        self.assert_same(got, whole[at:])

  @parameterized.parameters((1, 1.0), (2, 0.5), (4, 0.25))
  def test_lanes_divide_what_a_process_reads(self, lanes, share):
    found = self.store(64 * 32)
    read = []
    each = reader.Store.read_each

    def counted(self, intervals, column="x"):
      read.extend(intervals)
      return each(self, intervals, column)

    with mock.patch.object(reader.Store, "read_each", counted):
      data = loader.batches(
        found,
        batch_rows=64,
        seed=0,
        lanes=lanes,
        process_index=1,
        process_count=4,
      )
      self.assertLen(take(data), 32)
    self.assertLen(set(read), 32 * share)
    self.assertLen(read, 32 * share)

  @unittest.skipUnless(sys.platform == "linux", "reads /proc")
  def test_memory_is_that_of_the_windows_of_a_process(self):
    # 96 MiB in windows of 8 MiB: two of them, two requests and their copies.
    rows, d = 393_216, 64
    x = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None], (rows, d))
    path = pathlib.Path(self.create_tempdir().full_path) / "s"
    create.write_store(path, {"x": x}, shuffle_seed=None)
    code = f"""
      import sys
      from saejax.data import loader, plan, reading
      from saejax.data.store import reader
      plan.WINDOW_BYTES, reading._REQUEST_BYTES = 2**23, 2**20
      found = reader.open({str(path)!r})
      list(found.read_each(found.chunks[:2]))
      parts = int(sys.argv[1])
      batches = iter(loader.batches(
        found, batch_rows=512, seed=0, process_count=parts))
      peak = lambda: int(
        open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
      before = peak()
      count = sum(1 for _ in batches)
      print(count, (peak() - before) / 1024)
    """
    for parts, bound in ((1, 26), (4, 13)):
      done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(parts)],
        capture_output=True,
        text=True,
        cwd=shared.ROOT,
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_TOP_PAD_": "0"},
      )
      self.assertEqual(done.returncode, 0, done.stderr)
      count, grown = map(float, done.stdout.split())
      self.assertEqual(count, rows // 512)
      self.assertLess(grown, bound)

  def test_reading_goes_on_after_an_error(self):
    found = self.store(1000)
    data = loader.batches(found, batch_rows=100, seed=0, window_chunks=3)
    whole, broken = take(data), iter(data)
    take(broken, 2)
    with (
      mock.patch.object(reader.Store, "read_each", side_effect=OSError("lost")),
      self.assertRaisesRegex(OSError, "lost"),
    ):
      broken.set_state(broken.get_state())
      next(broken)
    self.assert_same(take(broken), whole[2:])

  @parameterized.parameters(
    ({"seed": 2}, "position.seed=1: .*here it is 2"),
    ({"batch_rows": 30}, "position.batch_rows=50"),
    ({"lanes": 2}, "position.lanes=1"),
    ({"window_chunks": 2}, "position.window_chunks"),
  )
  def test_a_position_of_another_order_is_refused(self, change, text):
    found = self.store(1000)
    arguments = {"batch_rows": 50, "seed": 1}
    state = iter(loader.batches(found, **arguments)).get_state()
    other = iter(loader.batches(found, **arguments | change))
    with self.assertRaisesRegex(InputError, text):
      other.set_state(state)

  def test_positions_of_other_stores_or_forms_are_refused(self):
    found, other = self.store(1000), self.store(900, name="other")
    state = iter(loader.batches(found, batch_rows=50, seed=1)).get_state()
    again = iter(loader.batches(other, batch_rows=50, seed=1))
    with self.assertRaisesRegex(InputError, "position.stores"):
      again.set_state(state)
    for wrong in ({"next_index": 3}, None, {**state, "batches": -1}):
      with self.assertRaisesRegex(InputError, "position="):
        again.set_state(wrong)

  @parameterized.parameters(
    ({"lanes": 17}, r"lanes=17: .*\(16 of 64 rows\)"),
    ({"process_count": 17}, "processes=17: must be at most the chunks"),
    ({"lanes": 3}, "lanes=3: must divide the 340"),
    ({"process_count": 3}, "batch_rows=340.*number of processes, 3"),
  )
  def test_processes_and_lanes_that_do_not_fit_are_refused(self, more, text):
    found = self.store(1000)
    with self.assertRaisesRegex(InputError, text):
      loader.batches(found, seed=0, **{"batch_rows": 340, **more})


if __name__ == "__main__":
  absltest.main()
