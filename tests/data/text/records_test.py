"""Documents in records: fields inside fields, nulls, surrogates, ids."""

import json
import pathlib

from absl.testing import absltest, parameterized

from saejax.data.text import corpus as text
from saejax.data.text import records
from saejax.errors import InputError


class TextTest(parameterized.TestCase):
  @parameterized.parameters(
    ("text", {"text": "x", "a": 1}),
    ("a.b", {"a": {"b": "x"}, "b": "y"}),
    ("a.b.c", {"a": {"b": {"c": "x"}}}),
    ("a.b", {"a.b": "x", "a": {"b": "y"}}),
    ("a", {"a": "x", "a.b": "y"}),
  )
  def test_the_text_of_a_field(self, field, record):
    self.assertEqual(records.Text(field)(record, "line 1"), "x")

  @parameterized.parameters(
    ("a", {"a": None}), ("a.b", {"a": {"b": None}}), ("a.b", {"a": None})
  )
  def test_null_is_named_or_left_out(self, field, record):
    self.assertIsNone(records.Text(field, skip_null=True)(record, "line 3"))
    with self.assertRaisesRegex(
      InputError, "in line 3 it is null; .*harvest.skip_null"
    ) as caught:
      records.Text(field)(record, "line 3")
    self.assertEqual(caught.exception.field, "harvest.field")
    self.assertEqual(caught.exception.value, field)

  @parameterized.parameters(
    ("text", {"body": "x", "id": 1}, "line 3 has body, id"),
    ("a.c", {"a": {"b": "x"}}, "line 3 has a"),
    ("a.b", {"a": "x"}, "line 3 has a"),
    ("text", {}, "line 3 has no fields"),
    ("text", ["text"], "line 3 has no object"),
    ("text", {"text": 3}, "in line 3 it is of type int"),
    ("text", {"text": ["x"]}, "in line 3 it is of type list"),
  )
  def test_records_without_the_text_are_refused(self, field, record, found):
    for skip in (False, True):
      with self.assertRaisesRegex(InputError, found) as caught:
        records.Text(field, skip)(record, "line 3")
      self.assertEqual(caught.exception.field, "harvest.field")

  def test_lone_surrogates_are_replaced(self):
    record = json.loads(r'{"text": "a\ud800b \ud83d\ude00 \udc00"}')
    self.assertEqual(records.Text("text")(record, ""), "a\ufffdb 😀 \ufffd")

  @parameterized.parameters(
    {"ids": [1, "2"]}, {"ids": [-1]}, {"ids": [True]}, {"ids": 3}, {"id": [1]}
  )
  def test_what_is_no_list_of_ids_is_refused(self, **record):
    with self.assertRaisesRegex(InputError, "harvest.corpus=line 3"):
      records.token_ids(record, "line 3")
    self.assertEqual(records.token_ids({"ids": [3, 0]}, ""), "3 0")


class CorpusTest(absltest.TestCase):
  def test_nulls_are_left_out_of_a_corpus_and_surrogates_replaced(self):
    path = pathlib.Path(self.create_tempdir().full_path, "a.jsonl")
    path.write_text(
      '{"a": {"b": "one \\ud800"}}\n{"a": {"b": null}}\n{"a": null}\n'
      '{"a": {"b": "two"}}\n'
    )
    with self.assertRaisesRegex(InputError, "a.jsonl line 2 it is null"):
      text.documents(str(path), field="a.b")
    corpus = text.documents(str(path), field="a.b", skip_null=True)
    found = [corpus[i] for i in range(len(corpus))]
    self.assertCountEqual(found, ["one \ufffd", "two"])
    same = pathlib.Path(self.create_tempdir().full_path)
    for i, document in enumerate(found):
      (same / f"{i}.txt").write_text(document, encoding="utf-8")
    self.assertEqual(text.documents(str(same)).fingerprint, corpus.fingerprint)


if __name__ == "__main__":
  absltest.main()
