"""Mixes of corpora: shares, order, identity, harvests, refusals."""

import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data import harvest
from saejax.data.text import corpus as text
from saejax.data.text import mixes
from saejax.errors import InputError
from tests.data import tiny


class MixesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def lines(self, name, count, letter, size=40):
    """JSON lines of `count` different documents of one letter and a number."""
    path = self.folder / f"{name}.jsonl"
    generator = np.random.default_rng(len(name))
    texts = [
      f"{letter * int(generator.integers(1, size))} {i}" for i in range(count)
    ]
    path.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return str(path)

  def all(self, corpus):
    return [corpus[i] for i in range(len(corpus))]

  def test_shares_hold_at_every_point(self):
    a, b = self.lines("a", 600, "a", 20), self.lines("bb", 300, "b", 90)
    corpus = text.documents(f"mix:0.7*{a},0.3*{b}")
    sizes = np.asarray([len(document) for document in self.all(corpus)])
    np.testing.assert_array_equal(sizes, corpus.lengths)
    of_a = np.asarray([document[0] == "a" for document in self.all(corpus)])
    share = np.cumsum(sizes * of_a) / np.cumsum(sizes)
    # Never more than a document of either away from 0.7.
    far = np.abs(share - 0.7) * np.cumsum(sizes)
    self.assertLess(far.max(), 100)
    # It ends with the first part, all of which is there.
    self.assertEqual(of_a.sum(), 600)
    self.assertLess((~of_a).sum(), 300)
    for part in (text.TRAIN, text.HELD_OUT):
      own = corpus.part(part, 0.2)
      share = sizes[own][of_a[own]].sum() / sizes[own].sum()
      self.assertAlmostEqual(share, 0.7, delta=0.1)

  def test_the_order_and_the_identity_are_of_contents_and_weights(self):
    a, b = self.lines("a", 50, "a"), self.lines("b", 50, "b")
    moved = self.folder / "elsewhere.jsonl"
    moved.write_text(pathlib.Path(b).read_text())
    one = text.documents(f"mix:7*{a},3*{b}")
    same = text.documents(f"mix:0.7*{a},0.3*{moved}")
    self.assertEqual(self.all(one), self.all(same))
    self.assertEqual(one.fingerprint, same.fingerprint)
    other = text.documents(f"mix:0.6*{a},0.4*{b}")
    self.assertNotEqual(one.fingerprint, other.fingerprint)
    found = one.describe()["mix"]
    self.assertEqual([part["weight"] for part in found], [0.7, 0.3])
    self.assertEqual(found[0]["name"], "a.jsonl")
    json.dumps(one.describe())

  def test_a_document_of_two_parts_is_there_once(self):
    a, b = self.lines("a", 50, "a"), self.lines("b", 50, "b")
    both = self.folder / "both.jsonl"
    both.write_text(
      pathlib.Path(a).read_text() + "\n" + pathlib.Path(b).read_text()
    )
    corpus = text.documents(f"mix:1*{a},1*{both}")
    documents = self.all(corpus)
    self.assertLen(set(documents), len(documents))
    self.assertIn("b", {document[0] for document in documents})

  def test_globs_with_commas_and_other_kinds_are_parts(self):
    folder = self.folder / "x,y"
    folder.mkdir()
    for i in range(5):
      (folder / f"{i}.txt").write_text(f"text {i} " * 50)
    corpus = text.documents(f"mix:1*{folder}/*.txt, 1*python-docs")
    self.assertGreater(len(corpus), 1)

  def test_ids_are_mixed_with_ids(self):
    names = []
    for i in range(2):
      documents = [[i, *range(10, 12 + j % 7), j] for j in range(20, 50)]
      names.append(text.write_ids(self.folder / f"{i}.jsonl", documents))
    corpus = text.documents(f"mix:1*{names[0]},3*{names[1]}")
    ids = [
      corpus.encode(i, lambda text: self.fail()) for i in range(len(corpus))
    ]
    sizes = [sum(len(d) for d in ids if d[0] == i) for i in range(2)]
    self.assertAlmostEqual(sizes[0] / sum(sizes), 0.25, delta=0.05)
    self.assertEqual(corpus.highest, 49)
    with self.assertRaisesRegex(InputError, "texts or of token ids.*both"):
      text.documents(f"mix:1*{names[0]},1*python-docs")

  def test_a_harvest_of_a_mix_resumes_where_it_stopped(self):
    tiny.corpus(self.folder / "one", documents=40)
    other = self.folder / "two"
    other.mkdir()
    for i in range(40):
      (other / f"{i}.txt").write_text(f"xyz{i} " * 30)
    name = f"mix:0.6*{self.folder / 'one'},0.4*{other}"
    whole = tiny.config(name, self.folder / "whole")
    harvest.harvest(whole, source=tiny.source())
    calls = []

    def stops(ids, mask):
      calls.append(1)
      if len(calls) == 30:
        raise KeyboardInterrupt
      return tiny.forward(ids, mask)

    stopped = tiny.config(name, self.folder / "stopped")
    with self.assertRaises(KeyboardInterrupt):
      harvest.harvest(stopped, source=tiny.source(stops))
    self.assertNotEmpty(tiny.files(self.folder / "stopped"))
    train, _ = harvest.harvest(stopped, source=tiny.source())
    self.assertEqual(
      tiny.files(self.folder / "stopped"), tiny.files(self.folder / "whole")
    )
    outliers = train.stats["dropped"]["outlier"]
    self.assertEqual(train.rows + outliers, 2_000)

  @parameterized.parameters(
    ("mix:0*<a>,1*<b>", "positive weights, and that of .*a.jsonl is 0"),
    ("mix:-0.5*<a>,1*<b>", "positive weights, and that of .*a.jsonl is -0.5"),
    ("mix:1e999*<a>,1*<b>", "positive weights, and that of .*a.jsonl is inf"),
    ("mix:<a>,1*<b>", "a weight and a corpus in each part"),
    ("mix:", "a weight and a corpus in each part"),
    ("mix:1*<a>,1*mix:1*<b>", "a weight and a corpus in each part"),
    ("mix:1*<a>,1*no/such", "harvest.corpus=no/such: .*at least one file"),
    ("mix:1*<a>,1*<empty>", "empty.jsonl: must have at least one document"),
    ("mix:1*<a>,1*<blank>", "harvest.corpus=mix:.*at least one document"),
  )
  def test_bad_mixes_are_refused(self, name, message):
    (self.folder / "empty.jsonl").write_text("\n")
    (self.folder / "blank.jsonl").write_text('{"text": ""}')
    for letter in "ab":
      self.lines(letter, 3, letter)
    name = name.replace("<", f"{self.folder}/").replace(">", ".jsonl")
    with self.assertRaisesRegex(InputError, message):
      text.documents(name)

  def test_order_takes_the_part_that_is_behind(self):
    generator = np.random.default_rng(0)
    lengths = [generator.integers(0, 9, n) for n in (40, 90, 60)]
    weights = [0.2, 0.5, 0.3]
    want, taken, at = [], np.zeros(3), [0, 0, 0]
    while all(a < len(own) for a, own in zip(at, lengths, strict=True)):
      part = int(np.argmin(taken / weights))
      want.append((part, at[part]))
      taken[part] += lengths[part][at[part]]
      at[part] += 1
    part, number = mixes.order(lengths, weights)
    got = list(zip(part.tolist(), number.tolist(), strict=True))
    self.assertEqual(got[: len(want)], want)
    # Then the others come up to the point where the first part has ended.
    self.assertLessEqual(len(got), len(want) + 2)


if __name__ == "__main__":
  absltest.main()
