"""Pairs of contexts of a word with one sense or two, and their prompts.

The prompt of a context is "{context} The {word} means", and the position is that of
the word in this suffix, which sees the whole context. Pairs are read from JSON
lines, or made from contexts whose senses are labelled, and are balanced: as many of
one sense as of two.

References:
  Minegishi et al., Rethinking Evaluation of Sparse Autoencoders through the
  Representation of Polysemous Words, 2025, arXiv:2501.06254.
  Pilehvar and Camacho-Collados, WiC: the Word-in-Context Dataset, 2019,
  arXiv:1808.09121 (the pairs).
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from saejax.errors import InputError
from saejax.evals.words import json_lines
from saejax.models.tokenizer import Tokenizer

_FIELDS = {"context_1": str, "context_2": str, "target_word": str, "label": int}


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two contexts of a word, and whether it has one sense in both."""

  first: str
  second: str
  word: str
  same: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """Prompts of pairs: those of the first contexts, then of the second.

  Attributes:
    ids: tokens of each prompt.
    position: number of the word's token in each prompt.
  """

  ids: tuple[Int[np.ndarray, "T"], ...]
  position: Int[np.ndarray, "2P"]


def pairs(lines: Iterable[str]) -> list[Pair]:
  """Returns the pairs of JSON lines.

  Args:
    lines: lines with context_1, context_2, target_word and label, 1 for one
      sense and 0 for two.

  Raises:
    InputError: a line is wrong, with its number, or there is none.
  """
  found = []
  for number, record in json_lines.records(lines, _FIELDS, field="pairs"):
    if record["label"] not in (0, 1):
      raise InputError(
        "pairs",
        f"line {number}",
        f"label must be 1 for the same sense or 0 for different ones, not "
        f"{record['label']}",
        "correct the label",
      )
    first, second, word, label = (record[name] for name in _FIELDS)
    found.append(Pair(first, second, word, bool(label)))
  if not found:
    rule = "must have at least one pair"
    raise InputError("pairs", "no lines", rule, "give a file with pairs")
  return found


def balanced(pairs: Sequence[Pair], *, seed: int = 0) -> list[Pair]:
  """Cuts the more frequent label to the number of the other, in random.

  Args:
    pairs: the pairs; those that are left keep their order.
    seed: of the choice.

  Raises:
    InputError: all pairs have one label.
  """
  same = np.array([pair.same for pair in pairs], bool)
  check_labels(same)
  rng = np.random.default_rng(seed)
  count = int(min(same.sum(), (~same).sum()))
  kept = [
    rng.choice(np.flatnonzero(same == label), count, replace=False)
    for label in (True, False)
  ]
  return [pairs[i] for i in np.sort(np.concatenate(kept))]


def from_senses(
  contexts: Sequence[str],
  senses: Sequence[str],
  word: str,
  *,
  least: int = 50,
  seed: int = 0,
) -> list[Pair]:
  """Makes balanced pairs of contexts of one word whose senses are labelled.

  A context is in at most one pair of each label, so that pairs of a label are
  independent. Contexts of one sense are paired in random; for different senses
  the most frequent sense is cut to the number of all others, and each context is
  paired with one half of all contexts further in the order of senses.

  Args:
    contexts: the contexts.
    senses: sense of each.
    word: the word.
    least: senses with fewer contexts are dropped.
    seed: of the draw.

  Raises:
    InputError: numbers differ, or fewer than two senses are left.
  """
  if len(contexts) != len(senses):
    raise InputError(
      "senses",
      f"{len(senses)} senses",
      f"must be one for each of {len(contexts)} contexts",
      "label each context",
    )
  rng = np.random.default_rng(seed)
  names, own, count = np.unique(
    np.asarray(senses), return_inverse=True, return_counts=True
  )
  groups = [
    rng.permutation(np.flatnonzero(own == i))
    for i in np.flatnonzero(count >= max(least, 2))
  ]
  if len(groups) < 2:
    raise InputError(
      "senses",
      f"{dict(zip(names.tolist(), count.tolist(), strict=True))}",
      f"must have two senses with at least {max(least, 2)} contexts",
      "lower least, or give more contexts",
    )
  same = [pair for g in groups for pair in zip(g[::2], g[1::2], strict=False)]
  rest = sum(map(len, groups))
  most = max(range(len(groups)), key=lambda i: len(groups[i]))
  groups[most] = groups[most][: rest - len(groups[most])]
  line = np.concatenate(groups)
  half = len(line) // 2  # no sense has more contexts than this
  different = list(zip(line[:half], line[half : 2 * half], strict=True))
  return balanced(
    [
      Pair(contexts[i], contexts[j], word, label)
      for label, chosen in ((True, same), (False, different))
      for i, j in chosen
    ],
    seed=seed,
  )


# --- prompts -----------------------------------------------------------------


def single_token(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> list[Pair]:
  """Returns the pairs whose word is one token after a blank.

  Args:
    tokenizer: the tokenizer of the model.
    pairs: the pairs.
  """
  return [p for p in pairs if len(_word(tokenizer, p.word)) == 1]


def prompts(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> Prompts:
  """Writes the prompts of pairs, and finds the word in each.

  Args:
    tokenizer: the tokenizer of the model.
    pairs: the pairs.

  Raises:
    InputError: a word is not one token after a blank, or not where the prompt
      has it.
  """
  for number, pair in enumerate(pairs):
    own = _word(tokenizer, pair.word)
    if len(own) != 1:
      raise InputError(
        "pairs",
        pair.word,
        f"must be one token, and is {len(own)} in pair {number}",
        "leave such pairs out with sense_pairs.single_token",
      )
  asked = [(p.first, p.word) for p in pairs]
  asked += [(p.second, p.word) for p in pairs]
  ids, position = [], []
  prefix = np.asarray(tokenizer.prefix, np.int32)
  encoded = tokenizer.encode_batch([f"{c} The {w} means" for c, w in asked])
  for (_, word), found in zip(asked, encoded, strict=True):
    own = np.concatenate([prefix, found])
    (token,) = _word(tokenizer, word)
    at = [
      i
      for i in np.flatnonzero(own == token)
      if tokenizer.decode(own[i:]).strip() == f"{word} means"
    ]
    if not at:
      raise InputError(
        "pairs",
        word,
        "must be a token of its own before ' means' in the prompt",
        "leave the pair out",
      )
    ids.append(own)
    position.append(at[-1])
  return Prompts(tuple(ids), np.asarray(position))


def _word(tokenizer: Tokenizer, word: str) -> list[int]:
  """Tokens of a word after a blank, as in the prompt."""
  before = tokenizer.encode("The").tolist()
  whole = tokenizer.encode(f"The {word}").tolist()
  return whole[len(before) :] if whole[: len(before)] == before else whole


def check_labels(same: Bool[np.ndarray, "P"]) -> None:
  """Refuses pairs that all have one label.

  Args:
    same: whether a pair has one sense.

  Raises:
    InputError: they have.
  """
  if same.all() or not same.any():
    raise InputError(
      "same",
      f"{int(same.sum())} of {len(same)} pairs",
      "must be true of some pairs and false of others",
      "give pairs of both labels",
    )
