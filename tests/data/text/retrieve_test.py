"""saejax/data/retrieve.py: texts like the seeds."""

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.text import retrieve
from saejax.errors import InputError

CORPUS = ["the cat sat", "the dog sat on the dog", "a bird"]


def topics(documents=90, count=3, own=12, common=20, seed=0):
  """Texts of words of their topic and of words of all, and the topics."""
  rng = np.random.default_rng(seed)
  topic = rng.integers(0, count, documents)
  texts = []
  for t in topic:
    picked = [f"t{t}w{i}" for i in rng.integers(0, own, 4)]
    picked += [f"w{i}" for i in rng.integers(0, common, 12)]
    texts.append(" ".join(picked))
  return texts, topic


class BM25Test(absltest.TestCase):
  def test_three_documents_by_hand(self):
    # ssae, check 4: lengths 3, 6, 2, mean 11/3; df the 2, dog 1, sat 2, bird 1.
    scores = retrieve.bm25(["the dog", "bird", "unknown"], CORPUS)
    idf = lambda df: np.log(1 + (3 - df + 0.5) / (df + 0.5))
    norm = [1.5 * (0.25 + 0.75 * n / (11 / 3)) for n in (3, 6, 2)]
    part = lambda df, tf, n: idf(df) * tf * 2.5 / (tf + norm[n])
    want = [
      [part(2, 1, 0), part(2, 2, 1) + part(1, 2, 1), 0],
      [0, 0, part(1, 1, 2)],
      [0, 0, 0],
    ]
    np.testing.assert_allclose(scores, want, rtol=1e-9)
    self.assertAlmostEqual(scores[0, 0], 0.5119, places=3)
    self.assertAlmostEqual(scores[0, 1], 1.7207, places=3)

  def test_words_ignore_case_and_marks(self):
    self.assertEqual(
      retrieve.words("The cat's, 2nd!"), ["the", "cat", "s", "2nd"]
    )

  def test_the_best_document_of_a_seed_comes_first(self):
    found = retrieve.retrieve(["the dog"], CORPUS, 2, method="bm25")
    np.testing.assert_array_equal(found, [1, 0])


class DenseTest(parameterized.TestCase):
  @parameterized.parameters("bm25", "dense")
  def test_planted_topics_are_found(self, method):
    # ssae, check 4: precision above chance, which is a third.
    texts, topic = topics()
    rare = np.flatnonzero(topic == 1)
    seeds = [texts[i] for i in rare[:4]]
    rest = [i for i in range(len(texts)) if i not in set(rare[:4])]
    corpus = [texts[i] for i in rest]
    found = retrieve.retrieve(seeds, corpus, 20, method=method, dimensions=8)
    self.assertGreater(np.mean(topic[rest][found] == 1), 0.6)
    self.assertLen(set(found.tolist()), 20)

  def test_given_embeddings_are_compared_by_cosine(self):
    seeds = np.array([[1.0, 0.0], [0.0, 5.0]])
    embeddings = np.array([[-1.0, 0.0], [3.0, 3.0], [0.1, 0.0], [0.0, 0.0]])
    found = retrieve.retrieve(
      ["a", "b"],
      ["c"] * 4,
      4,
      seed_embeddings=seeds,
      embeddings=embeddings,
    )
    np.testing.assert_array_equal(found, [2, 1, 0, 3])

  def test_few_words_need_no_projection(self):
    found = retrieve.tf_idf(["cat"], CORPUS, dimensions=64)
    c = retrieve.cosines(found[:1], found[1:])
    self.assertGreater(c[0, 0], 0.4)
    np.testing.assert_array_equal(c[0, 1:], 0)

  @parameterized.parameters(
    ({"method": "nearest"}, "method"),
    ({"k": 0}, "k"),
    ({"k": 4}, "k"),
    ({"seeds": []}, "seeds"),
    ({"embeddings": np.ones((3, 2))}, "embeddings"),
  )
  def test_what_cannot_be_is_refused(self, changes, field):
    settings = {"seeds": ["a"], "corpus": CORPUS, "k": 1} | changes
    with self.assertRaises(InputError) as caught:
      retrieve.retrieve(**settings)
    self.assertEqual(caught.exception.field, field)


if __name__ == "__main__":
  absltest.main()
