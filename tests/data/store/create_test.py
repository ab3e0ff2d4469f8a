"""Stores of one's own arrays: refusals, groups, equal bytes."""

import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.store import create
from saejax.data.store.columns import Column
from saejax.errors import InputError
from tests.data import tiny

SMALL = {"bucket_rows": 64, "shard_rows": 32, "chunk_rows": 8}


def rows(n, d=6):
  """Row i holds values that no other row holds."""
  x = np.arange(n, dtype=np.float32)[:, None] + np.arange(d) / 100
  return x.astype(np.float32)


class WriteStoreTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / "store"

  def write(self, columns=None, name="store", **changes):
    columns = {"x": rows(150)} if columns is None else columns
    path = self.path.with_name(name)
    return create.write_store(path, columns, **(SMALL | changes))

  def test_an_equal_write_gives_equal_bytes_and_content(self):
    one = self.write()
    other = self.write(name="other")
    self.assertEqual(tiny.files(one.path), tiny.files(other.path))
    self.assertEqual(one.content, other.content)
    self.assertLen(one.content, 64)
    changed = self.write({"x": rows(150) + 1}, name="changed")
    self.assertNotEqual(one.content, changed.content)

  def test_the_same_call_opens_what_it_wrote(self):
    one = self.write()
    before = {p: p.stat().st_mtime_ns for p in one.path.rglob("*")}
    self.assertEqual(self.write().content, one.content)
    after = {p: p.stat().st_mtime_ns for p in one.path.rglob("*")}
    self.assertEqual(after, before)

  def test_other_arrays_do_not_go_into_the_same_folder(self):
    self.write()
    before = tiny.files(self.path)
    with self.assertRaisesRegex(InputError, "path=.*other settings"):
      self.write({"x": rows(150) + 1})
    self.assertEqual(tiny.files(self.path), before)

  def test_a_folder_with_other_files_is_left_alone(self):
    self.path.mkdir()
    (self.path / "thesis.txt").write_text("mine")
    with self.assertRaisesRegex(InputError, "thesis.txt"):
      self.write()
    self.assertEqual(tiny.files(self.path), {"thesis.txt": b"mine"})

  @parameterized.parameters(
    ({"doc": np.arange(3)}, "columns=.*must include x"),
    ({"x": rows(3), "doc": np.arange(4)}, "columns=.*equally many rows"),
    ({"x": rows(0)}, "columns=.*at least one"),
    ({"x": rows(3), "row": np.arange(3)}, "columns=row: must be an identifier"),
    ({"x": rows(3), "../a": np.arange(3)}, "columns=../a: must be an ident"),
    ({"x": rows(3), "word": np.asarray(["a", "b", "c"])}, "word=.*dtype"),
    ({"x": np.zeros((3, 0), np.float32)}, "x=.*positive shape"),
  )
  def test_columns_that_cannot_be_stored(self, columns, message):
    with self.assertRaisesRegex(InputError, message):
      self.write(columns)
    self.assertFalse(self.path.exists())

  def test_columns_are_declared_with_axes_and_meaning(self):
    known = {
      "x": Column(
        dtype="float32",
        shape=(2, 3),
        axes=("site", "d"),
        about="residual stream before and after",
        train=True,
      ),
      "user": Column(dtype="int64", about="who", train=True),
    }
    columns = {"x": np.ones((9, 2, 3), np.float32), "user": np.arange(9)}
    found = self.write(columns, declare=known)
    self.assertEqual(found.columns, known)
    self.assertEqual(found.trained, ("x", "user"))
    wrong = {"user": Column(dtype="int32")}
    with self.assertRaisesRegex(InputError, r"user=int64\[\]: was declared"):
      self.write(columns, declare=wrong, name="wrong")

  def test_arrays_of_the_other_byte_order_are_stored_in_ours(self):
    found = self.write({"x": rows(20).astype(">f4")}, shuffle_seed=None)
    np.testing.assert_array_equal(found.read(0, 20), rows(20))

  @parameterized.parameters(
    ("bucket_rows", 100, "multiple of shard_rows"),
    ("shard_rows", 12, "multiple of chunk_rows"),
    ("chunk_rows", 0, "at least 1"),
  )
  def test_sizes_that_do_not_nest(self, name, value, message):
    with self.assertRaisesRegex(InputError, message) as caught:
      self.write(**{name: value})
    self.assertEqual(caught.exception.field, name)
    self.assertFalse(self.path.exists())


class GroupsTest(parameterized.TestCase):
  def test_the_shuffle_on_disk_keeps_groups_whole(self):
    path = pathlib.Path(self.create_tempdir().full_path) / "s"
    key = np.repeat(np.random.default_rng(0).permutation(36), 4)
    columns = {"x": rows(144), "key": key}
    found = create.write_store(path, columns, group="key", **SMALL)
    self.assertEqual(found.group_rows, 4)
    all_ = found.whole("x", "key")
    groups = all_["key"].reshape(-1, 4)
    self.assertTrue((groups == groups[:, :1]).all())
    self.assertFalse((groups[:, 0] == key[::4]).all())
    # Inside a group the order is kept.
    inside = np.diff(all_["x"].reshape(-1, 4, 6)[..., 0], axis=-1)
    np.testing.assert_array_equal(inside, 1)

  @parameterized.parameters(
    ({"key": np.arange(9) // 2}, "key", "equally many rows"),
    ({}, "key", "must be one of the columns x"),
    ({"key": np.arange(9) // 3}, "key", "the rows of a group"),
  )
  def test_groups_that_are_not(self, columns, group, message):
    path = pathlib.Path(self.create_tempdir().full_path) / "s"
    with self.assertRaisesRegex(InputError, message):
      create.write_store(path, {"x": rows(9)} | columns, group=group, **SMALL)
    self.assertFalse(path.exists())


if __name__ == "__main__":
  absltest.main()
