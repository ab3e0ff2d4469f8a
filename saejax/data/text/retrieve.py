"""Retrieves texts of a corpus that are similar to a few seed texts.

Sparse retrieval is BM25 with each seed as a query. For N documents of mean
length m, df(w) of which have the word w,

  score(q, D) = sum_{w in q} idf(w) tf(w, D) (k1 + 1)
                / (tf(w, D) + k1 (1 - b + b |D| / m)),
  idf(w) = ln(1 + (N - df(w) + 1/2) / (df(w) + 1/2)).

Dense retrieval is the cosine of embeddings: given ones (mean-pooled activations
of the studied model work well) or TF-IDF projected on its leading singular
vectors. A document's score is the largest over seeds.

References:
  Muhamed et al., Decoding Dark Matter: Specialized Sparse Autoencoders for
  Interpreting Rare Concepts in Foundation Models, 2024, arXiv:2411.00743;
  Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and
  Beyond, 2009.
"""

import collections
import re
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Float, Int

from saejax.errors import InputError

METHODS = ("bm25", "dense")
_WORD = re.compile(r"\w+")


def retrieve(
  seeds: Sequence[str],
  corpus: Sequence[str],
  k: int,
  *,
  method: str = "dense",
  seed_embeddings: Float[np.ndarray, "s e"] | None = None,
  embeddings: Float[np.ndarray, "c e"] | None = None,
  dimensions: int = 64,
) -> Int[np.ndarray, "k"]:
  """Returns the numbers of the k documents most similar to the seeds, best first.

  Args:
    seeds: texts of the domain.
    corpus: texts to choose from.
    k: number of documents; ties go to the earlier one.
    method: "dense" (the paper's recommendation) or "bm25".
    seed_embeddings: embeddings of the seeds, for "dense"; None for TF-IDF.
    embeddings: embeddings of the corpus, for "dense"; None for TF-IDF.
    dimensions: number of singular vectors of TF-IDF.

  Raises:
    InputError: the method is unknown, k is out of range, there are no seeds, or
      only one of the two embeddings is given.

  >>> retrieve(["red wine"], ["a red car", "red wine"], 1, method="bm25")
  array([1])
  """
  if method not in METHODS:
    raise InputError(
      "method", method, f"must be one of {', '.join(METHODS)}", "choose one"
    )
  if not 1 <= k <= len(corpus):
    raise InputError(
      "k",
      k,
      f"must be in [1, {len(corpus)}], the number of documents",
      "lower it, or use a larger corpus",
    )
  if not seeds:
    raise InputError("seeds", 0, "must have a text", "give at least one text")
  if (seed_embeddings is None) != (embeddings is None):
    raise InputError(
      "embeddings",
      None,
      "seeds and corpus must both have embeddings",
      "give both or neither",
    )
  if method == "bm25":
    scores = bm25(seeds, corpus)
  elif seed_embeddings is not None and embeddings is not None:
    scores = cosines(seed_embeddings, embeddings)
  else:
    vectors = tf_idf(seeds, corpus, dimensions)
    scores = cosines(vectors[: len(seeds)], vectors[len(seeds) :])
  return np.argsort(-scores.max(axis=0), kind="stable")[:k]


def words(text: str) -> list[str]:
  """Returns the words of a text in lower case.

  Args:
    text: the text.

  >>> words("Red wine, white bread")
  ['red', 'wine', 'white', 'bread']
  """
  return _WORD.findall(text.lower())


def bm25(
  queries: Sequence[str],
  corpus: Sequence[str],
  *,
  k1: float = 1.5,
  b: float = 0.75,
) -> Float[np.ndarray, "queries corpus"]:
  """Computes BM25 scores, see the module's docstring.

  A word that occurs several times in a query counts as often.

  Args:
    queries: the queries.
    corpus: the documents.
    k1: saturation of the word count.
    b: weight of the normalisation by length.
  """
  counts, vocabulary = _counts(corpus)
  lengths = np.asarray(counts.sum(axis=1), np.float64).ravel()
  df = np.bincount(counts.indices, minlength=len(vocabulary))
  idf = np.log1p((len(corpus) - df + 0.5) / (df + 0.5))
  row = np.repeat(np.arange(len(corpus)), np.diff(counts.indptr))
  tf = counts.data
  norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-12))
  counts.data = idf[counts.indices] * tf * (k1 + 1) / (tf + norm[row])
  asked = _counts(queries, vocabulary)[0].toarray()
  return np.asarray(counts @ asked.T).T


def tf_idf(
  seeds: Sequence[str], corpus: Sequence[str], dimensions: int = 64
) -> Float[np.ndarray, "s+c e"]:
  """Computes TF-IDF embeddings of the seeds and then of the corpus.

  Rows are (1 + ln tf) ln(1 + N / df), scaled to norm 1 and projected on the
  leading right singular vectors of the corpus's rows. Words that are not in the
  corpus are ignored.

  Args:
    seeds: texts of the domain.
    corpus: the documents.
    dimensions: number of singular vectors; where the corpus has no more, rows
      are not projected.
  """
  counts, vocabulary = _counts(corpus)
  df = np.bincount(counts.indices, minlength=len(vocabulary))
  idf = np.log1p(len(corpus) / np.maximum(df, 1))
  both = []
  for matrix in (_counts(seeds, vocabulary)[0], counts):
    matrix.data = 1 + np.log(matrix.data)
    matrix = matrix.multiply(idf[None]).tocsr()
    norm = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    both.append(scipy.sparse.diags(1 / np.maximum(norm, 1e-12)) @ matrix)
  most = min(both[1].shape) - 1
  if not 1 <= dimensions <= most:
    return scipy.sparse.vstack(both).toarray()
  start = np.ones(min(both[1].shape))
  _, _, V = scipy.sparse.linalg.svds(both[1], dimensions, v0=start)
  return np.concatenate([rows @ np.asarray(V).T for rows in both])


def cosines(
  a: Float[np.ndarray, "a e"], b: Float[np.ndarray, "b e"]
) -> Float[np.ndarray, "a b"]:
  """Computes the cosines of all pairs of rows; 0 where a row is 0.

  Args:
    a: rows [a, e].
    b: rows [b, e].

  >>> cosines(np.eye(2), np.array([[2.0, 0.0]])).tolist()
  [[1.0], [0.0]]
  """
  unit = lambda x: (
    x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  )
  return unit(np.asarray(a, np.float64)) @ unit(np.asarray(b, np.float64)).T


def _counts(
  texts: Sequence[str], vocabulary: dict[str, int] | None = None
) -> tuple[scipy.sparse.csr_matrix, dict[str, int]]:
  """Counts words, [texts, words]; ignores words not in a given vocabulary."""
  grows = vocabulary is None
  known = {} if vocabulary is None else vocabulary
  data, column, ends = [], [], [0]
  for text in texts:
    for word, count in collections.Counter(words(text)).items():
      at = known.setdefault(word, len(known)) if grows else known.get(word)
      if at is not None:
        data.append(float(count))
        column.append(at)
    ends.append(len(data))
  shape = (len(texts), len(known))
  counts = scipy.sparse.csr_matrix((data, column, ends), shape=shape)
  return counts, known
