"""Tokenizers of subjects of the user's own: files as of a model, or functions."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from saejax.data.text import subject
from saejax.errors import InputError
from saejax.models import checkpoint, hub, tokenizer
from saejax.models import model as models

Encode = Callable[[str], Sequence[int] | np.ndarray]
# A tokenizer that is a function is known by what it makes of this.
_SAMPLE = "The quick brown fox, naïve; 12345 \n\t  日本 def f(x): return x**2"


@dataclasses.dataclass(frozen=True)
class Words:
  """A tokenizer as a subject has it.

  Attributes:
    fields: encode, prefix, suffix, special and files of `subject.Subject`.
    identity: digest, or None where there is none.
  """

  fields: Mapping[str, Any]
  identity: str | None

  @property
  def width(self) -> int:
    """Tokens of a window with one token of a document."""
    return 1 + len(self.fields["prefix"]) + len(self.fields["suffix"])


def load(
  words: str | Encode | None, special_tokens: str, name: str, vocabulary: int
) -> Words:
  """Loads a tokenizer.

  Args:
    words: folder, file or name as of a model, see `models.hub`; a function
      text -> ids, which adds no special tokens; or None, which refuses texts.
    special_tokens: tokens around windows, see `subject.at_site`.
    name: name of the model, for errors.
    vocabulary: number of ids of the model; 0 where that is unknown.

  Raises:
    InputError: there is no such tokenizer, it has no tokens to add, or some
      outside the vocabulary.
  """
  if not isinstance(words, str):
    encode, identity = _refuse_texts, None
    if words is not None:
      encode = _checked(words, vocabulary, name)
      sample = np.asarray(words(_SAMPLE), np.int64)
      identity = hashlib.sha256(sample.tobytes()).hexdigest()
    return Words(
      {"encode": encode, "prefix": (), "suffix": (), "special": frozenset()},
      identity,
    )
  files = checkpoint.at(hub.resolve(words))
  found = tokenizer.load(files.path)
  prefix, suffix = subject.frame(found, special_tokens, words)
  _check_ids(np.asarray(prefix + suffix, np.int64), vocabulary, name)
  roles = (i for i in (found.bos, found.cls, found.sep) if i is not None)
  return Words(
    {
      "encode": _checked(found.encode, vocabulary, name),
      "prefix": prefix,
      "suffix": suffix,
      "special": frozenset((*roles, *prefix, *suffix)),
      "files": subject.tokenizer_files(files),
    },
    files.tokenizer_hash(),
  )


def _checked(
  encode: Encode, vocabulary: int, name: str
) -> Callable[[str], np.ndarray]:
  def checked(text: str) -> np.ndarray:
    ids = np.asarray(encode(text), np.int64)
    _check_ids(ids, vocabulary, name)
    return ids.astype(np.int32)

  return checked


def _check_ids(ids: np.ndarray, vocabulary: int, name: str) -> None:
  models.check_ids(
    ids,
    vocabulary or 2**31,
    name,
    field="words",
    remedy="use the tokenizer of this model",
  )


def _refuse_texts(text: str) -> np.ndarray:
  raise InputError(
    "words",
    None,
    f"must be a tokenizer for the text {text[:20]!r}",
    "give one, or a corpus of token ids: ids:FILE",
  )
