"""Tests of saejax.training.metrics_file."""

import pathlib

from absl.testing import absltest, parameterized

from saejax.training import log, metrics_file


def changed(data: bytes, at: int) -> bytes:
  """The bytes with one bit flipped."""
  return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class MetricsFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / metrics_file.METRICS
    self.lines, after = [], ""
    for step in range(1, 6):
      record = {"kind": "train", "step": step, "total_steps": 5, "members": {}}
      line, after = metrics_file.line(record, after)
      self.lines.append(line)

  def write(self, *lines: bytes):
    self.path.write_bytes(b"".join(lines))

  def steps(self) -> tuple[list[int], str]:
    """The steps that are read, and what was said."""
    said: list[str] = []
    steps = [r["step"] for r in log.read(self.folder, say=said.append)]
    return steps, "\n".join(said)

  def test_whole_records_are_read_in_silence(self):
    self.write(*self.lines)
    self.assertEqual(self.steps(), ([1, 2, 3, 4, 5], ""))

  def test_a_changed_byte_costs_one_record_and_names_its_line(self):
    third = self.lines[2]
    for at in range(len(third) - 1):
      self.write(*self.lines[:2], changed(third, at), *self.lines[3:])
      steps, said = self.steps()
      self.assertEqual(steps, [1, 2, 4, 5], changed(third, at))
      self.assertIn("metrics.jsonl: line 3 is damaged", said)

  @parameterized.parameters(
    ((0, 1, 3, 4), [1, 2, 4, 5], "line 3 does not follow"),
    ((1, 2, 3, 4), [2, 3, 4, 5], "line 1 does not follow"),
    ((0, 1, 1, 2, 3, 4), [1, 2, 3, 4, 5], "line 3 does not follow"),
    ((0, 2, 1, 3, 4), [1, 2, 3, 4, 5], "line 2 does not follow"),
    ((0, 1, 2), [1, 2, 3], "the records end at step 3 of 5"),
  )
  def test_lines_lost_doubled_or_moved_are_named(self, order, kept, words):
    self.write(*(self.lines[i] for i in order))
    steps, said = self.steps()
    self.assertEqual(steps, kept)
    self.assertIn(words, said)
    self.assertNotIn("\n", said)

  def test_a_cut_keeps_the_whole_records_before_it_and_links_them_anew(self):
    self.write(self.lines[0], changed(self.lines[1], 9), *self.lines[2:])
    kept = metrics_file.cut(self.path, 4)
    self.assertEqual([r["step"] for r in kept.records], [1, 3, 4])
    self.assertLen(kept.faults, 2)
    again = metrics_file.parse(self.path)
    self.assertEqual(again.faults, ["the records end at step 4 of 5"])
    self.assertEqual(again.last, kept.last)

  def test_a_cut_leaves_whole_lines_as_they_are(self):
    self.write(*self.lines)
    metrics_file.cut(self.path, 3)
    self.assertEqual(self.path.read_bytes(), b"".join(self.lines[:3]))


if __name__ == "__main__":
  absltest.main()
