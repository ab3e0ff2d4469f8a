"""First-letter spelling: a task on which the labels of all tokens are known.

Its words are the tokens of letters alone, with a blank before them or not. A prompt
has ten examples and the word,

  "\\n{word} has the first letter: X"  for each example
  "\\n{word} has the first letter:"    for the word

and the model predicts " X", the letter in upper case. The activation at the token of
the word is what probes and SAEs read: `letter_probes`, `absorbed_projection` and
`absorbed_effects`.

The reference implementation reads position -6, which depends on the tokenizer. Here
the position is counted from the tokens of the template, and a word is left out
where the token there is not the word. The examples are fixed by the seed; one that
is the word itself, in any case, is replaced by a spare one.

References:
  Chanin et al., A is for Absorption: Studying Feature Splitting and Absorption in
  Sparse Autoencoders, 2024, arXiv:2409.14507.
"""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from saejax.errors import InputError
from saejax.evals.words import word_rows
from saejax.models import edits, taps
from saejax.models.model import Model
from saejax.models.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEMPLATE = " has the first letter:"
_WORD = re.compile(" ?[A-Za-z]+")


@dataclasses.dataclass(frozen=True, eq=False)
class Words:
  """Tokens that are words of letters.

  Attributes:
    ids: token id of each word.
    texts: text of each, as it reads in a text.
    letter: number of the first letter, from 0 for a.
  """

  ids: Int[np.ndarray, "W"]
  texts: tuple[str, ...]
  letter: Int[np.ndarray, "W"]

  def __len__(self) -> int:
    return len(self.ids)

  def at(self, which: Int[np.ndarray, "V"]) -> "Words":
    """Returns some of the words.

    Args:
      which: their places.
    """
    which = np.asarray(which, int)
    texts = tuple(self.texts[i] for i in which)
    return Words(self.ids[which], texts, self.letter[which])


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """Prompts of words, all with equally many tokens.

  Attributes:
    words: the words of the prompts.
    ids: tokens.
    position: number of the word's token in every prompt.
    answers: token of each letter's answer, " A" to " Z".
    dropped: number of words that were left out, since the token at the position
      is another or the prompt has another length.
  """

  words: Words
  ids: Int[np.ndarray, "W T"]
  position: int
  answers: Int[np.ndarray, "26"]
  dropped: int


def vocabulary(tokenizer: Tokenizer) -> Words:
  """Returns the tokens of a vocabulary that are made of letters alone.

  The text of a token is what it adds to a text: some decoders drop the blank of
  the first token.

  Args:
    tokenizer: the tokenizer.

  Raises:
    InputError: there is none.
  """
  before = tokenizer.encode("a").tolist()
  start = tokenizer.decode(before)
  ids, texts = [], []
  for i in range(tokenizer.vocabulary):
    if i in tokenizer.special_ids:
      continue
    text = tokenizer.decode([*before, i])
    own = text[len(start) :]
    if text.startswith(start) and _WORD.fullmatch(own):
      ids.append(i)
      texts.append(own)
  if not ids:
    raise InputError(
      "tokenizer",
      f"{tokenizer.vocabulary} tokens",
      "must have tokens of letters alone",
      "use the tokenizer of a language model",
    )
  letter = [LETTERS.index(text.strip()[0].lower()) for text in texts]
  return Words(np.asarray(ids), tuple(texts), np.asarray(letter))


def sample(words: Words, *, per_letter: int, seed: int = 0) -> Words:
  """Draws at most so many words of each letter.

  Args:
    words: the words; those that are left keep their order.
    per_letter: largest number of words of a letter.
    seed: of the draw.
  """
  rng = np.random.default_rng(seed)
  kept = [
    rng.permutation(np.flatnonzero(words.letter == letter))[:per_letter]
    for letter in np.unique(words.letter)
  ]
  return words.at(np.sort(np.concatenate(kept)))


