"""saejax/evals/spelling/first_letter.py: words, prompts and their positions."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.spelling import first_letter
from saejax.evals.words import word_rows
from saejax.models import model as model_lib
from saejax.models import taps
from tests.evals import word_cases
from tests.models import golden

OWN = [" apple", "apple", " Bear", "cat", " dog", "eel", " Fox", "goat"]
OWN += [" hen", "ibis", " jay", "kite", " lion", "mole"]
OTHER = ["x2", "  two", " don't", " has", " the", " first", " letter"]
SITE = "layers.0.resid_post"


class WordsTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_words_are_tokens_of_letters_after_at_most_one_blank(self, drops):
    tok = word_cases.words(OWN + OTHER, drops_first_blank=drops)
    found = first_letter.vocabulary(tok)
    want = {*OWN, " has", " the", " first", " letter", *word_cases.LETTERS}
    want |= {*word_cases.LETTERS.upper()}
    want |= {f" {letter}" for letter in word_cases.LETTERS.upper()}
    self.assertEqual(set(found.texts), want)
    for i, text, letter in zip(
      found.ids, found.texts, found.letter, strict=True
    ):
      self.assertEqual(tok.decode([5, i])[1:], text)
      self.assertEqual(
        first_letter.LETTERS[letter], text.replace(" ", "")[0].lower()
      )

  def test_at_most_so_many_words_of_a_letter_are_drawn(self):
    letter = np.repeat([0, 1, 2], [50, 3, 7])
    every = first_letter.Words(np.arange(60), ("a",) * 60, letter)
    found = first_letter.sample(every, per_letter=5)
    self.assertEqual(np.bincount(found.letter).tolist(), [5, 3, 5])
    self.assertEqual(found.ids.tolist(), sorted(set(found.ids.tolist())))
    other = first_letter.sample(every, per_letter=5, seed=1)
    self.assertNotEqual(found.ids.tolist(), other.ids.tolist())

  def test_a_vocabulary_without_words_is_refused(self):
    tok = word_cases.words([])
    object.__setattr__(tok, "special_ids", frozenset(range(tok.vocabulary)))
    with self.assertRaisesRegex(InputError, "^tokenizer=.*letters alone"):
      first_letter.vocabulary(tok)


class PromptsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    # In a prompt "\nmole" is one token, so that "mole" is not.
    pieces = [*OWN, *OTHER, "\nmole", ":", "\n"]
    self.tok = word_cases.words(pieces, prefix=(1,))
    every = first_letter.vocabulary(self.tok)
    kept = [i for i, text in enumerate(every.texts) if text in OWN]
    self.words = every.at(np.asarray(kept))

  def test_the_word_is_at_the_position_of_every_prompt(self):
    found = first_letter.prompts(self.tok, self.words, count=3)
    self.assertEqual(found.ids.ndim, 2)
    self.assertEqual(found.dropped, 1)
    self.assertEqual(set(OWN) - set(found.words.texts), {"mole"})
    self.assertEqual(found.position, found.ids.shape[1] - 6)
    tails = []
    for ids, text in zip(found.ids, found.words.texts, strict=True):
      self.assertEqual(ids[0], 1)
      self.assertEqual(self.tok.decode([ids[found.position]]), text)
      shown = self.tok.decode(ids[1:])
      *examples, last = shown.split("\n")[1:]
      self.assertEqual(last, text + " has the first letter:")
      self.assertLen(examples, 3)
      for line in examples:
        word, answer = line.split(" has the first letter: ")
        self.assertEqual(answer, word.strip()[0].upper())
        self.assertNotEqual(word.strip().lower(), text.strip().lower())
      tails.append("\n".join(examples))
    # Fixed, but for the words that are examples themselves.
    same = max(map(tails.count, tails))
    self.assertGreaterEqual(same, len(tails) - 6)
    self.assertLess(same, len(tails))

  def test_answers_are_the_letters_after_a_blank(self):
    found = first_letter.prompts(self.tok, self.words, count=3)
    shown = [self.tok.decode([i]) for i in found.answers]
    self.assertEqual(shown, [f" {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTU"
                             "VWXYZ"])  # fmt: skip

  def test_too_few_examples_and_other_tokenizers_are_refused(self):
    with self.assertRaisesRegex(InputError, "^examples=13.*at least 15"):
      first_letter.prompts(self.tok, self.words, count=14)
    moved = first_letter.Words(
      self.words.ids + 1, self.words.texts, self.words.letter
    )
    with self.assertRaisesRegex(InputError, "^tokenizer=.*token of its own"):
      first_letter.prompts(self.tok, moved, count=3)


class ModelTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    path = self.create_tempdir().full_path
    self.model = model_lib.load(golden.folder(path, "llama_gqa_tied"))
    ids = np.random.default_rng(0).integers(3, self.model.vocabulary, (5, 12))
    words = first_letter.Words(np.arange(5), tuple("abcde"), np.arange(5))
    self.prompts = first_letter.Prompts(
      words, ids.astype(np.int32), 7, np.arange(26) % self.model.vocabulary, 0
    )

  def test_activations_are_those_at_the_word(self):
    ids = self.prompts.ids
    x = first_letter.activations(
      self.model, SITE, self.prompts, batch_prompts=2
    )
    h = taps.read(self.model, ids, np.ones(ids.shape, bool), [SITE])[SITE]
    np.testing.assert_allclose(x, h[:, 7], rtol=1e-5, atol=1e-5)

  def test_the_readout_at_the_own_activation_is_the_models(self):
    ids = self.prompts.ids
    x = first_letter.activations(self.model, SITE, self.prompts)
    read = first_letter.readout(self.model, SITE, self.prompts)
    run = jax.jit(lambda read, x, ids: read(x, ids))
    found = run(read, x[2], ids[2])
    logits = self.model(ids, np.ones(ids.shape, bool))[2, -1]
    want = np.asarray(logits)[self.prompts.answers]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    moved = run(read, x[1], ids[2])
    self.assertGreater(np.abs(moved - want).max(), 1e-4)

  def test_rows_of_prompts_of_several_lengths_are_their_own(self):
    rng = np.random.default_rng(1)
    ids = [
      rng.integers(3, self.model.vocabulary, t).astype(np.int32)
      for t in (20, 5, 9)
    ]
    position = np.array([19, 0, 4])
    found = word_rows.read(self.model, SITE, ids, position, batch_prompts=2)
    every = list(word_rows.texts(self.model, SITE, ids, first=0))
    for x, rows, at in zip(found, every, position, strict=True):
      np.testing.assert_allclose(x, rows[at], rtol=1e-4, atol=1e-5)
    short = list(word_rows.texts(self.model, SITE, ids, first=2))
    self.assertEqual([len(rows) for rows in short], [18, 3, 7])
    np.testing.assert_array_equal(short[1], every[1][2:])
    with self.assertRaisesRegex(InputError, "^position=5: must be a token of"):
      word_rows.read(self.model, SITE, ids, np.array([0, 5, 0]))
    with self.assertRaisesRegex(InputError, "^position=shape"):
      word_rows.read(self.model, SITE, ids, position[:2])
    with self.assertRaisesRegex(InputError, "^ids=text 1: must have more than"):
      list(word_rows.texts(self.model, SITE, ids, first=5))


if __name__ == "__main__":
  absltest.main()
