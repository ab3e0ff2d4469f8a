"""Tests of saejax.training.metrics_csv."""

import csv
import io
import math
import pathlib

from absl.testing import absltest, parameterized

from saejax.training import log, metrics_csv


class MetricsCsvTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / metrics_csv.TABLE

  def write(self, steps, *, step=0, value=0.0, **more):
    with log.RunLog(self.folder, step=step, stream=io.StringIO()) as opened:
      for s in steps:
        a = {"loss": s + value, **more}
        opened.record(s, 10 * s, {"a": a, "b,c": {"l0": 4}})

  def rows(self) -> list[dict[str, str]]:
    with open(self.path, newline="") as file:
      return list(csv.DictReader(file))

  def column(self, name, member="a"):
    return [float(r[name]) for r in self.rows() if r["member"] == member]

  def test_a_row_per_step_and_member(self):
    self.write([1, 2])
    rows = self.rows()
    self.assertEqual([r["member"] for r in rows], ["a", "b,c", "a", "b,c"])
    self.assertEqual(
      list(rows[0]), ["step", "tokens", "seconds", "member", "loss", "l0"]
    )
    self.assertEqual(self.column("step"), [1, 2])
    self.assertEqual(self.column("tokens"), [10, 20])
    self.assertEqual(self.column("loss"), [1, 2])
    self.assertEqual((rows[0]["l0"], rows[1]["l0"]), ("", "4.0"))

  def test_values_are_those_of_the_records_to_the_bit(self):
    self.write([1], value=1 / 3, x=math.nan, y=math.inf, z=-math.inf, w=1e-300)
    self.write([2], step=1, x=0.1)  # the first row is read from the records
    (first, second) = (r["members"]["a"] for r in log.read(self.folder))
    self.assertEqual(self.column("loss"), [first["loss"], second["loss"]])
    self.assertEqual(self.column("x")[1], 0.1)
    row = self.rows()[0]
    self.assertEqual((row["x"], row["y"], row["z"]), ("nan", "inf", "-inf"))
    self.assertEqual(float(row["w"]), 1e-300)

  def test_other_kinds_are_left_out(self):
    with log.RunLog(self.folder, stream=io.StringIO()) as opened:
      opened.record(1, 1, {"a": {"loss": 1.0}})
      opened.record(1, 1, {"a": {"fvu": 1.0}}, kind="held_out")
    self.write([2], step=1)
    self.assertEqual(self.column("step"), [1, 2])
    self.assertNotIn("fvu", self.rows()[0])

  def test_a_metric_that_comes_later_has_a_column(self):
    self.write([1])
    with log.RunLog(self.folder, step=1, stream=io.StringIO()) as opened:
      opened.record(2, 20, {"a": {"loss": 2.0}})
      opened.record(3, 30, {"a": {"loss": 3.0, "late": 0.5}})
      opened.record(4, 40, {"a": {"loss": 4.0, "late": 0.25}})
    self.assertEqual(self.column("loss"), [1, 2, 3, 4])
    late = [r["late"] for r in self.rows() if r["member"] == "a"]
    self.assertEqual(late, ["", "", "0.5", "0.25"])

  @parameterized.parameters(b"", b"5,50,0.1,a,5", b"\0\0\n", b'5,50,0.1,"b')
  def test_a_resumed_run_has_each_step_once(self, torn):
    self.write([1, 2, 3, 4])
    with open(self.path, "ab") as file:
      file.write(torn)
    self.write([3, 4, 5], step=2, value=0.5)
    self.assertEqual(self.column("step"), [1, 2, 3, 4, 5])
    self.assertEqual(self.column("loss"), [1, 2, 3.5, 4.5, 5.5])
    self.assertEqual(self.column("step", "b,c"), [1, 2, 3, 4, 5])

  def test_a_run_that_had_no_table_gets_one(self):
    self.write([1, 2])
    self.path.unlink()
    self.write([3], step=2)
    self.assertEqual(self.column("loss"), [1, 2, 3])

  def test_a_row_is_in_the_file_before_record_returns(self):
    with log.RunLog(self.folder, stream=io.StringIO()) as opened:
      opened.record(1, 1, {"a": {"loss": 2.0}})
      opened.record(2, 2, {"a": {"loss": 3.0}})
      self.assertEqual(self.column("loss"), [2, 3])


if __name__ == "__main__":
  absltest.main()
