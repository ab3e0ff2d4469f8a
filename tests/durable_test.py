"""saejax/durable.py: whole files or none, and JSON that is what it should be."""

import os
import pathlib
import subprocess
import sys
import textwrap
from unittest import mock

from absl.testing import absltest, parameterized

import saejax
from saejax import durable
from saejax.errors import InputError


class WriteTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def test_a_file_is_replaced_in_folders_that_are_made(self):
    path = self.folder / "a" / "b.json"
    durable.write_file(path, b"one")
    durable.write_file(path, b"two")
    self.assertEqual(path.read_bytes(), b"two")
    self.assertEqual(os.listdir(path.parent), ["b.json"])

  def test_no_space_leaves_the_earlier_file_and_no_draft(self):
    (self.folder / "f").write_bytes(b"before")
    code = textwrap.dedent("""
      import resource, signal, sys
      from saejax import durable, errors
      signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
      resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
      try:
        durable.write_file(sys.argv[1], b"x" * 5000, field="run_dir")
      except errors.InputError as error:
        print(error)
        sys.exit(7)
    """)
    done = subprocess.run(
      [sys.executable, "-c", code, str(self.folder / "f")],
      capture_output=True,
      text=True,
      cwd=pathlib.Path(saejax.__file__).parent.parent,
    )
    self.assertEqual(done.returncode, 7, done.stderr)
    self.assertRegex(done.stdout, "^run_dir=.*must have room for f .*free spac")
    self.assertEqual((self.folder / "f").read_bytes(), b"before")
    self.assertEqual(os.listdir(self.folder), ["f"])

  def test_content_and_name_are_on_disk_when_it_returns(self):
    done = []
    sync, replace = os.fsync, os.replace
    with (
      mock.patch.object(
        os, "fsync", side_effect=lambda f: (done.append("sync"), sync(f))
      ),
      mock.patch.object(
        os, "replace", side_effect=lambda *a: (done.append("name"), replace(*a))
      ),
    ):
      durable.write_file(self.folder / "f", b"x")
    self.assertEqual(done, ["sync", "name", "sync"])

  def test_a_folder_that_is_a_file_is_refused(self):
    (self.folder / "file").write_bytes(b"keep")
    with self.assertRaisesRegex(InputError, "path=.*must be a folder"):
      durable.write_file(self.folder / "file" / "f", b"x")
    self.assertEqual((self.folder / "file").read_bytes(), b"keep")

  def test_errors_of_tensorstore_are_errors_of_the_disk(self):
    with (
      self.assertRaisesRegex(InputError, "dir=a: .*room for rows.*; kept$"),
      durable.disk_errors("a", field="dir", what="rows", kept="kept"),
    ):
      raise ValueError("RESOURCE_EXHAUSTED [os_error_code='28']")
    with self.assertRaisesRegex(ValueError, "^other$"), durable.disk_errors(""):
      raise ValueError("other")

  @parameterized.parameters(
    (0, "0 bytes"),
    (999, "999 bytes"),
    (1000, "1.00 kB"),
    (999_600, "1.00 MB"),
    (12_345_678, "12.3 MB"),
    (3e30, "3000000000000 EB"),
  )
  def test_sizes_keep_three_digits(self, count, shown):
    self.assertEqual(durable.size(count), shown)


class ReadTest(parameterized.TestCase):
  @parameterized.parameters(
    (b"[" * 100_000, "must be JSON, and is nested"),
    (b'{"a":' * 100_000, "must be JSON, and is nested"),
    (b"[1]", "must hold an object, holds a list"),
    (b"1", "must hold an object, holds int"),
    (b'{"a": 1', "must be JSON"),
    (b"\xff{}", "must be JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "must be JSON"),
    (None, "cannot be read"),
  )
  def test_hostile_files_are_one_line_with_their_name(self, content, rule):
    path = pathlib.Path(self.create_tempdir().full_path) / "meta.json"
    if content is not None:
      path.write_bytes(content)
    with self.assertRaisesRegex(InputError, f"run=.*meta.json: {rule}"):
      durable.read_json(path, field="run")

  def test_a_folder_in_place_of_a_file_is_one_line_with_its_name(self):
    with self.assertRaisesRegex(InputError, "path=.*cannot be read"):
      durable.read_json(self.create_tempdir().full_path)

  def test_a_list_where_a_list_is_wanted(self):
    self.assertEqual(durable.parse_json("[1]", "f", kind=list), [1])


class SumsTest(absltest.TestCase):
  def test_equal_records_have_equal_text_and_digest(self):
    one, two = {"a": 1, "b": [2.5]}, {"b": [2.5], "a": 1}
    self.assertEqual(durable.canonical(one), '{"a":1,"b":[2.5]}')
    self.assertEqual(durable.digest(one), durable.digest(two))
    self.assertNotEqual(durable.digest(one), durable.digest(one | {"b": 1}))

  def test_any_change_of_a_line_or_of_its_place_breaks_its_seal(self):
    first = durable.seal({"rows": 5, "kind": "bucket"})
    second = durable.seal({"rows": 5, "kind": "bucket"}, first["sum"])
    self.assertTrue(durable.is_sealed(first))
    self.assertTrue(durable.is_sealed(second, first["sum"]))
    self.assertFalse(durable.is_sealed(first | {"rows": 6}))
    self.assertFalse(durable.is_sealed(first | {"more": 1}))
    self.assertFalse(durable.is_sealed({"rows": 5, "kind": "bucket"}))
    self.assertFalse(durable.is_sealed(first, second["sum"]))
    self.assertFalse(durable.is_sealed(second))

  def test_checksum_is_size_and_sha256(self):
    path = self.create_tempfile(content="abc").full_path
    start = "ba7816bf8f01cfea414140de5dae2223"
    self.assertEqual(durable.checksum(path)[0], 3)
    self.assertStartsWith(durable.checksum(path)[1], start)


class SealedFileTest(absltest.TestCase):
  def test_a_record_comes_back_and_a_changed_value_is_refused(self):
    path = pathlib.Path(self.create_tempdir().full_path) / "points.json"
    record = {"points": [{"nmse": 0.25, "status": "ok"}, {"nmse": None}]}
    durable.write_sealed(path, record, field="run_dir")
    self.assertEqual(durable.read_sealed(path), record)
    text = path.read_text()
    for old, new in (("0.25", "0.24"), ("null", "NaN"), ('"ok"', "true")):
      path.write_text(text.replace(old, new))
      with self.assertRaisesRegex(
        InputError, "run_dir=.*points.json: must have"
      ):
        durable.read_sealed(path, field="run_dir")


if __name__ == "__main__":
  absltest.main()
