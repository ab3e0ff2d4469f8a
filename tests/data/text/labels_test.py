"""Labels of documents, from the records that their texts are read from."""

import json
import pathlib

from absl.testing import absltest, parameterized

from saejax.data.text import corpus as text
from saejax.data.text import labels
from saejax.errors import InputError


class LabelsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def corpus(self, records, name="texts.jsonl"):
    lines = (json.dumps(record) for record in records)
    (self.folder / name).write_text("\n".join(lines) + "\n")
    return str(self.folder)

  def test_each_document_has_the_label_of_its_record(self):
    # Two files; documents are in the order of their digests, duplicates left out.
    records = [
      {"text": f"text {i % 9}", "about": {"stars": i % 9 % 3}}
      for i in range(12)
    ]
    self.corpus(records[:5], "a.jsonl")
    name = self.corpus(records[5:], "b.jsonl")
    documents = text.documents(name)
    found = labels.document_labels(name, documents, field="about.stars")
    self.assertLen(found, 9)
    for i, label in enumerate(found):
      self.assertEqual(label, str(int(documents[i].split()[1]) % 3))

  @parameterized.parameters(
    ({"text": "b"}, "labels=label.*line 2 has text"),
    ({"text": "b", "label": None}, "line 2 it is None"),
    ({"text": "b", "label": 0.5}, "text or whole number.*it is 0.5"),
    ({"text": "b", "label": ""}, "line 2 it is ''"),
    ({"text": "b", "label": "x"}, "at least two values.*'x'"),
  )
  def test_refusals(self, second, message):
    name = self.corpus([{"text": "a", "label": "x"}, second])
    with self.assertRaisesRegex(InputError, message):
      labels.document_labels(name, text.documents(name))

  def test_texts_without_records_have_none(self):
    (self.folder / "a.txt").write_text("one")
    name = str(self.folder)
    with self.assertRaisesRegex(InputError, "JSON lines for labels"):
      labels.document_labels(name, text.documents(name))


if __name__ == "__main__":
  absltest.main()