def prompts(
  tokenizer: Tokenizer,
  words: Words,
  *,
  examples: Words | None = None,
  count: int = 10,
  seed: int = 0,
) -> Prompts:
  """Writes the prompt of each word.

  Args:
    tokenizer: the tokenizer.
    words: the words.
    examples: words that examples are drawn from; `words` by default.
    count: number of examples.
    seed: of their draw.

  Raises:
    InputError: there are too few examples, a letter's answer is not one token, or
      no prompt has its word as a token at the position.
  """
  chosen = _examples(words if examples is None else examples, count, seed)
  lines = [_line(text) for text in chosen]
  texts = []
  for text in words.texts:
    own = [line for line, e in zip(lines, chosen, strict=True) if
           _key(e) != _key(text)]  # fmt: skip
    texts.append("".join(own[:count]) + "\n" + text + TEMPLATE)
  prefix = np.asarray(tokenizer.prefix, np.int32)
  found = [np.concatenate([prefix, i]) for i in tokenizer.encode_batch(texts)]
  after = len(_added(tokenizer, "a", TEMPLATE))
  lengths = np.array([len(own) for own in found])
  is_word = np.array(
    [
      len(own) > after and own[-1 - after] == token
      for own, token in zip(found, words.ids, strict=True)
    ]
  )
  if not is_word.any():
    own = found[0] if found else prefix
    raise InputError(
      "tokenizer",
      tokenizer.decode(own[-1 - after :]),
      "must start with the word as a token of its own",
      "use words of this tokenizer, see first_letter.vocabulary",
    )
  T = np.bincount(lengths[is_word]).argmax()
  kept = np.flatnonzero(is_word & (lengths == T))
  return Prompts(
    words=words.at(kept),
    ids=np.stack([found[i] for i in kept]),
    position=int(T) - 1 - after,
    answers=_answers(tokenizer),
    dropped=len(words) - len(kept),
  )


def activations(
  model: Model, site: str, prompts: Prompts, *, batch_prompts: int = 32
) -> Float[np.ndarray, "W d"]:
  """Computes the activation at the word of each prompt.

  Args:
    model, site, batch_prompts: as for `word_rows.read`.
    prompts: the prompts.

  Raises:
    InputError: as `word_rows.read`.
  """
  position = np.full(len(prompts.ids), prompts.position)
  return word_rows.read(
    model, site, list(prompts.ids), position, batch_prompts=batch_prompts
  )


def readout(model: Model, site: str, prompts: Prompts) -> Partial:
  """Returns the logits of letters as a function of the activation at the word.

  Args:
    model: a causal model with a head.
    site: name of the site.
    prompts: the prompts, for their position and answers.

  Returns:
    (x [d], tokens of the prompt [T]) -> logits of the answers [26].
  """
  _ = model.head  # refuses a model without one
  position, answers = (
    jnp.asarray(prompts.position),
    jnp.asarray(prompts.answers),
  )
  return Partial(_Logits(site), model, position, answers)


@dataclasses.dataclass(frozen=True)
class _Logits:
  """Function of `readout`; equal for equal sites, so compiled once."""

  site: str

  def __call__(
    self,
    model: Model,
    position: Int[Array, ""],
    answers: Int[Array, "26"],
    x: Float[Array, "d"],
    ids: Int[Array, "T"],
  ) -> Float[Array, "26"]:
    def put(h: Array, context: edits.Context) -> Array:
      here = jnp.arange(h.shape[1])[:, None] == position
      flat = h.reshape(*h.shape[:2], -1)
      return jnp.where(here, x.astype(h.dtype), flat).reshape(h.shape)

    mask = jnp.ones((1, len(ids)), bool)
    edit = edits.Edit(put)
    h = taps.hidden(model, ids[None], mask, {self.site: edit})
    return model.logits(h[:, -1:])[0, 0, answers].astype(jnp.float32)


def _examples(words: Words, count: int, seed: int) -> list[str]:
  """Texts of the examples and a spare one, no two of them one word."""
  chosen: dict[str, str] = {}
  for i in np.random.default_rng(seed).permutation(len(words)):
    text = words.texts[i]
    chosen.setdefault(_key(text), text)
    if len(chosen) == count + 1:
      return list(chosen.values())
  raise InputError(
    "examples",
    len(chosen),
    f"must be at least {count + 1} different words, one of them to spare",
    "give more words, or lower count",
  )


def _line(text: str) -> str:
  return f"\n{text}{TEMPLATE} {_key(text)[0].upper()}"


def _key(text: str) -> str:
  return text.strip().lower()


def _added(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
  """Tokens that a text adds after another."""
  start = len(tokenizer.encode(before))
  return tokenizer.encode(before + text).tolist()[start:]


def _answers(tokenizer: Tokenizer) -> Int[np.ndarray, "26"]:
  found = []
  for letter in LETTERS.upper():
    own = _added(tokenizer, "a" + TEMPLATE, f" {letter}")
    if len(own) != 1:
      raise InputError(
        "tokenizer",
        f"' {letter}'",
        f"must be one token after the prompt, and is {len(own)}",
        "use a tokenizer whose vocabulary has all letters after a blank",
      )
    found += own
  return np.asarray(found)
