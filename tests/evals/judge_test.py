"""Tests of saejax.evals.autointerp.judge, judge_keyword and judge_embedding."""

import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.autointerp import judge, judge_embedding, judge_keyword
from saejax.evals.autointerp.windows import plain
from saejax.models import model as model_lib
from tests.evals import keyword_world as world
from tests.models import golden


def bag_of_words(texts):
  """Embeds texts as the hashed stems of their words."""
  E = np.zeros((len(texts), 512))
  for i, text in enumerate(texts):
    for word in text.split():
      E[i, sum(map(ord, judge_keyword.stem(word))) * 31 % 512] += 1
  return E


class Deaf(judge.Constant):
  """Fails on every question."""

  def score(self, explanation, windows, question):
    return np.full(len(windows), np.nan)


class GateTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("oracle", judge.Oracle(), 1.0),
    ("keyword", judge_keyword.Keyword(), 1.0),
    ("constant", judge.Constant(), 0.5),
    ("deaf", Deaf(), 0.0),
  )
  def test_the_gate_measures(self, one, auroc):
    found = judge.gate(one)
    self.assertAlmostEqual(found.auroc, auroc)
    self.assertEqual(found.able, auroc >= 0.8)
    said = "able" if auroc >= 0.8 else "not able"
    self.assertEqual(found.record()["judge"], said)
    self.assertEqual(found.answers, 96)

  def test_failures_are_counted(self):
    self.assertEqual(judge.gate(Deaf()).failed, 96)

  def test_a_random_judge_is_not_able(self):
    found = judge.gate(judge.Chance())
    self.assertLess(abs(found.auroc - 0.5), 0.2)
    self.assertFalse(found.able)

  def test_embeddings_of_words_are_able(self):
    self.assertTrue(judge.gate(judge_embedding.Embedding(bag_of_words)).able)


class KeywordTest(absltest.TestCase):
  def test_the_commonest_marked_word_against_the_background(self):
    texts = ["the Cats sat", "a cat on the mat", "the cat, again"]
    windows = [plain(t) for t in texts]
    marked = [
      w.marked(np.array(["cat" in t.lower() or "the" in t for t in w.tokens]))
      for w in windows
    ]
    silent = [plain("the dog and the house"), plain("the end")]
    one = judge_keyword.Keyword()
    self.assertEqual(one.explain(marked, silent), "cat")
    self.assertEqual(one.explain(windows, silent), "cat")  # without marks

  def test_common_words_explain_only_where_they_are_marked(self):
    texts = ["it was the film .", "the best of the film .", "the end ."]
    windows = [plain(t) for t in texts]
    one = judge_keyword.Keyword()
    self.assertEqual(one.explain(windows, [plain("a b")]), "film")
    marks = [
      w.marked(np.array(["the" in t for t in w.tokens])) for w in windows
    ]
    self.assertEqual(one.explain(marks, [plain("a b")]), "the")
    self.assertEqual(one.explain([plain("the .")]), ".")

  def test_fuzzing_is_the_share_of_marks_that_match(self):
    window = plain("a cat and cats ran").marked(np.array([0, 1, 1, 1, 0]))
    score = judge_keyword.Keyword().score("cat", [window], "fuzzing")
    self.assertAlmostEqual(score[0], 2 / 3)

  def test_an_explanation_may_have_several_words(self):
    windows = [plain("the dogs"), plain("a bird"), plain("cat")]
    score = judge_keyword.Keyword().score("dog or cat", windows, "detection")
    self.assertEqual(score.tolist(), [1, 0, 1])


class EmbeddingTest(absltest.TestCase):
  def test_scores_are_cosines_and_have_no_threshold(self):
    one = judge_embedding.Embedding(bag_of_words)
    score = one.score("cat", [plain("cat cat"), plain("hill")], "detection")
    np.testing.assert_allclose(score, [1, 0], atol=1e-12)
    self.assertTrue(np.isnan(one.threshold))

  def test_the_odd_one_is_the_farthest(self):
    windows = [w.marked(w.active) for w in world.active(4)]
    odd = world.silent(1)[0].marked(np.arange(32) == 3)
    one = judge_embedding.Embedding(bag_of_words)
    for at in range(5):
      shown = [*windows]
      shown.insert(at, odd)
      self.assertEqual(one.odd(shown), at)

  def test_an_embedder_is_the_model_whatever_the_batch_and_padding(self):
    folder = self.create_tempdir().full_path
    model = model_lib.load(golden.folder(folder, "bert"))

    class Words:
      prefix, suffix = (1,), (2,)

      def encode_batch(self, texts):
        return [np.array([3 + ord(c) % 8 for c in t], int) for t in texts]

    texts = ["a", "some words", "b" * 9, ""]
    found = judge_embedding.embedder(model, Words(), batch=3)(texts)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    for text, row in zip(texts, found, strict=True):
      ids = np.array([[1, *Words().encode_batch([text])[0], 2]], np.int32)
      h = np.asarray(model(ids, np.ones(ids.shape, bool)))[0].mean(axis=0)
      np.testing.assert_allclose(row, h / np.linalg.norm(h), atol=1e-5)

  def test_a_causal_model_is_refused(self):
    class Causal:
      causal, name = True, "m"

    with self.assertRaisesRegex(InputError, "model=m: must be an encoder"):
      judge_embedding.embedder(Causal(), None)


if __name__ == "__main__":
  absltest.main()
