"""Damaged stores: every damage is refused, in one line that names the file."""

import hashlib
import json
import pathlib
import random
import shutil

import numpy as np
from absl.testing import absltest, parameterized

from saejax import durable
from saejax.data import summary
from saejax.data.store import create, ledger, manifest, reader, writer
from saejax.data.store import place as places
from saejax.errors import InputError
from tests.data import tiny

SMALL = {"bucket_rows": 64, "shard_rows": 32, "chunk_rows": 8}


def make(path, n=150):
  x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
  doc = np.arange(n)
  return create.write_store(path, {"x": x, "doc": doc}, **SMALL)


def use(path):
  """Opens a store and reads every row."""
  found = reader.open(path)
  return {"mean": found.stats["mean"], **found.whole(*found.columns)}


class DamageTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / "store"
    self.made = make(self.path)
    self.entry = self.path / "ledger" / "00000001.json"

  def refuse(self, message, call=use):
    with self.assertRaisesRegex(InputError, message) as caught:
      call(self.path)
    self.assertEqual(caught.exception.field, "path")
    self.assertNotIn("\n", str(caught.exception))

  def rewrite(self, file, old, new):
    content = file.read_bytes()
    self.assertIn(old, content)
    file.write_bytes(content.replace(old, new, 1))

  def sum_again(self):
    """A manifest that fits whatever is there: damage by someone with tools."""
    (self.path / manifest.NAME).unlink()
    shards = {str(f.relative_to(self.path)) for f in self.path.glob("*/c/**/*")}
    files = [
      str(f.relative_to(self.path))
      for f in self.path.rglob("*")
      if f.is_file() and f.parent.name != writer.MADE
    ]
    manifest.write(
      places.at(self.path),
      [f for f in files if f not in shards],
      {f: (self.path / f).stat().st_size for f in files if f in shards},
    )

  # --- the ledger ------------------------------------------------------------

  def test_the_last_byte_of_an_entry(self):
    content = bytearray(self.entry.read_bytes())
    content[-1] ^= 1
    self.entry.write_bytes(content)
    self.refuse("00000001.json: differs")
    self.sum_again()
    self.refuse("00000001.json: must be JSON")

  @parameterized.parameters("other rows", "renamed", "blanks")
  def test_an_entry_that_was_changed(self, damage):
    content = self.entry.read_bytes()
    changed = {
      "other rows": content.replace(b'"rows":64', b'"rows":32'),
      "renamed": (self.path / "ledger" / "00000000.json").read_bytes(),
      "blanks": content.replace(b'"rows":64', b'"rows": 64'),
    }[damage]
    self.assertNotEqual(changed, content)
    self.entry.write_bytes(changed)
    self.refuse("00000001.json: ")
    self.sum_again()
    self.refuse("00000001.json: differs from its checksum")

  def test_a_lost_entry(self):
    self.entry.unlink()
    self.refuse("00000001.json: the file is missing")
    self.sum_again()
    self.refuse("ledger: must have 150 rows, has 86")

  @parameterized.parameters(10**18, -1, "many", 65, None, 1.5)
  def test_rows_that_cannot_be(self, rows):
    entry = json.loads(self.entry.read_bytes())
    entry = durable.seal(entry | {"rows": rows})
    self.entry.write_bytes(ledger.encoded(entry))
    self.sum_again()
    self.refuse("path=.*")

  def test_an_entry_that_the_manifest_lacks_is_not_read(self):
    shutil.copy(self.entry, self.entry.with_name("00000007.json"))
    np.testing.assert_array_equal(
      use(self.path)["x"], self.made.whole("x")["x"]
    )

  # --- small files -----------------------------------------------------------

  def test_a_digit_of_the_moments(self):
    stats = self.path / "stats.json"
    digit = stats.read_bytes().index(b'"mean":[') + 12
    content = bytearray(stats.read_bytes())
    content[digit] = ord("1") + (content[digit] == ord("1"))
    stats.write_bytes(content)
    self.refuse("stats.json: differs")

  @parameterized.parameters("meta.json", "stats.json", "manifest.json")
  def test_hostile_json(self, name):
    file = self.path / name
    for content in (b"[" * 100_000, b"[]", b"null", b"{}", b"{", b"\xff", b""):
      file.write_bytes(content)
      if name != manifest.NAME:
        self.refuse(f"{name}: ")
        self.sum_again()
      self.refuse("path=.*store")

  def test_unreadable_files_are_named(self):
    for name in ("meta.json", "stats.json", "ledger/00000000.json"):
      file = self.path / name
      content = file.read_bytes()
      file.unlink()
      file.mkdir()
      self.refuse(f"path=.*{name}: cannot be read")
      file.rmdir()
      file.write_bytes(content)
    use(self.path)

  def test_array_metadata(self):
    file = self.path / "x" / "zarr.json"
    self.rewrite(file, b'"shape":[192,3]', b'"shape":[193,3]')
    self.refuse("x/zarr.json: differs")

  def test_another_format(self):
    record = json.loads((self.path / manifest.NAME).read_bytes())
    (self.path / manifest.NAME).write_text(json.dumps(record | {"format": 9}))
    self.refuse("manifest.json: the format must be 3")

  # --- shards ----------------------------------------------------------------

  def shards(self, column="x"):
    files = (self.path / column / "c").rglob("*")
    return sorted(f for f in files if f.is_file())

  @parameterized.parameters("x", "doc")
  def test_swapped_and_doubled_shards_are_found_on_reading(self, column):
    first, second = self.shards(column)[:2]
    a, b = first.read_bytes(), second.read_bytes()
    self.assertEqual(len(a), len(b))
    first.write_bytes(b)
    reader.open(self.path)  # sizes are right and each chunk is sound
    self.refuse("c/0.*: rows from 0 on differ")
    second.write_bytes(a)
    self.refuse("c/0.*: rows from 0 on differ")
    self.refuse("c/0", summary.inspect)
    first.write_bytes(a)
    self.refuse("c/1.*: rows from 32 on differ")

  def test_an_open_store_finds_them_too(self):
    first, second = self.shards()[:2]
    self.made.read(0, 8)
    second.write_bytes(first.read_bytes())
    with self.assertRaisesRegex(InputError, "rows from 40 on"):
      self.made.read(40, 41)
    with self.assertRaisesRegex(InputError, "rows from 40 on"):
      self.made.take([40])

  def test_missing_truncated_and_longer_shards(self):
    shard = self.shards()[2]
    content = shard.read_bytes()
    for found, message in (
      (None, "the file is missing"),
      (content[:-1], "the file must have"),
      (content + b"0", "the file must have"),
    ):
      shard.unlink() if found is None else shard.write_bytes(found)
      self.refuse(f"c/2/0: {message}")
    shard.unlink()
    with self.assertRaisesRegex(InputError, "x: .*missing"):
      self.made.read(64, 72)

  def test_every_kind_of_file_in_every_place(self):
    """Random bytes of random files: refused, or of no effect at all."""
    before = use(self.path)
    files = sorted(f for f in self.path.rglob("*") if f.is_file())
    draw = random.Random(0)
    refused = 0
    for _ in range(120):
      file = draw.choice(files)
      content = file.read_bytes()
      damaged = bytearray(content)
      at = draw.randrange(len(content))
      kind = draw.choice(("flip", "digit", "cut", "zero", "append"))
      if kind == "flip":
        damaged[at] ^= 1 << draw.randrange(8)
      elif kind == "digit":
        damaged[at] = ord(str(draw.randrange(10)))
      elif kind == "cut":
        del damaged[at:]
      elif kind == "zero":
        damaged[at : at + 64] = bytes(len(damaged[at : at + 64]))
      else:
        damaged += b"{}"
      file.write_bytes(damaged)
      try:
        found = use(self.path)
      except InputError as error:
        refused += 1
        self.assertNotIn("\n", str(error))
      else:
        self.assertEqual(found.keys(), before.keys())
        for name, values in before.items():
          np.testing.assert_array_equal(found[name], values, f"{file} {kind}")
      file.write_bytes(content)
    self.assertGreater(refused, 80)

  # --- verify and content ----------------------------------------------------

  def test_content_is_the_sha256_of_the_manifest(self):
    content = (self.path / manifest.NAME).read_bytes()
    self.assertEqual(self.made.content, hashlib.sha256(content).hexdigest())

  def test_verify_finds_what_reading_does_not_touch(self):
    self.made.verify()
    shard = self.shards()[1]
    content = shard.read_bytes()
    for at in (0, len(content) // 2, len(content) - 3):  # rows and index
      damaged = bytearray(content)
      damaged[at] ^= 1
      shard.write_bytes(damaged)
      self.refuse("x: a shard", lambda path: reader.open(path).verify())
    shard.write_bytes(content)
    self.made.verify()

  # --- unfinished stores -----------------------------------------------------

  def unfinished(self):
    """A store of which two of three buckets were written."""
    meta = self.made.meta
    all_ = {name: v[:128] for name, v in self.made.whole("x", "doc").items()}
    shutil.rmtree(self.path)
    with writer.Writer(self.path, meta) as out:
      for bucket in (0, 1):
        part = {n: v[64 * bucket : 64 * bucket + 64] for n, v in all_.items()}
        out.write(bucket, part, read=64)
    return meta

  def test_a_draft_of_an_entry_was_never_there(self):
    meta = self.unfinished()
    draft = self.entry.with_name("00000002.json.1234.tmp")
    draft.write_bytes(b'{"bucket":2,"dro')
    with writer.Writer(self.path, meta) as out:
      self.assertEqual(out.rows, 128)
    self.assertFalse(draft.exists())

  def test_an_entry_that_changed(self):
    meta = self.unfinished()
    self.rewrite(self.entry, b'"read":64', b'"read":46')
    self.refuse("differs from its checksum", lambda p: writer.Writer(p, meta))

  def test_a_shard_that_is_gone(self):
    meta = self.unfinished()
    self.shards()[1].unlink()
    self.refuse("x/c/1/0: the file is", lambda p: writer.Writer(p, meta))

  def test_array_metadata_of_an_unfinished_store(self):
    meta = self.unfinished()
    for content in (b"{}", b"[" * 10_000, b"\xff"):
      (self.path / "x" / "zarr.json").write_bytes(content)
      self.refuse("x/zarr.json: must desc", lambda p: writer.Writer(p, meta))

  def test_a_second_writer(self):
    meta = self.unfinished()
    with writer.Writer(self.path, meta):
      self.refuse("another process", lambda p: writer.Writer(p, meta))
    writer.Writer(self.path, meta).close()
    self.assertEmpty(list(self.path.glob(".lock-*")))

  def test_a_bucket_is_written_over_only_by_the_same_rows(self):
    meta = self.unfinished()
    before = tiny.files(self.path)
    found = reader.open(self.path, growing=True).whole("x", "doc")
    with writer.Writer(self.path, meta | {"shuffled": True}) as out:
      part = {name: v[:64] for name, v in found.items()}
      other = {**part, "x": part["x"] + 1}
      with self.assertRaisesRegex(InputError, "00000000.json: has other rows"):
        out.write(0, other, read=64)
    self.assertEqual(tiny.files(self.path), before)


if __name__ == "__main__":
  absltest.main()
