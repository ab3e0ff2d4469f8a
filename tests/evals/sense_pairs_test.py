"""saejax/evals/words/sense_pairs.py: pairs of lines and of senses, and prompts."""

import collections
import json

import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.words import sense_pairs
from tests.evals import word_cases

ROW = {
  "context_1": "a bank of sand",
  "context_2": "a bank for money",
  "target_word": "bank",
  "label": 0,
}


class LinesTest(parameterized.TestCase):
  def test_pairs_are_read_from_lines(self):
    lines = [json.dumps(ROW), "", json.dumps(ROW | {"label": 1, "more": 2})]
    found = sense_pairs.pairs(lines)
    want = sense_pairs.Pair("a bank of sand", "a bank for money", "bank", False)
    self.assertEqual(found[0], want)
    self.assertEqual([pair.same for pair in found], [False, True])

  @parameterized.parameters(*ROW)
  def test_a_missing_field_is_refused_by_its_line(self, name):
    lines = [json.dumps(ROW), "", json.dumps(ROW | {name: None})]
    with self.assertRaisesRegex(InputError, f"^pairs=line 3: {name} must be"):
      sense_pairs.pairs(lines)
    short = {k: v for k, v in ROW.items() if k != name}
    with self.assertRaisesRegex(InputError, f"line 1: must have.* {name};"):
      sense_pairs.pairs([json.dumps(short)])

  @parameterized.parameters("{", "[1]", "5")
  def test_what_is_no_object_is_refused_by_its_line(self, line):
    with self.assertRaisesRegex(InputError, "^pairs=line 2: must be"):
      sense_pairs.pairs([json.dumps(ROW), line])

  def test_other_labels_and_nothing_are_refused(self):
    with self.assertRaisesRegex(InputError, "line 1: label must be 1 .* not 2"):
      sense_pairs.pairs([json.dumps(ROW | {"label": 2})])
    with self.assertRaisesRegex(InputError, "at least one pair"):
      sense_pairs.pairs([])


class BalanceTest(absltest.TestCase):
  def test_the_more_frequent_label_is_cut(self):
    every = [sense_pairs.Pair(str(i), "", "w", i % 4 > 0) for i in range(40)]
    found = sense_pairs.balanced(every)
    self.assertEqual(collections.Counter(p.same for p in found), {0: 10, 1: 10})
    places = [every.index(pair) for pair in found]
    self.assertEqual(places, sorted(set(places)))
    self.assertNotEqual(found, sense_pairs.balanced(every, seed=1))
    with self.assertRaisesRegex(InputError, "^same=3 of 3"):
      sense_pairs.balanced([every[1]] * 3)

  def test_labelled_senses_become_independent_balanced_pairs(self):
    sense = ["cord"] * 300 + ["text"] * 90 + ["queue"] * 60 + ["rare"] * 20
    contexts = [f"{s} {i}" for i, s in enumerate(sense)]
    order = np.random.default_rng(0).permutation(len(sense))
    found = sense_pairs.from_senses(
      [contexts[i] for i in order], [sense[i] for i in order], "line"
    )
    counts = collections.Counter(pair.same for pair in found)
    self.assertEqual(counts[True], counts[False])
    self.assertEqual(counts[True], 150)  # all of text and queue, against cord
    for pair in found:
      first, second = pair.first.split()[0], pair.second.split()[0]
      self.assertEqual(pair.same, first == second)
      self.assertNotIn("rare", (first, second))
    for label in (True, False):
      used = [c for p in found if p.same == label for c in (p.first, p.second)]
      self.assertLen(set(used), len(used))

  def test_too_few_senses_are_refused(self):
    contexts, senses = list("abcdef"), ["x"] * 4 + ["y"] * 2
    with self.assertRaisesRegex(InputError, "two senses with at least 3"):
      sense_pairs.from_senses(contexts, senses, "w", least=3)
    found = sense_pairs.from_senses(contexts, senses, "w", least=2)
    self.assertLen(found, 4)
    with self.assertRaisesRegex(InputError, "^senses=5 senses"):
      sense_pairs.from_senses(contexts, senses[:-1], "w")


class PromptsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    pieces = ["a", " bank", " The", "The", " means", " of", " sand", " for"]
    self.words = word_cases.words([*pieces, " money"], prefix=(1,))

  def test_the_position_is_that_of_the_word_in_the_suffix(self):
    pair = sense_pairs.Pair("a bank of sand", "a bank for", "bank", False)
    found = sense_pairs.prompts(self.words, [pair])
    self.assertLen(found.ids, 2)
    for ids, position in zip(found.ids, found.position, strict=True):
      self.assertEqual(self.words.decode(ids[position:]), " bank means")
      self.assertEqual(ids[0], 1)  # the prefix
      self.assertEqual(position, len(ids) - 2)
    self.assertEqual(
      self.words.decode(found.ids[0][1:]), "a bank of sand The bank means"
    )

  def test_a_word_of_several_tokens_is_refused(self):
    pairs = [
      sense_pairs.Pair("a bank", "a bank", word, True)
      for word in ("bank", "river")
    ]
    with self.assertRaisesRegex(InputError, "^pairs=river.*is 6 in pair 1"):
      sense_pairs.prompts(self.words, pairs)
    kept = sense_pairs.single_token(self.words, pairs)
    self.assertEqual(kept, pairs[:1])

  def test_a_word_that_joins_its_neighbour_is_refused(self):
    joined = word_cases.words(["a", " bank", " means", " bank means"])
    pair = sense_pairs.Pair("a bank", "a bank", "bank", True)
    with self.assertRaisesRegex(InputError, "^pairs=bank.*token of its own"):
      sense_pairs.prompts(joined, [pair])


if __name__ == "__main__":
  absltest.main()
