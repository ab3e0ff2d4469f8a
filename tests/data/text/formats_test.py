"""Files of a corpus: each in its own format, packed or not, refused by name."""

import errno
import gzip
import importlib
import json
import os
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from saejax.data.text import corpus as text
from saejax.data.text import formats, records
from saejax.errors import InputError

TEXTS = [f"document {i}: " + "word " * i for i in range(12)]


def lines(texts, field="text"):
  return "".join(json.dumps({field: t}) + "\n" for t in texts).encode()


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def all(self, name="", **settings):
    corpus = text.documents(str(self.folder / name), **settings)
    return [corpus[i] for i in range(len(corpus))]

  def write(self, name, content):
    (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (self.folder / name).write_bytes(content)

  def packed(self, suffix, content):
    if suffix == ".gz":
      return gzip.compress(content)
    if suffix == ".zst":
      try:
        library = importlib.import_module("zstandard")
      except ImportError:
        self.skipTest("pip install zstandard")
      return library.ZstdCompressor().compress(content)
    return content

  # --- formats ---------------------------------------------------------------

  def test_a_folder_of_shards_holds_the_documents_of_all_shards(self):
    for i in range(4):
      self.write(f"shard-{i}.jsonl", lines(TEXTS[i::4]))
    self.assertCountEqual(self.all(), TEXTS)
    self.assertCountEqual(self.all("*.jsonl"), TEXTS)
    corpus = text.documents(str(self.folder))
    self.assertEqual(corpus.describe()["field"], "text")

  def test_each_file_of_a_mixed_folder_is_read_as_itself(self):
    self.write("a/one.jsonl", lines(TEXTS[:3]))
    self.write("a/empty.txt", b"")
    self.write("b/two.txt", TEXTS[3].encode())
    self.write("b/three.ndjson", lines(TEXTS[4:6]) + b"\n\n")
    self.write("c/lines.json", b"\n" + lines(TEXTS[6:8]))
    pretty = json.dumps({"text": "no document of its own"}, indent=2)
    self.write("c/package.json", pretty.encode())
    self.write("d/list.json", b'["a", "b"]\n')
    self.write("e/five.JSONL.GZ", gzip.compress(lines(TEXTS[8:10])))
    self.write("e/text.md.gz", gzip.compress(TEXTS[10].encode()))
    want = [*TEXTS[:11], "", pretty, '["a", "b"]\n']
    self.assertCountEqual(self.all(), want)

  @parameterized.product(
    name=["a.jsonl", "a.json", "a.ndjson"], suffix=["", ".gz", ".zst"]
  )
  def test_packed_lines_are_those_of_the_plain_file(self, name, suffix):
    self.write(name + suffix, self.packed(suffix, lines(TEXTS)))
    self.assertCountEqual(self.all(), TEXTS)
    self.assertCountEqual(self.all(name + suffix), TEXTS)

  @parameterized.parameters(".gz", ".zst")
  def test_several_members_or_frames_are_one_file(self, suffix):
    parts = [self.packed(suffix, lines(TEXTS[i::3])) for i in range(3)]
    self.write(f"a.jsonl{suffix}", b"".join(parts))
    self.assertCountEqual(self.all(), TEXTS)

  def test_long_lines_and_files_are_whole(self):
    # Longer than what is read at once, and a last line without its end.
    long = ["é" * 700_000, "x" * 3_000_000, "", "end"]
    content = lines(long).rstrip()
    self.write("a.jsonl", content)
    self.write("b.jsonl.gz", gzip.compress(content))
    self.write("c.txt", long[1].encode())
    self.assertCountEqual(self.all(), long)

  def test_lines_are_read_again_by_place_in_any_order(self):
    self.write("a.jsonl", b"\n" + lines(TEXTS[:5]))
    self.write("b.txt", TEXTS[5].encode())
    self.write("c.jsonl.gz", gzip.compress(lines(TEXTS[6:])))
    source = formats.Files(
      formats.paths(str(self.folder)), records.Text("text")
    )
    found = dict(source.texts())
    self.assertLen(found, len(TEXTS))
    for place in sorted(found, reverse=True):
      self.assertEqual(source.read(place), found[place])

  def test_ids_may_be_packed(self):
    name = text.write_ids(self.folder / "ids.jsonl", [[3, 1, 7], [2]])
    content = pathlib.Path(name.removeprefix(text.IDS)).read_bytes()
    self.write("packed.jsonl.gz", gzip.compress(content))
    plain = text.documents(name)
    packed = text.documents(f"ids:{self.folder / 'packed.jsonl.gz'}")
    self.assertEqual(packed.fingerprint, plain.fingerprint)
    self.assertEqual((plain.highest, packed.highest), (7, 7))
    self.write("a.txt", b"3 1 7")
    self.assertIsNone(text.documents(str(self.folder / "a.txt")).highest)

  # --- refusals --------------------------------------------------------------

  def assert_refused(self, name, *parts):
    with self.assertRaises(InputError) as caught:
      text.documents(str(self.folder))
    message = str(caught.exception)
    self.assertStartsWith(message, f"harvest.corpus={self.folder / name}")
    self.assertNotIn("\n", message)
    for part in parts:
      self.assertIn(part, message)

  @parameterized.parameters(".gz", ".zst")
  def test_damaged_packed_files_are_refused_by_name(self, suffix):
    whole = self.packed(suffix, lines(TEXTS * 100))
    for content in (whole[:-20], b"no archive at all", whole[:9]):
      self.write(f"a.jsonl{suffix}", content)
      self.assert_refused(f"a.jsonl{suffix}", "must be readable (")

  def test_a_missing_zstandard_says_how_to_install_it(self):
    self.write("a.jsonl.zst", b"x")
    with mock.patch.dict(sys.modules, {"zstandard": None}):
      self.assert_refused("a.jsonl.zst", "pip install 'saejax[zstd]'")

  @parameterized.parameters(
    (b'{"text": "a"}\n{"te\n', " line 2: must be JSON ("),
    (b"[" * 100_000, " line 1: must be JSON, and is nested too deep"),
    (b'\n\n{"a": "\xff"}\n', " line 3: must be JSON ("),
  )
  def test_damaged_lines_are_refused_by_file_and_line(self, content, rule):
    self.write("a.jsonl", content)
    self.write("b.txt", b"b")
    self.assert_refused("a.jsonl", rule)

  def test_a_line_that_is_no_object_is_refused_by_file_and_line(self):
    self.write("a.jsonl", b'{"text": "a"}\n[1]\n')
    with self.assertRaisesRegex(
      InputError, f"harvest.field=text: .*; {self.folder}/a.jsonl line 2 has no"
    ):
      text.documents(str(self.folder))

  @parameterized.parameters(b"\x89PNG\xff", b"text with\x00a zero")
  def test_binary_files_are_refused_by_name(self, content):
    self.write("image.png", content)
    self.assert_refused("image.png", "must be UTF-8 text (byte ")

  def test_a_link_to_nothing_is_refused_by_name(self):
    self.write("a.txt", b"a")
    (self.folder / "b.txt").symlink_to(self.folder / "gone.txt")
    self.assert_refused("b.txt", "must be readable (No such file")

  def test_closed_files_and_folders_are_refused_by_name(self):
    self.write("a/closed/b.txt", b"a")
    closed = self.folder / "a" / "closed"
    error = PermissionError(errno.EACCES, "Permission denied", str(closed))
    scan = os.scandir

    def scandir(path):
      if str(path) == str(closed):
        raise error
      return scan(path)

    with mock.patch.object(os, "scandir", scandir):
      self.assert_refused("a/closed", "must be readable (Permission denied)")
    with mock.patch.object(pathlib.Path, "open", side_effect=error):
      self.assert_refused("a/closed", "must be readable (Permission denied)")
    with mock.patch.object(pathlib.Path, "is_file", side_effect=error):
      self.assert_refused("a/closed", "must be readable (Permission denied)")

  def test_a_full_disk_for_unpacked_texts_is_said(self):
    self.write("a.jsonl.gz", gzip.compress(lines(TEXTS)))
    full = mock.Mock(spec=["write", "flush", "close"])
    full.write.side_effect = OSError(errno.ENOSPC, "No space left on device")
    nowhere = FileNotFoundError(errno.ENOENT, "No usable temporary directory")
    for patched, rule in (
      ({"return_value": full}, "room for unpacked texts"),
      ({"side_effect": nowhere}, "No usable temporary directory"),
    ):
      with (
        mock.patch.object(tempfile, "TemporaryFile", **patched),
        self.assertRaisesRegex(InputError, f"^harvest.corpus=.*{rule}"),
      ):
        text.documents(str(self.folder))

  def test_home_is_expanded(self):
    self.write("a.txt", b"a")
    with mock.patch.dict(os.environ, {"HOME": str(self.folder)}):
      self.assertLen(text.documents("~/a.txt"), 1)
      self.assertLen(text.documents("~/*.txt"), 1)


if __name__ == "__main__":
  absltest.main()
