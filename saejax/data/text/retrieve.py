"""Texts of a corpus that are like a few seed texts.

Sparse: BM25 of each seed as a query, with N documents of mean length m, df(w) of
them holding the word w,

  score(q, D) = sum_{w in q} idf(w) tf(w, D) (k1 + 1)
                / (tf(w, D) + k1 (1 - b + b |D| / m)),
  idf(w) = ln(1 + (N - df(w) + 1/2) / (df(w) + 1/2)).

Dense: the cosine of embeddings, those given (mean-pooled activations of the
studied model are good ones) or the leading singular vectors of TF-IDF. A
document's score is the largest over seeds.

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
  """Numbers of the k documents most like the seeds, best first.

  Args:
    seeds: texts of the domain.
    corpus: texts to choose from.
    k: how many; ties go to the earlier document.
    method: "dense" (the paper's recommendation) or "bm25".
    seed_embeddings: of the seeds, for "dense".
    embeddings: of the corpus; with none of them TF-IDF is used.
    dimensions: most singular vectors of TF-IDF.

  Raises:
    InputError: an unknown method, a k that the corpus does not have, no seeds,
      or one of two embeddings.
  """
  if method not in METHODS:
    raise InputError(
      "method", method, f"must be one of {', '.join(METHODS)}", "change it"
    )
  if not 1 <= k <= len(corpus):
    raise InputError(
      "k", k, f"must be in [1, {len(corpus)}], the documents", "change it"
    )
  if not seeds:
    raise InputError("seeds", 0, "must hold a text", "give at least one")
  if (seed_embeddings is None) != (embeddings is None):
    raise InputError(
      "embeddings", None, "both sides must be embedded", "give both or none"
    )
  if method == "bm25":
    scores = bm25(seeds, corpus)
  elif seed_embeddings is not None and embeddings is not None:
    scores = cosines(seed_embeddings, embeddings)
  else:
    found = tf_idf(seeds, corpus, dimensions)
    scores = cosines(found[: len(seeds)], found[len(seeds) :])
  return np.argsort(-scores.max(axis=0), kind="stable")[:k]


def words(text: str) -> list[str]:
  """The words of a text, in lower case."""
  return _WORD.findall(text.lower())


def bm25(
  queries: Sequence[str],
  corpus: Sequence[str],
  *,
  k1: float = 1.5,
  b: float = 0.75,
) -> Float[np.ndarray, "queries corpus"]:
  """The scores of the module's docstring; a word counts as often as asked."""
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
  """Embeddings of seeds, then corpus, from the words that the corpus has.

  Rows of (1 + ln tf) ln(1 + N / df), scaled to norm 1, then projected on the
  leading right singular vectors of the corpus's rows, where there are more.
  """
  counts, vocabulary = _counts(corpus)
  df = np.bincount(counts.indices, minlength=len(vocabulary))
  idf = np.log1p(len(corpus) / np.maximum(df, 1))
  both = []
  for found in (_counts(seeds, vocabulary)[0], counts):
    found.data = 1 + np.log(found.data)
    found = found.multiply(idf[None]).tocsr()
    norm = np.sqrt(np.asarray(found.multiply(found).sum(axis=1)).ravel())
    both.append(scipy.sparse.diags(1 / np.maximum(norm, 1e-12)) @ found)
  most = min(both[1].shape) - 1
  if not 1 <= dimensions <= most:  # all there are
    return scipy.sparse.vstack(both).toarray()
  start = np.ones(min(both[1].shape))
  _, _, V = scipy.sparse.linalg.svds(both[1], dimensions, v0=start)
  return np.concatenate([rows @ np.asarray(V).T for rows in both])


def cosines(
  a: Float[np.ndarray, "a e"], b: Float[np.ndarray, "b e"]
) -> Float[np.ndarray, "a b"]:
  """Of all pairs of rows; 0 where a row is 0."""
  unit = lambda x: (
    x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  )
  return unit(np.asarray(a, np.float64)) @ unit(np.asarray(b, np.float64)).T


def _counts(
  texts: Sequence[str], vocabulary: dict[str, int] | None = None
) -> tuple[scipy.sparse.csr_matrix, dict[str, int]]:
  """Word counts [texts, words]; words outside a given vocabulary are left out."""
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
  found = scipy.sparse.csr_matrix((data, column, ends), shape=shape)
  return found, known
