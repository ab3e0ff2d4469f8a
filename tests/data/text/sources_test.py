"""Hugging Face datasets, streamed and whole."""

import json
import pathlib
import sys
import types
import unittest.mock

from absl.testing import absltest, parameterized

from saejax.data.text import corpus as text
from saejax.errors import InputError

try:
  import datasets
except ImportError:
  datasets = None


class HuggingFaceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    lines = [json.dumps({"text": f"text {i}", "n": i}) for i in range(40)]
    (self.folder / "train.jsonl").write_text("\n".join(lines))

  def all(self, corpus):
    return [corpus[i] for i in range(len(corpus))]

  @absltest.skipIf(datasets is None, "pip install 'saejax[datasets]'")
  def test_the_first_documents_of_a_local_dataset(self):
    whole = text.documents(f"hf:{self.folder}")
    self.assertLen(whole, 40)
    first = text.documents(f"hf:{self.folder}:::first=7")
    self.assertCountEqual(self.all(first), [f"text {i}" for i in range(7)])
    more = text.documents(f"hf:{self.folder}:first=100")
    self.assertEqual(more.fingerprint, whole.fingerprint)
    self.assertEqual(self.all(more), self.all(whole))
    with self.assertRaisesRegex(InputError, "harvest.field=body"):
      text.documents(f"hf:{self.folder}:first=7", field="body")

  def streamed(self, records, error=None):
    """A module in place of datasets, and the records it has given."""
    given = []

    def load(name, config, *, split, streaming):
      self.assertEqual((name, config, split), ("a/b", "en", "train"))
      self.assertTrue(streaming)

      def rows():
        for record in records:
          given.append(record)
          yield record
        if error:
          raise error

      return rows()

    module = types.SimpleNamespace(load_dataset=load)
    patch = unittest.mock.patch.dict(sys.modules, {"datasets": module})
    self.enter_context(patch)
    return given

  def test_no_more_is_streamed_than_the_limit(self):
    texts = [None, *[f"text {i}" for i in range(100)]]
    given = self.streamed({"text": t} for t in texts)
    corpus = text.documents("hf:a/b:en:train:first=5", skip_null=True)
    self.assertCountEqual(self.all(corpus), [f"text {i}" for i in range(5)])
    self.assertLen(given, 6)  # the record without a text does not count

  def test_an_error_of_the_network_is_one_line(self):
    self.streamed([{"text": "a"}], ConnectionError("reset by peer"))
    with self.assertRaisesRegex(
      InputError, "harvest.corpus=hf:a/b.*reset by peer.*network"
    ):
      text.documents("hf:a/b:en:train:first=5")

  def test_a_dataset_without_documents_is_refused(self):
    self.streamed([])
    with self.assertRaisesRegex(InputError, "at least one document"):
      text.documents("hf:a/b:en:train:first=5")

  @parameterized.parameters("0", "-1", "many", "")
  def test_a_limit_that_is_no_number_is_refused(self, limit):
    with self.assertRaisesRegex(InputError, "harvest.corpus=.*at least 1"):
      text.documents(f"hf:a/b:en:train:first={limit}")


if __name__ == "__main__":
  absltest.main()
