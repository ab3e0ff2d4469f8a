"""The first ids of a long text, without encoding all of it.

The text is cut between a letter and a blank that a letter follows. Where no token
of the vocabulary reaches across such a place, and normaliser and pre-tokeniser are
of kinds that look no further than a few characters, the ids before the cut are
those of the whole text. Other tokenizers encode it whole. The last `MARGIN` ids
before a cut are not used, in case an added token or a pattern does reach across.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int

MARGIN = 32  # ids before a cut that are not used
CHARACTERS = 5  # of the first cut, per id
_WITHIN = (
  4096  # characters before the wanted length that a cut is looked for in
)
_CUT = re.compile("[A-Za-z](?= [A-Za-z])")
_ACROSS = re.compile(
  "[A-Za-z][ \u2581\u0120]"
)  # blanks as vocabularies write them

_NORMALIZERS = {
  "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled",
  "Prepend", "Replace", "Strip", "StripAccents",
}  # fmt: skip
_AT_BLANKS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_PRE_TOKENIZERS = _AT_BLANKS | {
  "ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"
}  # fmt: skip
# Groups of patterns that look at blanks or digits only: they end before a letter.
_LOCAL = (r"(?!\S)", r"(?=(\d{3})+(?!\d))", "(?i:", "(?:")


def are_local(backend: tokenizers.Tokenizer) -> bool:
  """Returns whether the ids before a cut are those of the whole text.

  Args:
    backend: the tokenizer.
  """
  parts = json.loads(backend.to_str())
  normalizers = list(_flat(parts["normalizer"], "normalizers"))
  splits = list(_flat(parts["pre_tokenizer"], "pretokenizers"))
  if not {part["type"] for part in normalizers} <= _NORMALIZERS:
    return False
  if not {part["type"] for part in splits} <= _PRE_TOKENIZERS:
    return False
  if not all(map(_is_local, normalizers + splits)):
    return False
  if parts["model"]["type"] in ("WordLevel", "WordPiece"):
    return any(
      part["type"] in _AT_BLANKS or _pattern(part) == "." for part in splits
    )
  if parts["model"]["type"] not in ("BPE", "Unigram"):
    return False
  if parts["model"].get("dropout"):
    return False
  return not any(map(_ACROSS.search, backend.get_vocab()))


def _flat(part: dict[str, Any] | None, inner: str) -> Iterator[dict[str, Any]]:
  """The parts of a sequence, in order."""
  if part is None:
    return
  if part["type"] != "Sequence":
    yield part
    return
  for one in part[inner]:
    yield from _flat(one, inner)


def _pattern(part: dict[str, Any]) -> str:
  """The regular expression of a part, "" if it has none."""
  pattern = part.get("pattern")
  return pattern.get("Regex", "") if isinstance(pattern, dict) else ""


def _is_local(part: dict[str, Any]) -> bool:
  """Whether a pattern looks at nothing beyond what it matches."""
  pattern = _pattern(part)
  for group in _LOCAL:
    pattern = pattern.replace(group, "(")
  return not re.search(r"\(\?|\$|\\[bBzZAG]", pattern)


def encode(
  encode: Callable[[str], Int[np.ndarray, "T"]], text: str, count: int
) -> Int[np.ndarray, "T"]:
  """Returns the first ids of a text, or all if there are fewer.

  Args:
    encode: encodes a text, with a tokenizer that `are_local`.
    text: the text.
    count: number of ids.
  """
  characters = CHARACTERS * (count + MARGIN)
  while characters < len(text):
    cut = 0
    for found in _CUT.finditer(text, max(characters - _WITHIN, 0), characters):
      cut = found.end()
    ids = encode(text[:cut])
    if len(ids) >= count + MARGIN:
      return ids[:count]
    characters *= 2
  return encode(text)[:count]
