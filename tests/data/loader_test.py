"""Batches: each row once an epoch, one order for all, exact state, mixing."""

import hashlib
import itertools
import json
import pathlib
import subprocess
import sys
import textwrap

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import loader
from saejax.data import mixing as measures
from saejax.data.store import create
from saejax.errors import InputError
from tests import shared


def take(iterator, n=None):
  return list(itertools.islice(iterator, n))


class LoaderTest(parameterized.TestCase):
  def store(self, n, d=3, doc=None, name="store", **changes):
    sizes = {"bucket_rows": 1024, "shard_rows": 256, "chunk_rows": 64}
    x = np.repeat(np.arange(n, dtype=np.float32)[:, None], d, axis=-1)
    path = pathlib.Path(self.create_tempdir().full_path) / name
    columns = {"x": x} if doc is None else {"x": x, "doc": doc}
    return create.write_store(path, columns, **(sizes | changes))

  def assert_same(self, got, want):
    self.assertEqual(len(got), len(want))
    for a, b in zip(got, want, strict=True):
      np.testing.assert_array_equal(a["row"], b["row"])
      np.testing.assert_array_equal(a["x"], b["x"])

  @parameterized.product(n=(1024, 10_007), window_chunks=(1, 3, 64))
  def test_an_epoch_gives_each_row_once_but_a_last_part_of_a_batch(
    self, n, window_chunks
  ):
    found = self.store(n)
    data = loader.batches(
      found, batch_rows=100, seed=0, window_chunks=window_chunks
    )
    batches = take(data)
    self.assertLen(batches, n // 100)
    self.assertLen(batches, loader.count_batches(found, batch_rows=100, seed=0))
    row = np.concatenate([b["row"] for b in batches])
    self.assertLen(set(row), n // 100 * 100)
    self.assertContainsSubset(row, range(n))
    self.assertEqual(row.dtype, np.int64)

  def test_a_batch_of_one_row_leaves_nothing_out(self):
    found = self.store(300)
    data = loader.batches(found, batch_rows=1, seed=0)
    self.assertCountEqual([int(b["row"][0]) for b in data], range(300))

  def test_row_numbers_are_those_of_the_store(self):
    found = self.store(500)
    for batch in loader.batches(found, batch_rows=64, seed=0):
      want = np.concatenate([found.read(r, r + 1) for r in batch["row"]])
      np.testing.assert_array_equal(batch["x"], want)

  def test_epochs_have_orders_of_their_own_and_carry_the_remainder(self):
    found = self.store(1000)
    data = loader.batches(found, batch_rows=300, seed=0, epochs=3)
    row = np.concatenate([b["row"] for b in data])
    self.assertLen(row, 3000)
    epochs = row.reshape(3, 1000)
    for epoch in epochs:
      self.assertLen(set(epoch), 1000)
    self.assertFalse((epochs[0] == epochs[1]).all())
    self.assertFalse((epochs[1] == epochs[2]).all())

  def test_the_seed_fixes_the_order(self):
    found = self.store(1000)
    one, again, other = (
      take(loader.batches(found, batch_rows=50, seed=seed))
      for seed in (1, 1, 2)
    )
    self.assert_same(one, again)
    self.assertFalse((one[0]["row"] == other[0]["row"]).all())

  def test_without_epochs_there_is_no_end(self):
    found = self.store(100)
    data = loader.batches(found, batch_rows=50, seed=0, epochs=None)
    self.assertLen(take(data, 31), 31)

  @parameterized.parameters(0, 1, 7, 8, 20, 41, 42)
  def test_a_restored_iterator_gives_the_same_rest(self, at):
    found = self.store(2100)
    # Windows of 192 rows or so: the state lies inside and between windows.
    data = loader.batches(
      found, batch_rows=100, seed=5, epochs=2, window_chunks=3
    )
    whole = take(data)
    self.assertLen(whole, 42)
    iterator = iter(data)
    take(iterator, at)
    state = json.loads(json.dumps(iterator.get_state()))
    for threads in (1, 2):
      again = iter(
        loader.batches(
          found,
          batch_rows=100,
          seed=5,
          epochs=2,
          window_chunks=3,
          read_threads=threads,
          ahead_windows=2 * threads,
        )
      )
      take(again, 3)
      again.set_state(state)
      self.assert_same(take(again), whole[at:])

  def test_state_is_exact_through_prefetch_to_the_device(self):
    found = self.store(2000)

    def data():
      return grain.experimental.device_put(
        loader.batches(found, batch_rows=100, seed=5, window_chunks=5),
        jax.devices()[0],
      )

    iterator = iter(data())
    try:
      whole = take(iterator)
    finally:
      iterator.close()
    self.assertIsInstance(whole[0]["x"], jax.Array)
    self.assertLen(whole, 20)
    for at in (0, 3, 11, 20):
      first, again = iter(data()), iter(data())
      try:
        take(first, at)
        again.set_state(first.get_state())
        self.assert_same(take(again), whole[at:])
      finally:
        first.close()
        again.close()

  def test_the_order_is_that_of_earlier_releases(self):
    found = self.store(2100)
    for chunks, wanted in (
      (1, "38c3df07dc5d4f6a"),
      (3, "8e24854e21fcf9ec"),
      (64, "881ee72f772bdde1"),
    ):
      data = loader.batches(
        found, batch_rows=100, seed=5, epochs=2, window_chunks=chunks
      )
      row = np.concatenate([b["row"] for b in data]).astype("<i8")
      got = hashlib.sha256(row.tobytes()).hexdigest()[:16]
      self.assertEqual(got, wanted)

  def test_stored_type_and_rows_that_are_not_finite_pass(self):
    x = np.ones((200, 2), jnp.bfloat16)
    x[17, 1] = np.nan
    path = pathlib.Path(self.create_tempdir().full_path) / "s"
    found = create.write_store(path, x, shuffle_seed=None)
    bad = []
    for batch in loader.batches(found, batch_rows=50, seed=0):
      self.assertEqual(batch["x"].dtype, jnp.bfloat16)
      broken = ~np.isfinite(batch["x"].astype(np.float32)).all(-1)
      bad += batch["row"][broken].tolist()
    self.assertEqual(bad, [17])

  def test_rows_of_a_batch_come_from_everywhere(self):
    # 200 documents of 100 rows, unshuffled on disk.
    doc = np.arange(20_000) // 100
    found = self.store(20_000, doc=doc, shuffle_seed=None, name="ordered")
    shuffled = self.store(20_000, doc=doc, name="shuffled")

    def mixing(found, **arguments):
      data = loader.batches(found, batch_rows=1000, seed=0, **arguments)
      return np.mean(
        [
          measures.entropy(found.provenance(b["row"])["doc"])
          for b in take(data, 5)
        ]
      )

    random = np.random.default_rng(0).permutation(20_000)[:1000] // 100
    uniform = measures.entropy(random)
    self.assertLess(mixing(found, window_chunks=1), 0.5)
    self.assertAlmostEqual(
      mixing(shuffled, window_chunks=64), uniform, delta=0.02
    )

  def test_a_fresh_process_goes_on_inside_at_and_after_a_windows_edge(self):
    found = self.store(2100)
    # Windows of 192 rows, batches of 48: every fourth batch ends a window.
    arguments = {"batch_rows": 48, "seed": 5, "epochs": 2, "window_chunks": 3}
    iterator = iter(loader.batches(found, **arguments))
    states, whole = [], []
    for batch in iterator:
      whole.append(batch["row"].tolist())
      states.append(iterator.get_state())
    at = [1, 3, 4, 5, 7, 8, 42, 43, 44, 45]
    code = f"""
      import json, sys
      from saejax.data import loader
      from saejax.data.store import reader
      found = reader.open({str(found.path)!r})
      rest = []
      for state in json.load(sys.stdin):
        iterator = iter(loader.batches(found, **{arguments!r}))
        iterator.set_state(state)
        rest.append([b["row"].tolist() for b in iterator])
      json.dump(rest, sys.stdout)
    """
    done = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(code)],
      input=json.dumps([states[i - 1] for i in at]),
      capture_output=True,
      text=True,
      cwd=shared.ROOT,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    for i, rest in zip(at, json.loads(done.stdout), strict=True):
      self.assertEqual(rest, whole[i:], i)

  # --- columns and groups ----------------------------------------------------

  def columns_store(self, group=None, **changes):
    n = 600
    x = np.arange(n, dtype=np.float32)[:, None] + np.zeros(3, np.float32)
    columns = {
      "x": x,
      "cond": np.arange(n, dtype=np.int32) % 7,
      "token": np.arange(n) // 2,
    }
    path = pathlib.Path(self.create_tempdir().full_path) / "s"
    sizes = {"bucket_rows": 256, "shard_rows": 128, "chunk_rows": 32}
    return create.write_store(path, columns, group=group, **sizes, **changes)

  def test_batches_have_the_columns_of_training_or_those_asked_for(self):
    found = self.columns_store()
    for names, wanted in (
      (None, {"x", "cond", "row"}),
      (("x",), {"x", "row"}),
      (("x", "token"), {"x", "token", "row"}),
    ):
      for batch in loader.batches(found, batch_rows=50, seed=0, columns=names):
        self.assertEqual(set(batch), wanted)
        index = batch["x"][:, 0].astype(int)
        if "cond" in wanted:
          np.testing.assert_array_equal(batch["cond"], index % 7)
        if "token" in wanted:
          np.testing.assert_array_equal(batch["token"], index // 2)
    with self.assertRaisesRegex(InputError, "columns=x, target"):
      loader.batches(found, batch_rows=50, seed=0, columns=("x", "target"))

  def test_groups_are_read_whole_in_one_order_and_restored(self):
    found = self.columns_store(group="token")
    arguments = {"batch_rows": 20, "seed": 3, "grouped": True, "epochs": 2}
    arguments |= {"window_chunks": 2, "columns": ("x", "token")}
    whole = take(loader.batches(found, **arguments))
    self.assertLen(whole, 30)
    self.assertEqual(loader.count_batches(found, **arguments), 30)
    self.assertEqual(whole[0]["x"].shape, (20, 2, 3))
    self.assertEqual(whole[0]["row"].shape, (20, 2))
    for batch in whole:  # both sites of a token, in their order
      np.testing.assert_array_equal(
        batch["token"], batch["token"][:, :1].repeat(2, axis=1)
      )
      np.testing.assert_array_equal(
        batch["x"][:, 1] - batch["x"][:, 0], np.ones((20, 3))
      )
    for half in (whole[:15], whole[15:]):
      tokens = np.concatenate([b["token"][:, 0] for b in half])
      self.assertCountEqual(tokens, range(300))
      self.assertFalse((np.sort(tokens) == tokens).all())
    self.assert_same(take(loader.batches(found, **arguments)), whole)
    for at in (1, 7, 16, 29):
      iterator = iter(loader.batches(found, **arguments))
      take(iterator, at)
      again = iter(loader.batches(found, **arguments))
      again.set_state(json.loads(json.dumps(iterator.get_state())))
      self.assert_same(take(again), whole[at:])

  def test_single_rows_have_no_groups(self):
    with self.assertRaisesRegex(InputError, "grouped=True: .*no groups"):
      loader.batches(self.columns_store(), batch_rows=9, seed=0, grouped=True)

  @parameterized.parameters((301, 1), (302, 2))
  def test_too_few_rows_for_one_batch(self, batch_rows, processes):
    found = self.store(300)
    with self.assertRaisesRegex(
      InputError, r"rows of the store \(300\)"
    ) as got:
      loader.batches(
        found,
        batch_rows=batch_rows,
        seed=0,
        epochs=None,
        process_count=processes,
      )
    self.assertEqual(got.exception.field, "batch_rows")

  @parameterized.parameters("batch_rows", "window_chunks", "epochs", "lanes")
  def test_settings_below_one(self, name):
    found = self.store(300)
    arguments = {"batch_rows": 10, "seed": 0} | {name: 0}
    with self.assertRaises(InputError) as got:
      loader.batches(found, **arguments)
    self.assertEqual(got.exception.field, name)


if __name__ == "__main__":
  absltest.main()
