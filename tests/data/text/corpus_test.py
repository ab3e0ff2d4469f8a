"""Corpora: order, content, parts, and what is refused."""

import importlib.util
import json
import pathlib
import sys
import unittest

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.text import corpus as text
from saejax.errors import InputError


class TextTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, **files):
    for name, content in files.items():
      (self.folder / f"{name}.txt").write_text(content)

  def all(self, corpus):
    return [corpus[i] for i in range(len(corpus))]

  def test_folder_glob_and_jsonl_of_the_same_texts_are_the_same_corpus(self):
    texts = {f"n{i}": f"text number {i}\n" for i in range(20)}
    self.write(**texts)
    lines = [json.dumps({"body": t}) for t in texts.values()]
    path = pathlib.Path(self.create_tempdir("lines").full_path, "a.jsonl")
    path.write_text("\n".join(lines) + "\n\n")
    glob = text.documents(str(self.folder / "*.txt"))
    jsonl = text.documents(str(path), field="body")
    folder = text.documents(str(self.folder))
    self.assertCountEqual(self.all(glob), texts.values())
    for other in (jsonl, folder):
      self.assertEqual(self.all(other), self.all(glob))
      self.assertEqual(other.fingerprint, glob.fingerprint)

  def test_order_does_not_depend_on_file_names(self):
    self.write(a="one", b="two", c="three")
    first = self.all(text.documents(str(self.folder)))
    self.write(a="three", b="one", c="two")
    self.assertEqual(self.all(text.documents(str(self.folder))), first)

  def test_order_is_that_of_the_digests(self):
    self.write(**{f"n{i}": str(i) for i in range(50)})
    corpus = text.documents(str(self.folder))
    digests = [d.tobytes() for d in corpus.digests]
    self.assertEqual(digests, sorted(digests))

  def test_equal_documents_are_kept_once(self):
    self.write(a="same", b="same", c="other", d="same")
    corpus = text.documents(str(self.folder))
    self.assertCountEqual(self.all(corpus), ["same", "other"])

  def test_fingerprint_changes_with_one_character(self):
    self.write(a="one", b="two")
    before = text.documents(str(self.folder)).fingerprint
    self.write(a="onE")
    self.assertNotEqual(text.documents(str(self.folder)).fingerprint, before)

  def test_hidden_files_are_not_documents(self):
    self.write(a="one")
    (self.folder / ".hidden").write_text("two")
    self.assertLen(text.documents(str(self.folder)), 1)

  def test_a_document_is_in_one_part_and_stays_there(self):
    self.write(**{f"n{i}": f"text {i}" for i in range(1000)})
    corpus = text.documents(str(self.folder))
    held_out = corpus.part(text.HELD_OUT, 0.1)
    train = corpus.part(text.TRAIN, 0.1)
    self.assertCountEqual([*train, *held_out], range(1000))
    self.assertBetween(len(held_out), 70, 130)
    for part, indices in ((text.TRAIN, train), (text.HELD_OUT, held_out)):
      for i in indices[:20]:
        self.assertEqual(text.split(corpus[i], 0.1), part)
    # A larger fraction only adds documents.
    self.assertContainsSubset(held_out, corpus.part(text.HELD_OUT, 0.2))

  def test_parts_are_spread_over_the_order(self):
    self.write(**{f"n{i}": f"text {i}" for i in range(1000)})
    held_out = text.documents(str(self.folder)).part(text.HELD_OUT, 0.1)
    self.assertBetween(np.mean(held_out), 400, 600)

  def test_python_docs_holds_modules_and_topics_without_tests(self):
    corpus = text.documents("python-docs")
    documents = self.all(corpus)
    self.assertIn(pathlib.Path(json.__file__).read_text("utf-8"), documents)
    topics = importlib.import_module("pydoc_data.topics").topics
    self.assertIn(topics["while"], documents)
    self.assertLen(set(documents), len(corpus))
    # 300,000 rows are wanted; a token is 3.6 characters here.
    self.assertGreater(sum(map(len, documents)), 6_000_000)
    self.assertFalse(any(d.startswith('"""Unit tests for') for d in documents))
    self.assertEqual(corpus.describe()["documents"], len(corpus))

  def test_a_document_that_changes_in_use_is_refused(self):
    self.write(a="one", b="two")
    corpus = text.documents(str(self.folder))
    self.write(a="1", b="2")
    with self.assertRaisesRegex(InputError, "harvest.corpus=.*changed"):
      corpus[0]

  @parameterized.parameters("nothing/here", "nothing/*.txt", "no-such")
  def test_a_corpus_that_is_not_there_is_refused(self, name):
    with self.assertRaises(InputError) as caught:
      text.documents(name)
    self.assertEqual(caught.exception.field, "harvest.corpus")

  def test_binary_files_are_refused_by_name(self):
    (self.folder / "image.png").write_bytes(b"\x89PNG\xff")
    with self.assertRaisesRegex(InputError, "image.png.*UTF-8"):
      text.documents(str(self.folder))

  @parameterized.parameters(
    ('{"text": "a"}\n{"other": 1}\n', "harvest.field", "line 2.*other"),
    ('{"text": "a"}\n{"text": 1}\n', "harvest.field", "line 2"),
    ('{"text": "a"}\n{"te\n', "harvest.corpus", "line 2.*JSON"),
    ("\n", "harvest.corpus", "at least one"),
  )
  def test_bad_jsonl_is_refused_with_the_line(self, content, field, message):
    path = self.folder / "a.jsonl"
    path.write_text(content)
    with self.assertRaisesRegex(InputError, message) as caught:
      text.documents(str(path))
    self.assertEqual(caught.exception.field, field)

  def test_hugging_face_names_read_the_data_set(self):
    if importlib.util.find_spec("datasets") is None:
      raise unittest.SkipTest("the package datasets is not installed")
    lines = [json.dumps({"body": f"text {i}"}) for i in range(9)]
    (self.folder / "train.jsonl").write_text("\n".join(lines))
    corpus = text.documents(f"hf:{self.folder}", field="body")
    self.assertCountEqual(self.all(corpus), [f"text {i}" for i in range(9)])

  def test_hugging_face_without_the_package_says_how_to_install_it(self):
    before = sys.modules.get("datasets")
    sys.modules["datasets"] = None  # makes its import fail
    try:
      with self.assertRaisesRegex(InputError, "pip install"):
        text.documents("hf:owner/name")
    finally:
      del sys.modules["datasets"]
      if before is not None:
        sys.modules["datasets"] = before


if __name__ == "__main__":
  absltest.main()
