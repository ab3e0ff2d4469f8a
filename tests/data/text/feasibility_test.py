"""What a harvest is refused for before the model runs."""

import dataclasses
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import harvest, memory
from saejax.data.text import corpus as text
from saejax.errors import InputError
from tests.data import tiny


class PartsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.corpus = tiny.corpus(self.folder / "corpus")

  def harvest(self, source, **changes):
    config = tiny.config(self.corpus, self.folder / "stores", **changes)
    return harvest.harvest(config, source=source)

  def assert_refused_at_once(self, rule, **changes):
    """Before the model runs, and without a trace."""

    def never(ids, mask):
      raise AssertionError("the model ran")

    with self.assertRaisesRegex(InputError, rule):
      self.harvest(source=tiny.source(function=never), **changes)
    self.assertFalse((self.folder / "stores").exists())

  def test_a_context_without_room_for_tokens(self):
    self.assert_refused_at_once("harvest.context=2: must be above", context=2)

  def test_a_corpus_without_held_out_documents(self):
    for path in list(self.corpus.iterdir())[1:]:
      path.unlink()
    self.assert_refused_at_once("harvest.corpus=.*for the held_out store")

  def test_a_corpus_without_training_documents(self):
    self.assert_refused_at_once(
      "harvest.corpus=.*for the train store", held_out_fraction=1 - 1e-12
    )

  def test_a_corpus_whose_tokens_are_all_dropped(self):
    self.assert_refused_at_once("every token", drop_ids=tuple(range(258)))

  def test_a_held_out_part_whose_tokens_are_all_dropped(self):
    corpus = text.documents(str(self.corpus))
    for i in corpus.part(text.HELD_OUT, 0.25):
      (path,) = [p for p in self.corpus.iterdir() if p.read_text() == corpus[i]]
      path.unlink()
    number = 0
    while text.split("?" * number, 0.25) != text.HELD_OUT:
      number += 1
    (self.corpus / "dropped.txt").write_text("?" * number)
    self.assert_refused_at_once("every token of its held_out part")

  def test_documents_that_are_longer_than_the_held_out_store(self):
    for path in self.corpus.iterdir():
      path.write_text(path.read_text() + "a" * 30)
    corpus = text.documents(str(self.corpus))
    lengths = [
      np.isin(tiny.encode(corpus[i]), (tiny.CLS, tiny.USER_ID), invert=True)
      for i in corpus.part(text.HELD_OUT, 0.25)
    ]
    shortest = min(int(rows.sum()) for rows in lengths)
    self.assert_refused_at_once(
      f"held_out_rows=20: .*shortest of {len(lengths)} .* {shortest} rows; "
      ".*document_tokens",
      held_out_rows=20,
    )
    _, held_out = self.harvest(
      tiny.source(), held_out_rows=20, document_tokens=15
    )
    self.assertBetween(held_out.rows, 1, 20)

  def test_more_rows_than_the_disk_holds_are_refused_at_once(self):
    for changes in ({"rows": 10**13}, {"held_out_rows": 10**18}):
      self.assert_refused_at_once("harvest.dir=.*room for", **changes)

  @parameterized.parameters(
    # A window of 18 tokens takes 18 (32 + 8 * 8) bytes.
    ({"forward_batch": 10_000}, "forward_batch=10000: .*17.3 MB.*; 578 windo"),
    ({"context": 20_000}, "context=20000: .* takes .* memory is 1.00 MB; low"),
    (
      # A row takes 4 * 8 and 8 + 4 + 4 bytes, three times.
      {"bucket_rows": 25_600, "rows": 10**9},
      "bucket_rows=25600: .* take 3.69 MB, .* memory is 1.00 MB; .*6944 rows",
    ),
  )
  def test_what_cannot_fit_in_memory_is_refused_at_once(self, changes, rule):
    with (
      mock.patch.object(memory, "device", return_value=10**6),
      mock.patch.object(memory, "host", return_value=10**6),
    ):
      self.assert_refused_at_once(f"harvest.{rule}", **changes)

  def test_ids_that_the_model_does_not_have_are_refused_at_once(self):
    name = text.write_ids(self.folder / "ids.jsonl", [[5, 6], [7, 258, 8]] * 9)
    known = dataclasses.replace(tiny.source(), vocabulary=258)
    for changes, rule in (
      ({"corpus": name}, r"corpus=ids:.* the id 258, .*in \[0, 258\)"),
      ({"drop_ids": (300, 5)}, "drop_ids=.*the id 300"),
      ({"drop_ids": (-3,)}, "drop_ids=.*the id -3"),
    ):
      config = tiny.config(self.corpus, self.folder / "stores")
      with self.assertRaisesRegex(InputError, f"harvest.{rule}"):
        harvest.harvest(dataclasses.replace(config, **changes), source=known)
    self.assertFalse((self.folder / "stores").exists())


if __name__ == "__main__":
  absltest.main()
