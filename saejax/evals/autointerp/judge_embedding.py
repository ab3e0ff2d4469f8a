"""A judge by sentence embeddings: the cosine of an explanation and a text.

  score(e, w) = <E(e), E(w)>,    |E| = 1

where E is any function of texts, such as that of `embedder`. Its scores on windows
are the embedding scorer of delphi. It cannot write: explanations are another judge's.

References:
  github.com/EleutherAI/delphi, scorers/embedding; Reimers, Gurevych,
  Sentence-BERT, 2019, arXiv:1908.10084.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.evals.autointerp.judge import Judge
from saejax.evals.autointerp.judge_keyword import Keyword
from saejax.evals.autointerp.windows import LEVELS, Window
from saejax.models import bert
from saejax.models.model import Model
from saejax.models.tokenizer import Tokenizer

Embed = Callable[[Sequence[str]], Float[np.ndarray, "N d"]]
_MULTIPLE = 16  # lengths are padded to it, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class Embedding:
  """Judges by the cosine of embeddings.

  Attributes:
    embed: function of N texts, [N, d].
    explainer: who writes the explanations.
    threshold: least cosine of a yes; NaN, the default, for none.
  """

  embed: Embed
  explainer: Judge = Keyword()
  threshold: float = float("nan")

  def explain(
    self, windows: Sequence[Window], silent: Sequence[Window] = ()
  ) -> str:
    return self.explainer.explain(windows, silent)

  def score(
    self, explanation: str, windows: Sequence[Window], question: str
  ) -> Float[np.ndarray, "N"]:
    return self._cosines(explanation, [_asked(w, question) for w in windows])

  def simulate(
    self, explanation: str, windows: Sequence[Window]
  ) -> list[Float[np.ndarray, "T"]]:
    tokens = sorted({token for window in windows for token in window.tokens})
    cosine = self._cosines(explanation, [token or " " for token in tokens])
    level = dict(zip(tokens, LEVELS * np.clip(cosine, 0, 1), strict=True))
    return [np.array([level[t] for t in window.tokens]) for window in windows]

  def odd(self, windows: Sequence[Window]) -> int:
    E = unit(self.embed([_asked(w, "fuzzing") for w in windows]))
    return int(np.argmin((E @ E.T).sum(axis=1)))

  def _cosines(
    self, explanation: str, texts: Sequence[str]
  ) -> Float[np.ndarray, "N"]:
    E = unit(self.embed([explanation, *texts]))
    return E[1:] @ E[0]


def _asked(window: Window, question: str) -> str:
  """The text that a question is about: the marked tokens alone in fuzzing."""
  if question != "fuzzing" or not window.marks.any():
    return window.text
  pairs = zip(window.tokens, window.marks, strict=True)
  return " ".join(token.strip() for token, mark in pairs if mark) or " "


def unit(E: Float[np.ndarray, "N d"]) -> Float[np.ndarray, "N d"]:
  """Rows of norm 1 in float64; rows of 0 remain.

  Args:
    E: the rows.
  """
  E = np.asarray(E, np.float64)
  norm = np.linalg.norm(E, axis=-1, keepdims=True)
  return E / np.where(norm > 0, norm, 1)


def embedder(
  model: Model, tokenizer: Tokenizer, *, batch: int = 64, length: int = 256
) -> Embed:
  """Makes a function of texts of an embedding model, such as all-MiniLM-L6-v2.

  Args:
    model: an encoder, whose tokens are pooled by their mean.
    tokenizer: its tokenizer.
    batch: texts at once.
    length: largest number of tokens of a text; the rest is cut.

  Raises:
    InputError: the model is a causal one.
  """
  if model.causal:
    rule, remedy = "must be an encoder", "give an embedding model"
    raise InputError("model", model.name, rule, remedy)
  length = min(length, model.max_positions) // _MULTIPLE * _MULTIPLE
  run = jax.jit(lambda model, i, m: bert.sentence_embedding(model(i, m), m))

  def embed(texts: Sequence[str]) -> Float[np.ndarray, "N d"]:
    ends = len(tokenizer.prefix) + len(tokenizer.suffix)
    whole = [
      [*tokenizer.prefix, *t[: length - ends].tolist(), *tokenizer.suffix]
      for t in tokenizer.encode_batch(texts)
    ]
    found = np.zeros((len(whole), model.d), np.float32)
    order = np.argsort([len(t) for t in whole], kind="stable")
    for start in range(0, len(order), batch):
      some = order[start : start + batch]
      ids, mask = padded([whole[i] for i in some], batch, _MULTIPLE)
      part = run(model, jnp.asarray(ids), jnp.asarray(mask))
      found[some] = np.asarray(part)[: len(some)]
    return found

  return embed


def padded(
  rows: Sequence[Sequence[int]], batch: int, multiple: int
) -> tuple[np.ndarray, np.ndarray]:
  """Ids and mask of rows on the left of a rectangle [batch, T].

  Args:
    rows: ids of each row.
    batch: number of rows of the rectangle.
    multiple: of which T is one.
  """
  longest = max(1, max(map(len, rows), default=1))
  shape = batch, -(-longest // multiple) * multiple
  ids, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
  for i, row in enumerate(rows):
    ids[i, : len(row)], mask[i, : len(row)] = row, True
  return ids, mask
