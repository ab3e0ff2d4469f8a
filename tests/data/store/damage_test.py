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
from saejax.errors import InputError

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
    self.ledger = self.path / "ledger" / "00000.jsonl"

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
    files = {
      str(f.relative_to(self.path)): durable.checksum(f)
      for f in self.path.rglob("*")
      if f.is_file() and f.name != writer.MADE
    }
    manifest.write(
      self.path,
      [f for f in files if f not in shards],
      {name: found for name, found in files.items() if name in shards},
    )

  # --- the ledger ------------------------------------------------------------

  def test_the_last_byte_of_the_ledger(self):
    content = bytearray(self.ledger.read_bytes())
    content[-1] ^= 1
    self.ledger.write_bytes(content)
    self.refuse("00000.jsonl: differs")
    self.sum_again()
    self.refuse("00000.jsonl: the line at byte .* is incomplete")

  @parameterized.parameters("lost", "doubled", "swapped", "other rows")
  def test_lines_of_the_ledger(self, damage):
    lines = self.ledger.read_bytes().splitlines(keepends=True)
    self.assertLen(lines, 3)
    found = {
      "lost": [lines[0], lines[2]],
      "doubled": [lines[0], lines[1], lines[1], lines[2]],
      "swapped": [lines[1], lines[0], lines[2]],
      "other rows": [lines[0].replace(b'"rows":64', b'"rows":32'), *lines[1:]],
    }[damage]
    self.ledger.write_bytes(b"".join(found))
    self.refuse("00000.jsonl")
    self.sum_again()
    self.refuse("00000.jsonl: the line at byte .* differs from its checksum")

  def test_a_lost_last_line_with_sums_made_again(self):
    lines = self.ledger.read_bytes().splitlines(keepends=True)
    self.ledger.write_bytes(b"".join(lines[:-1]))
    self.sum_again()
    self.refuse("ledger: must have 150 rows, has 128")

  @parameterized.parameters(10**18, -1, "many", 65, None, 1.5)
  def test_rows_that_cannot_be(self, rows):
    lines, before = [], ""
    for raw in self.ledger.read_bytes().splitlines():
      line = json.loads(raw)
      if line["bucket"] == 0:
        line["rows"] = rows
      line = durable.seal(line, before)
      before = line["sum"]
      lines.append(durable.canonical(line).encode() + b"\n")
    self.ledger.write_bytes(b"".join(lines))
    self.sum_again()
    self.refuse("path=.*")

  def test_a_second_ledger_is_not_read(self):
    shutil.copy(self.ledger, self.ledger.with_name("00001.jsonl"))
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
    for name in ("meta.json", "stats.json", "ledger/00000.jsonl"):
      file = self.path / name
      content = file.read_bytes()
      file.unlink()
      file.mkdir()
      self.refuse("path=.*(is missing|must be a store)")
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
    self.refuse("manifest.json: the format must be 2")

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
      self.refuse("c/1/0: differs", lambda path: reader.open(path).verify())
    shard.write_bytes(content)
    self.made.verify()

  # --- unfinished stores -----------------------------------------------------

  def unfinished(self, torn=b""):
    """A store of which two of three buckets were written."""
    meta = self.made.meta
    all_ = {name: v[:128] for name, v in self.made.whole("x", "doc").items()}
    shutil.rmtree(self.path)
    out = writer.Writer(self.path, meta)
    for start in (0, 64):
      part = {name: v[start : start + 64] for name, v in all_.items()}
      out.write(part, resume={"document": start}, read=64)
    out.close()
    with self.ledger.open("ab") as file:
      file.write(torn)
    return meta

  def test_a_torn_last_line_was_never_there(self):
    meta = self.unfinished(torn=b'{"bucket":2,"dro')
    out = writer.Writer(self.path, meta)
    out.close()
    self.assertEqual(out.rows, 128)
    self.assertEndsWith(self.ledger.read_bytes(), b"}\n")

  @parameterized.parameters(
    (b'"document":64', b'"document":65'), (b'"read":64', b'"read":46')
  )
  def test_a_resume_point_that_changed(self, old, new):
    meta = self.unfinished()
    self.rewrite(self.ledger, old, new)
    self.refuse("differs from its checksum", lambda p: writer.Writer(p, meta))

  def test_a_shard_that_is_gone(self):
    meta = self.unfinished()
    self.shards()[1].unlink()
    self.refuse("x/c/1/0: the shard must", lambda p: writer.Writer(p, meta))

  def test_array_metadata_of_an_unfinished_store(self):
    meta = self.unfinished()
    for content in (b"{}", b"[" * 10_000, b"\xff"):
      (self.path / "x" / "zarr.json").write_bytes(content)
      self.refuse("x/zarr.json: must desc", lambda p: writer.Writer(p, meta))

  def test_a_second_writer(self):
    meta = self.unfinished()
    first = writer.Writer(self.path, meta)
    try:
      self.refuse("another process", lambda p: writer.Writer(p, meta))
    finally:
      first.close()


class LedgerTest(absltest.TestCase):
  def test_a_line_torn_anywhere_was_never_there(self):
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


if __name__ == "__main__":
  absltest.main()
