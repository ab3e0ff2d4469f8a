"""Tables as rows of a store: the columns, read by row group, and refusals."""

import copy
import pathlib
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from absl.testing import absltest, parameterized
from pyarrow import parquet as pq

from saejax.data import files, parquet, rows
from saejax.errors import InputError

ROWS, D = 300, 4
X = np.random.default_rng(0).normal(size=(ROWS, D)).astype(np.float32)
SMALL = {"bucket_rows": 64, "shard_rows": 32, "chunk_rows": 8}


def lists(x, kind=pa.list_):
  """Rows as a column of lists."""
  inner = pa.array(x.reshape(-1))
  if kind == "fixed":
    return pa.FixedSizeListArray.from_arrays(inner, x.shape[-1])
  offsets = np.arange(0, x.size + 1, x.shape[-1], dtype=np.int32)
  found = pa.ListArray.from_arrays(pa.array(offsets), inner)
  return found if kind is pa.list_ else found.cast(pa.large_list(inner.type))


LAYOUTS = {
  "lists": {"x": lists(X)},
  "large_lists": {"x": lists(X, pa.large_list)},
  "fixed_lists": {"x": lists(X, "fixed")},
  "coordinates": {f"x{i}": pa.array(X[:, i]) for i in range(D)},
  "numbers": {str(i): pa.array(X[:, i]) for i in (2, 0, 1, 3)},
  "underscored": {f"x_{i}": pa.array(X[:, i]) for i in range(D)},
}


class ParquetTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, columns, group_rows=70, **options):
    path = self.folder / "rows.parquet"
    pq.write_table(
      pa.table(columns), path, row_group_size=group_rows, **options
    )
    return path

  def harvest(self, source, name="stores") -> tuple[Any, Any]:
    where = self.folder / name
    return files.harvest(source, where, rows=200, held_out_rows=50, **SMALL)

  @parameterized.parameters(*LAYOUTS)
  def test_every_layout_gives_the_store_of_the_arrays(self, layout):
    user = np.arange(ROWS)
    path = self.write({**LAYOUTS[layout], "user": user})
    train, held_out = self.harvest(path)
    same, _ = self.harvest({"x": X, "user": user}, "same")
    for name in ("x", "user"):
      values = {"x": X, "user": user}[name]
      np.testing.assert_array_equal(held_out.whole(name)[name], values[250:])
      np.testing.assert_array_equal(
        train.whole(name)[name], same.whole(name)[name]
      )
    # The same values have the same name on disk.
    self.assertEqual(train.meta["arrays"], same.meta["arrays"])

  def test_targets_and_pairs_of_rows_keep_their_shape(self):
    pairs = pa.FixedSizeListArray.from_arrays(lists(X.reshape(-1, 2)), 2)
    target = {f"target{i}": X[:, i] for i in range(3)}
    path = self.write({"x": pairs, **target})
    found = files.array_rows(path)
    self.assertEqual(found.columns["x"].shape, (2, 2))
    (block,) = found.blocks([rows.Span(0, ROWS)])
    np.testing.assert_array_equal(block.values["x"], X.reshape(ROWS, 2, 2))
    np.testing.assert_array_equal(block.values["target"], X[:, :3])

  def test_one_column_of_any_name_is_x(self):
    found = files.array_rows(self.write({"embedding": lists(X)}))
    (block,) = found.blocks([rows.Span(0, ROWS)])
    np.testing.assert_array_equal(block.values["x"], X)

  def test_rows_are_read_by_row_group_and_resume_at_any_block(self):
    path = self.write(LAYOUTS["lists"])
    read = []
    real = parquet._File.read

    def told(file, group, names):
      read.append(group)
      return real(file, group, names)

    self.enter_context(mock.patch.object(parquet._File, "read", told))
    self.enter_context(mock.patch("saejax.data.rows._BLOCK_ROWS", 50))
    source = files.array_rows(path)
    read.clear()
    blocks = list(source.part(100, 300).blocks([rows.Span(50, 200)]))
    self.assertEqual(read, [2, 3, 4])
    values = np.concatenate([block.values["x"] for block in blocks])
    np.testing.assert_array_equal(values, X[150:])

  def test_a_stopped_harvest_goes_on_to_the_same_bytes(self):
    source = files.array_rows(self.write(LAYOUTS["lists"]))
    self.enter_context(mock.patch("saejax.data.rows._BLOCK_ROWS", 50))
    whole, _ = self.harvest(source, "whole")
    stops = mock.Mock(side_effect=[None, None, KeyboardInterrupt])
    real = parquet.Column.__getitem__

    def stopping(column, index):
      stops()
      return real(column, index)

    with (
      mock.patch.object(parquet.Column, "__getitem__", stopping),
      self.assertRaises(KeyboardInterrupt),
    ):
      self.harvest(source, "stopped")
    stopped, _ = self.harvest(source, "stopped")
    self.assertEqual(stopped.content, whole.content)

  @parameterized.parameters(
    ("ragged", "column x has lists of 4 and of 3 values, .* in row 73"),
    ("null_row", "column x has a null in row 75"),
    ("null_value", "column x has a null in row 80"),
    ("words", "has the column text of type string"),
    ("dates", "has the column when of type date32"),
    ("gap", "has no coordinate 2 of x"),
    ("both", "has both x and coordinates of it"),
    ("mixed", "coordinates of x of type float and double .column x3"),
    ("no_x", "must have x"),
    ("wider_later", r"values of shape \[4\] and, in rows from 140 on, \[5\]"),
  )
  def test_what_cannot_be_rows_is_refused_by_name(self, kind, message):
    rows: list[Any] = X.tolist()
    parts = {f"x{i}": X[:, i] for i in range(D)}
    ragged, null_row, null_value, wider = map(copy.deepcopy, [rows] * 4)
    ragged[73] = ragged[73][:3]
    null_row[75] = None
    null_value[80][1] = None
    wider[140:] = [[*row, 0.0] for row in wider[140:]]
    tables = {
      "ragged": {"x": ragged},
      "null_row": {"x": null_row},
      "null_value": {"x": null_value},
      "words": {"x": rows, "text": ["a"] * ROWS},
      "dates": {"x": rows, "when": pa.array([0] * ROWS, pa.date32())},
      "gap": {k: v for k, v in parts.items() if k != "x2"},
      "both": {"x": rows, **parts},
      "mixed": {**parts, "x3": X[:, 3].astype(np.float64)},
      "no_x": {"a": rows, "b": rows},
      "wider_later": {"x": wider},
    }
    path = self.write(tables[kind])
    with self.assertRaisesRegex(
      InputError, f"source=.*rows.parquet.*{message}"
    ):
      files.array_rows(path)

  def test_damaged_files_are_refused_by_name(self):
    path = self.write(
      LAYOUTS["lists"], compression="none", write_page_checksum=True
    )
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[200] ^= 1
    for broken in (content[:-100], content[:50], b"", bytes(damaged)):
      path.write_bytes(broken)
      with self.assertRaisesRegex(
        InputError, "source=.*rows.parquet: cannot be read"
      ):
        files.array_rows(path)

  def test_without_pyarrow_the_package_is_named(self):
    path = self.write(LAYOUTS["lists"])
    with (
      mock.patch.dict("sys.modules", {"pyarrow": None}),
      self.assertRaisesRegex(
        InputError, r"rows.parquet: needs .* pyarrow.*saejax\[parquet\]"
      ),
    ):
      files.array_rows(path)


if __name__ == "__main__":
  absltest.main()
