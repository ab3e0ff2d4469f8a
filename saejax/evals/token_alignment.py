"""Rows of one corpus in two models: the same tokens, or common ends of words.

Models with one tokenizer have equal tokens at equal positions. Others are compared
where a token of each ends at the same character and a word ends there: both have
read the same text. Characters are counted without spaces and in lower case, since
tokenizers differ in both.

References:
  Lan et al., Sparse Autoencoders Reveal Universal Feature Spaces Across Large
  Language Models, 2024, arXiv:2410.06981 (models of one tokenizer).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from saejax.errors import InputError

_SHOWN = 30  # characters of a text in an error

Pairs = Int[np.ndarray, "m 2"]


def common_word_ends(tokens_a: Sequence[str], tokens_b: Sequence[str]) -> Pairs:
  """Places of tokens of two tokenizations of a text that end a word together.

  One may end before the other, as documents that are cut at a number of tokens.

  Args:
    tokens_a, tokens_b: texts of the tokens, which joined give the text, up to
      spaces and case; see `data.text.neighbours.pieces`.

  Raises:
    InputError: they are not tokens of one text.

  >>> common_word_ends(["un", "do", " it"], ["undo", " ", "it"]).tolist()
  [[1, 0], [2, 2]]
  """
  ends_a, text_a = _word_ends(tokens_a)
  ends_b, text_b = _word_ends(tokens_b)
  both = min(len(text_a), len(text_b))
  if text_a[:both] != text_b[:both]:
    at = next(i for i in range(both) if text_a[i] != text_b[i])
    rule = (
      f"must spell the text of tokens_a, {text_a[at : at + _SHOWN]!r} there"
    )
    remedy = "align tokens of one text"
    raise InputError("tokens_b", text_b[at : at + _SHOWN], rule, remedy)
  common = sorted(ends_a.keys() & ends_b.keys())
  return np.array([(ends_a[c], ends_b[c]) for c in common], int).reshape(-1, 2)


def _word_ends(tokens: Sequence[str]) -> tuple[dict[int, int], str]:
  """Places of tokens that end a word, by the characters so far; the text."""
  ends, text = {}, []
  count, last = 0, -1  # last token that has a character
  for place, token in enumerate(tokens):
    own = "".join(token.split()).lower()
    inside = (
      token[:1].isalnum() and place > 0 and tokens[place - 1][-1:].isalnum()
    )
    if last >= 0 and not inside:
      ends.setdefault(count, last)
    if own:
      count, last = count + len(own), place
      text.append(own)
  if last >= 0:
    ends.setdefault(count, last)
  return ends, "".join(text)


def same_tokens(
  a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]
) -> Pairs:
  """Places of the rows of two lists that are of one document and position.

  Args:
    a, b: documents and positions of the rows; no two rows of a list are equal.

  >>> doc, pos = np.array([0, 0, 1]), np.array([0, 1, 0])
  >>> same_tokens((doc, pos), (doc[1:], pos[1:])).tolist()
  [[1, 0], [2, 1]]
  """
  docs = np.concatenate([a[0], b[0]])
  rank = np.unique(docs, return_inverse=True)[1].astype(np.int64)
  pos = np.concatenate([a[1], b[1]]).astype(np.int64)
  keys = np.split(rank * (pos.max(initial=0) + 1) + pos, [len(a[0])])
  _, at_a, at_b = np.intersect1d(*keys, return_indices=True)
  order = np.argsort(at_a)
  return np.stack([at_a[order], at_b[order]], axis=-1)
