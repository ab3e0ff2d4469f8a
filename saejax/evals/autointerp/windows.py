"""Windows of text with the values of a latent, which explanations are made from.

A window is a piece of T tokens of a document, cut at multiples of T, or centred: the
token where the latent is largest is then at 3T/4. `window_search` finds those where a
latent is active; they are read as text only after they were chosen.

References:
  Paulo et al., Automatically Interpreting Millions of Features in Large Language
  Models, 2024, arXiv:2410.13928 (windows of 32, centred at index 24).
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from saejax.data.store.reader import Store
from saejax.data.text import neighbours
from saejax.features import cards
from saejax.sae.sae import SAE

LENGTH = 32  # tokens of a window
LEVELS = 10  # of an activation, beside 0


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
  """A piece of text, with a latent's value on each token.

  Attributes:
    tokens: the texts of the tokens; joined they are the text.
    values: the latent on each [T]; 0 where it is silent.
    marks: tokens that a judge is shown as active [T].
    largest: value that is level 10, such as the latent's largest.
    quantile: rank-quantile of the window's largest value, 0 the strongest; -1 for
      a silent window.
    key: (document, position of the first token), for identity.
  """

  tokens: tuple[str, ...]
  values: Float[np.ndarray, "T"]
  marks: Bool[np.ndarray, "T"]
  largest: float = 0.0
  quantile: int = -1
  key: tuple[int, int] = (-1, -1)

  @property
  def text(self) -> str:
    """The text without marks."""
    return "".join(self.tokens)

  @property
  def active(self) -> Bool[np.ndarray, "T"]:
    """The tokens on which the latent is above 0."""
    return self.values > 0

  @property
  def levels(self) -> Int[np.ndarray, "T"]:
    """Values in whole tenths of the largest, ceil(10 z / largest), in 0..10."""
    share = self.values / (self.largest or self.values.max(initial=0) or 1)
    return np.clip(np.ceil(LEVELS * share - 1e-6), 0, LEVELS).astype(int)

  def marked(self, marks: Bool[np.ndarray, "T"]) -> "Window":
    """Returns a copy with other marks.

    Args:
      marks: the tokens to mark.
    """
    return dataclasses.replace(self, marks=np.asarray(marks, bool))

  def strong(self, share: float = 0.0) -> Bool[np.ndarray, "T"]:
    """The tokens above 0 and above a share of the window's largest value.

    Args:
      share: the share; 0.3 for the examples of an explanation.
    """
    return self.active & (self.values >= share * self.values.max(initial=0))

  def shown(self, before: str = "<<", after: str = ">>") -> str:
    """The text with its marked runs between two texts, and ↵ for a new line.

    Args:
      before, after: texts around a run of marked tokens.
    """
    found, open_ = [], False
    for token, mark in zip(self.tokens, self.marks, strict=True):
      if mark != open_:
        blank = len(token) - len(token.lstrip(" "))
        lead, token = (token[:blank], token[blank:]) if mark else ("", token)
        found += [lead, before if mark else after]
        open_ = bool(mark)
      found.append(token)
    return "".join([*found, after * open_]).replace("\n", "↵")


def plain(text: str) -> Window:
  """Makes a window of a whole text, whose tokens are its words.

  Args:
    text: the text.

  >>> plain("a black cat").tokens
  ('a', ' black', ' cat')
  """
  tokens = tuple(re.findall(r"\s*\S+|\s+", text))
  nothing = np.zeros(len(tokens))
  return Window(tokens, nothing, nothing.astype(bool))


# --- their text --------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
  """A window of a store as text, whatever the latent.

  Attributes:
    tokens: the texts of the tokens.
    rows: their row numbers [T].
    key: (document, position of the first token).
  """

  tokens: tuple[str, ...]
  rows: Int[np.ndarray, "T"]
  key: tuple[int, int]

  def window(
    self,
    values: Float[np.ndarray, "T"],
    *,
    largest: float = 0.0,
    quantile: int = -1,
  ) -> Window:
    """The window with a latent on it, its active tokens marked.

    Args:
      values: the latent on the tokens.
      largest: value that is level 10; by default the window's own largest.
      quantile: rank-quantile of the window.
    """
    return Window(
      tokens=self.tokens,
      values=values,
      marks=values > 0,
      largest=largest,
      quantile=quantile,
      key=self.key,
    )


def texts(
  store: Store,
  rows: Sequence[int] | Int[np.ndarray, "N"],
  *,
  length: int = LENGTH,
  centred: bool = False,
  compat: str = "",
) -> list[Text]:
  """Reads windows as text.

  Args:
    store: store with provenance and a tokenizer.
    rows: a row of each window; for centred ones that of the largest value.
    length: tokens of a window.
    centred: moves windows so that the row is at 3/4, borrowing tokens of the
      neighbouring windows; by default they are cut at multiples of the length.
    compat: "delphi" swaps the two, as its switch does.
  """
  words = neighbours.tokenizer_of(store)
  rows = [int(row) for row in rows]
  where = store.take(rows, "doc", "pos")
  near = []
  for row, pos in zip(rows, where["pos"].tolist(), strict=True):
    before = pos % length
    if centred != (compat == "delphi"):
      before = 3 * length // 4
    near.append(neighbours.window(store, row, before, length - 1 - before))
  first = store.take([int(n.rows[0]) for n in near], "pos")["pos"].tolist()
  return [
    Text(tuple(neighbours.pieces(words, n.tokens)), n.rows, (doc, pos))
    for n, doc, pos in zip(near, where["doc"].tolist(), first, strict=True)
  ]


def values(
  sae: SAE,
  store: Store,
  wanted: Sequence[tuple[int, Text]],
  *,
  batch_rows: int = 4096,
) -> list[Float[np.ndarray, "T"]]:
  """Computes latents on windows; each row is read and encoded once.

  Args:
    sae: the SAE, in the inference form.
    store: the store.
    wanted: number of a latent, and the window.
    batch_rows: largest number of rows on the device at once.
  """
  pairs = [(latent, text.rows) for latent, text in wanted]
  return cards.on_rows(sae, store, pairs, batch_rows=batch_rows)
