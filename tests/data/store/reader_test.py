"""Stores: what is written is read, and what is damaged is refused."""

import json
import multiprocessing
import os
import pathlib
import pickle
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import summary
from saejax.data.store import arrays, ledger, reader, writer
from saejax.errors import InputError
from tests import shared
from tests.data import tiny

SMALL = {"bucket_rows": 64, "shard_rows": 32, "chunk_rows": 8}


def rows(n, d=6, dtype=np.float32):
  """Row i holds values that no other row holds."""
  x = np.arange(n, dtype=np.float32)[:, None] + np.arange(d) / 100
  return x.astype(dtype)


def shards(path):
  return sorted((path / "x" / "c").rglob("*/0"))


class StoreTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / "store"

  def write(self, n=150, **changes):
    index = np.arange(n)
    return reader.write_arrays(
      self.path, rows(n), index // 10, index % 10, index, **(SMALL | changes)
    )

  @parameterized.product(
    n=(1, 64, 150, 257), dtype=(np.float32, jnp.bfloat16), seed=(None, 3)
  )
  def test_every_row_is_there_once_with_its_provenance(self, n, dtype, seed):
    x = rows(n, dtype=dtype)
    index = np.arange(n)
    found = reader.write_arrays(
      self.path, x, index * 7, index * 5, index, seed=seed, **SMALL
    )
    self.assertEqual(found.rows, n)
    self.assertEqual(found.meta["dtype"], np.dtype(dtype).name)
    all_ = tiny.everything(found)
    self.assertEqual(all_["x"].dtype, x.dtype)
    np.testing.assert_array_equal(np.sort(all_["tok"]), index)
    np.testing.assert_array_equal(all_["x"], x[all_["tok"]])
    np.testing.assert_array_equal(all_["doc"], all_["tok"] * 7)
    np.testing.assert_array_equal(all_["pos"], all_["tok"] * 5)
    if seed is None:
      np.testing.assert_array_equal(all_["tok"], index)
    elif n > 100:
      self.assertFalse((all_["tok"] == index).all())
    some = np.random.default_rng(0).integers(0, n, 20)
    one_by_one = found.provenance(some)
    np.testing.assert_array_equal(one_by_one["tok"], all_["tok"][some])
    np.testing.assert_allclose(
      found.stats["mean"], x.astype(np.float64).mean(0), rtol=1e-12
    )

  def test_rows_of_zeros_are_rows(self):
    found = reader.write_arrays(
      self.path, np.zeros((40, 3), np.float32), **SMALL
    )
    np.testing.assert_array_equal(found.read(0, 40), np.zeros((40, 3)))

  def test_rows_that_are_not_finite_pass_unchanged(self):
    x = rows(40)
    x[3, 2], x[9, 0] = np.nan, np.inf
    found = reader.write_arrays(self.path, x, seed=None, **SMALL)
    np.testing.assert_array_equal(found.read(0, 40), x)
    self.assertEqual(found.stats["nonfinite_rows"], 2)
    self.assertTrue(np.isfinite(found.stats["mean"]).all())

  def test_rows_beyond_the_last_do_not_read_as_zeros(self):
    found = self.write(n=150)
    for read in (
      lambda: found.read(140, 151),
      lambda: found.read(-1, 3),
      lambda: found.provenance([150]),
      lambda: found.provenance([-1]),
    ):
      with self.assertRaises(IndexError):
        read()

  def test_an_equal_write_gives_equal_bytes(self):
    self.write()
    other = self.path.with_name("other")
    index = np.arange(150)
    reader.write_arrays(
      other, rows(150), index // 10, index % 10, index, **SMALL
    )
    self.assertEqual(tiny.files(self.path), tiny.files(other))

  def test_other_arrays_do_not_go_into_the_same_folder(self):
    self.write()
    before = tiny.files(self.path)
    with self.assertRaisesRegex(InputError, "other settings"):
      reader.write_arrays(self.path, rows(150) + 1, **SMALL)
    self.assertEqual(tiny.files(self.path), before)

  def test_a_folder_with_other_files_is_left_alone(self):
    self.path.mkdir()
    (self.path / "thesis.txt").write_text("mine")
    with self.assertRaisesRegex(InputError, "thesis.txt"):
      self.write()
    self.assertEqual(tiny.files(self.path), {"thesis.txt": b"mine"})

  def test_two_hosts_leave_holes_that_are_never_read(self):
    meta = self.write().meta | {"capacity": 320, "content": ""}
    path = self.path.with_name("hosts")
    index = np.arange(230)
    data = {"x": rows(230)} | {
      name: index.astype(dtype) for name, dtype in arrays.PROVENANCE.items()
    }
    for host, parts in enumerate(
      # Buckets 0, 2, 4 and 1, 3; the last of each is partial.
      [[(0, 64), (64, 128), (128, 150)], [(150, 214), (214, 230)]]
    ):
      out = writer.Writer(path, meta, host=host, hosts=2)
      for start, stop in parts:
        part = {k: v[start:stop] for k, v in data.items()}
        out.write(part, resume={}, dropped={}, tokens=0)
      out.finish()
    found = reader.open(path)
    self.assertEqual(found.rows, 230)
    self.assertEqual(found.intervals[-2:], [(192, 208), (256, 278)])
    all_ = tiny.everything(found)
    np.testing.assert_array_equal(np.sort(all_["tok"]), np.arange(230))
    np.testing.assert_array_equal(all_["x"], data["x"][all_["tok"]])
    with self.assertRaises(IndexError):
      found.read(200, 210)

  def test_pickles_without_handles(self):
    found = self.write()
    found.read(0, 8)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.read(0, 150), found.read(0, 150))

  # --- Refusals --------------------------------------------------------------

  def refuse(self, message, **arguments):
    with self.assertRaisesRegex(InputError, message) as caught:
      reader.open(self.path, **arguments)
    self.assertNotIn("\n", str(caught.exception))
    return caught.exception

  def test_no_store(self):
    self.refuse("must be a store")

  def test_half_written_store(self):
    self.write()
    (self.path / "stats.json").unlink()
    self.refuse("must be complete.*repeat the harvest")

  def test_damaged_stats(self):
    self.write()
    (self.path / "stats.json").write_text('{"rows":')
    self.refuse("damaged")

  def test_another_format(self):
    self.write()
    meta = json.loads((self.path / "meta.json").read_text())
    (self.path / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    self.refuse("format must be")

  @parameterized.parameters(
    ("model", "minilm"), ("layer", 4), ("point", "mlp_out"), ("d", 7)
  )
  def test_another_model_or_site_or_width(self, field, value):
    meta = {
      "model": {"name": "tiny"},
      "site": {"layer": 3, "point": "resid_post"},
    }
    self.write(meta=meta)
    right = {"model": "tiny", "layer": 3, "point": "resid_post", "d": 6}
    reader.open(self.path, expect=right)
    error = self.refuse(f"{right[field]}", expect=right | {field: value})
    self.assertEqual(error.field, f"harvest.{field}")
    self.assertEqual(error.value, value)

  def test_missing_shard(self):
    found = self.write()
    shards(self.path)[2].unlink()
    self.refuse("x/c/2/0: the shard is missing")
    with self.assertRaisesRegex(InputError, "missing"):
      found.read(64, 72)

  def test_truncated_shard(self):
    self.write()
    shard = shards(self.path)[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    self.refuse("x/c/1/0: the shard must have")

  def test_flipped_byte(self):
    found = self.write()
    shard = shards(self.path)[1]
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    reader.open(self.path)
    with self.assertRaisesRegex(InputError, "corrupt.*DATA_LOSS"):
      found.read(32, 64)
    with self.assertRaisesRegex(InputError, "checksum"):
      found.verify()

  def test_swapped_shards_are_found_by_verify(self):
    found = self.write()
    found.verify()
    first, second = shards(self.path)[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    reader.open(self.path).read(0, 64)  # each chunk is sound
    with self.assertRaisesRegex(InputError, "x/c/0/0.*ledger's checksum"):
      found.verify()
    with self.assertRaisesRegex(InputError, "ledger's checksum"):
      summary.inspect(self.path)

  def test_a_damaged_line_inside_the_ledger(self):
    self.write()
    path = self.path / "ledger" / "00000.jsonl"
    path.write_bytes(b"{bad\n" + path.read_bytes())
    self.refuse("ledger must be JSON lines")

  def test_a_second_writer(self):
    meta = self.write().meta
    first = writer.Writer(self.path, meta)
    try:
      with self.assertRaisesRegex(InputError, "another process"):
        writer.Writer(self.path, meta)
    finally:
      first.close()

  @parameterized.parameters(
    ("bucket_rows", 100, "multiple of harvest.shard_rows"),
    ("shard_rows", 12, "multiple of harvest.chunk_rows"),
    ("chunk_rows", 0, "at least 1"),
  )
  def test_sizes_that_do_not_nest(self, name, value, message):
    with self.assertRaisesRegex(InputError, message) as caught:
      self.write(**{name: value})
    self.assertEqual(caught.exception.field, f"harvest.{name}")
    self.assertFalse(self.path.exists())

  def test_a_forked_child_is_refused_before_it_aborts(self):
    self.write()
    # A process of its own: JAX warns when its process forks.
    code = f"""
      import os, sys
      from saejax.data.store import reader as store
      from saejax.errors import InputError
      found = store.open({str(self.path)!r})
      found.read(0, 8)
      child = os.fork()
      if not child:
        refused = 0
        for use in (
          lambda: store.open({str(self.path)!r}),
          lambda: found.read(0, 8),
          lambda: found.provenance([1]),
        ):
          try:
            use()
          except InputError as error:
            refused += "fork" in str(error)
        os._exit(10 + refused)
      sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(code)], cwd=shared.ROOT
    )
    self.assertEqual(done.returncode, 13)

  def test_a_spawned_child_reads(self):
    found = self.write()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
      got = pool.apply(found.read, (0, 8))
    np.testing.assert_array_equal(got, found.read(0, 8))

  def test_inspect_says_what_is_there(self):
    self.write()
    found = summary.inspect(self.path)
    self.assertEqual(found["rows"], 150)
    self.assertEqual(found["documents"], 15)
    self.assertEqual(found["buckets"], 3)
    size = sum(
      p.stat().st_size for p in self.path.rglob("c/**/*") if p.is_file()
    )
    self.assertEqual(found["bytes"], size)
    self.assertAlmostEqual(found["entropy"], np.log(15) / np.log(150), places=6)
    json.dumps(found)


class LedgerTest(parameterized.TestCase):
  def test_a_torn_last_line_was_never_there(self):
    path = pathlib.Path(self.create_tempdir().full_path) / "ledger" / "0.jsonl"
    first = ledger.Ledger(path)
    first.append({"kind": "bucket", "bucket": 0})
    first.append({"kind": "bucket", "bucket": 1})
    first.close()
    content = path.read_bytes()
    second_line = content.index(b"\n") + 1
    for cut in range(second_line, len(content)):
      path.write_bytes(content[:cut])
      again = ledger.Ledger(path)
      again.close()
      self.assertLen(again.lines, 1)
      self.assertEqual(path.stat().st_size, second_line)

  def test_shard_files_are_those_on_disk(self):
    path = pathlib.Path(self.create_tempdir().full_path)
    found = reader.write_arrays(path / "s", rows(150), **SMALL)
    named = {name for line in found.lines for name in line["shards"]}
    on_disk = {
      os.path.relpath(p, path / "s")
      for name in arrays.NAMES
      for p in (path / "s" / name / "c").rglob("*")
      if p.is_file()
    }
    self.assertEqual(named, on_disk)


if __name__ == "__main__":
  absltest.main()
