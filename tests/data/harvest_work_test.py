"""Harvests of a function: no forward pass and no text is computed twice."""

import dataclasses
import pathlib

from absl.testing import absltest

from saejax.data import harvest
from tests.data import tiny


class WorkTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.corpus = tiny.corpus(self.folder / "corpus")

  def harvest(self, name, source=None, **changes):
    return harvest.harvest(
      tiny.config(self.corpus, self.folder / name, **changes),
      source=source or tiny.source(),
    )

  def test_batches_of_the_calibration_are_not_computed_again(self):
    calls = []

    def counted(ids, mask):
      calls.append(ids.shape)
      return tiny.forward(ids, mask)

    numbers = []
    for rows in (1, 100, 500):
      self.harvest(f"s{rows}", tiny.source(counted), calibration_rows=rows)
      numbers.append(len(calls))
      calls.clear()
    self.assertLen(set(numbers), 1, numbers)

  def test_no_more_of_a_document_is_encoded_than_is_used(self):
    asked = set()

    def first(document, count):
      asked.add(count)
      return tiny.encode(document)[:count]

    whole = self.harvest("whole", document_tokens=50)
    source = dataclasses.replace(tiny.source(), encode_first=first)
    found = self.harvest("first", source, document_tokens=50)
    self.assertEqual(asked, {50})
    self.assertEqual(*(tiny.files(each[0].path) for each in (whole, found)))


if __name__ == "__main__":
  absltest.main()
