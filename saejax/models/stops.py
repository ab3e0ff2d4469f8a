"""Texts of generated tokens, and the strings that end them."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from saejax.models import tokenizer

STRIDE = 8  # tokens between looks for stop strings


@dataclasses.dataclass(frozen=True)
class Text:
  """The text of samples, and the strings that end them."""

  words: tokenizer.Tokenizer | None
  stops: tuple[str, ...]

  def looks(self, max_tokens: int) -> Iterator[int]:
    """Numbers of tokens after which stop strings are looked for."""
    yield from range(STRIDE, max_tokens, STRIDE) if self.stops else ()
    yield max_tokens

  def after(self, prompt: np.ndarray, ids: np.ndarray) -> str:
    """The text that ids add to that of the prompt.

    Decoded alone, ids may lack a space at their beginning.
    """
    if self.words is None:
      return ""
    before = self.words.decode(prompt)
    whole = self.words.decode([*prompt, *ids])
    if whole.startswith(before):
      return whole[len(before) :]
    return self.words.decode(ids)

  def cut(self, prompt: np.ndarray, ids: np.ndarray) -> tuple[int, str] | None:
    """Number of ids up to the first stop string, and the text before it."""

    def place(count: int) -> int | None:
      text = self.after(prompt, ids[:count])
      found = [at for s in self.stops if (at := text.find(s)) >= 0]
      return min(found, default=None)

    if place(len(ids)) is None:
      return None
    count = next(n for n in range(1, len(ids) + 1) if place(n) is not None)
    return count, self.after(prompt, ids[:count])[: place(count)]
