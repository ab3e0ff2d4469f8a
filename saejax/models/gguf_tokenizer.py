"""Tokenizers in GGUF files, in the form of a tokenizer.json.

Two kinds are implemented. Those of GPT-2's kind (tokenizer.ggml.model "gpt2")
split texts by patterns (`gguf_splits`) into bytes, which are shown as printable
characters and merged by rank. Those of SentencePiece's kind ("llama") write a
blank as U+2581 and merge the adjacent pieces that make the piece with the highest
score; characters without a piece become bytes. The settings of a
tokenizer_config.json (roles of special tokens, chat template) are in the metadata
too.

References:
  ggml, docs/gguf.md (tokenizer.ggml.*); llama.cpp, src/llama-vocab.cpp (kinds and
  defaults).
"""

import collections
import math
from typing import Any

from saejax.errors import InputError
from saejax.models import config_file, gguf, gguf_splits, hub

KIND = "tokenizer.ggml.model"
GPT2, SENTENCEPIECE = "gpt2", "llama"
PRE = "tokenizer.ggml.pre"
MERGES = "tokenizer.ggml.merges"
SCORES = "tokenizer.ggml.scores"
SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
TOKEN_TYPES = "tokenizer.ggml.token_type"
CHAT_TEMPLATE = "tokenizer.chat_template"
# Types of tokens. Those but the first are in texts only as a whole.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
ROLES = {
  "bos_token": "tokenizer.ggml.bos_token_id",
  "eos_token": "tokenizer.ggml.eos_token_id",
  "unk_token": "tokenizer.ggml.unknown_token_id",
  "pad_token": "tokenizer.ggml.padding_token_id",
}
# Ids of roles that a file of SentencePiece's kind leaves out.
_DEFAULTS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}
_BLANK = "\u2581"


def tokenizer(file: gguf.File) -> dict[str, Any]:
  """Returns the contents of a tokenizer.json.

  Args:
    file: the file.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  of_file = config_file.ConfigFile(file.path, file.metadata, "metadata")
  kind = _choice(of_file, KIND, (GPT2, SENTENCEPIECE))
  tokens = _tokens(of_file)
  types = _types(of_file, len(tokens))
  parts = _bytes if kind == GPT2 else _pieces
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": _added(tokens, types),
    "post_processor": _framing(of_file, tokens),
    **parts(of_file, tokens, types),
  }


def _bytes(
  of_file: config_file.ConfigFile, tokens: list[str], types: list[int]
) -> dict[str, Any]:
  """Returns the parts of a tokenizer of GPT-2's kind."""
  del types
  pre = _choice(of_file, PRE, gguf_splits.NAMES)
  if of_file.flag(SPACE_PREFIX, False):
    rule = "must be false or absent; others are not implemented"
    raise of_file.refusal(SPACE_PREFIX, rule)
  whole_words = pre in gguf_splits.WHOLE_WORDS
  return {
    "normalizer": None,
    "pre_tokenizer": gguf_splits.pre_tokenizer(pre),
    "decoder": gguf_splits.BYTES | {"use_regex": True},
    "model": _bpe(tokens, _merges(of_file, set(tokens)))
    | {"ignore_merges": whole_words},
  }


def _pieces(
  of_file: config_file.ConfigFile, tokens: list[str], types: list[int]
) -> dict[str, Any]:
  """Returns the parts of a tokenizer of SentencePiece's kind."""
  prefix = of_file.flag(SPACE_PREFIX, True)
  blanks = {
    "type": "Replace",
    "pattern": {"String": " "},
    "content": _BLANK,
  }
  before = [{"type": "Prepend", "prepend": _BLANK}] * prefix
  after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix
  unknown = _token(of_file, tokens, "unk_token")
  return {
    "normalizer": {"type": "Sequence", "normalizers": [*before, blanks]},
    "pre_tokenizer": None,
    "decoder": {
      "type": "Sequence",
      "decoders": [
        {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *after,
      ],
    },
    "model": _bpe(tokens, _by_score(of_file, tokens, types))
    | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
  }


def _bpe(tokens: list[str], merges: list[tuple[str, str]]) -> dict[str, Any]:
  return {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
    "vocab": {token: i for i, token in enumerate(tokens)},
    "merges": merges,
  }


def settings(file: gguf.File) -> dict[str, Any]:
  """Returns the contents of a tokenizer_config.json.

  Args:
    file: the file.

  Raises:
    InputError: a setting is missing or invalid.
  """
  of_file = config_file.ConfigFile(file.path, file.metadata, "metadata")
  tokens = _tokens(of_file)
  found: dict[str, Any] = {
    role: _token(of_file, tokens, role)
    for role in ROLES
    if _has_role(of_file, role)
  }
  template = file.metadata.get(CHAT_TEMPLATE)
  if template is not None:
    if not isinstance(template, str):
      raise of_file.refusal(CHAT_TEMPLATE, "must be text")
    found["chat_template"] = template
  # What transformers would guess otherwise.
  return found | {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
  }


def _tokens(of_file: config_file.ConfigFile) -> list[str]:
  tokens = _strings(of_file, gguf.TOKENS)
  (token, count), *_ = collections.Counter(tokens).most_common(1) or [("", 0)]
  if count != 1:
    rule = f"must have each token once ({token!r} occurs {count} times)"
    raise of_file.refusal(gguf.TOKENS, rule)
  return tokens


def _strings(of_file: config_file.ConfigFile, key: str) -> list[str]:
  found = of_file.values.get(key)
  if found is None:
    raise of_file.refusal(key, "is required")
  if not isinstance(found, list) or not all(isinstance(s, str) for s in found):
    raise of_file.refusal(key, "must be a list of texts")
  return found


def _types(of_file: config_file.ConfigFile, count: int) -> list[int]:
  types = of_file.values.get(TOKEN_TYPES)
  if not isinstance(types, list) or len(types) != count:
    rule = f"must be a list of {count} numbers, one per token"
    raise of_file.refusal(TOKEN_TYPES, rule)
  return types


def _added(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
  """Returns the tokens that are found in texts as a whole."""
  flags = {"single_word": False, "lstrip": False, "rstrip": False}
  return [
    {"id": i, "content": token, "normalized": False, **flags}
    | {"special": kind != _USER_DEFINED}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
    if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
  ]


def _merges(
  of_file: config_file.ConfigFile, tokens: set[str]
) -> list[tuple[str, str]]:
  merges = []
  for rank, line in enumerate(_strings(of_file, MERGES)):
    first, _, second = line.partition(" ")
    if not {first, second, first + second} <= tokens:
      rule = f"must be pairs of tokens that make a token (not {line!r}, {rank})"
      raise of_file.refusal(MERGES, rule)
    merges.append((first, second))
  return merges


def _by_score(
  of_file: config_file.ConfigFile, tokens: list[str], types: list[int]
) -> list[tuple[str, str]]:
  """Returns all merges of two pieces into a third, those of high scores first."""
  scores = of_file.values.get(SCORES)
  if (
    not isinstance(scores, list)
    or len(scores) != len(tokens)
    or not all(type(s) in (int, float) and math.isfinite(s) for s in scores)
  ):
    rule = f"must be a list of {len(tokens)} finite numbers, one per token"
    raise of_file.refusal(SCORES, rule)
  found = zip(tokens, types, scores, strict=True)
  normal = {token: -score for token, kind, score in found if kind == _NORMAL}
  ranked = [
    (rank, i, token[:cut], token[cut:])
    for i, (token, rank) in enumerate(normal.items())
    for cut in range(1, len(token))
    if token[:cut] in normal and token[cut:] in normal
  ]
  return [(left, right) for _, _, left, right in sorted(ranked)]


def _framing(
  of_file: config_file.ConfigFile, tokens: list[str]
) -> dict[str, Any] | None:
  """Returns the post-processor, which adds tokens around a text, if any."""
  single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
  special = {}
  for role, place in (("bos", 0), ("eos", 2)):
    by_default = role == "bos" and _starts_with_bos(of_file)
    if not of_file.flag(f"tokenizer.ggml.add_{role}_token", by_default):
      continue
    token = _token(of_file, tokens, f"{role}_token")
    single.insert(place, {"SpecialToken": {"id": token, "type_id": 0}})
    ids = [tokens.index(token)]
    special[token] = {"id": token, "ids": ids, "tokens": [token]}
  if not special:
    return None
  return {
    "type": "TemplateProcessing",
    "single": single,
    "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": special,
  }


def _starts_with_bos(of_file: config_file.ConfigFile) -> bool:
  """Whether BOS comes before a text where the file does not say."""
  if of_file.values.get(KIND) == SENTENCEPIECE:
    return True
  whole_words = of_file.values.get(PRE) in gguf_splits.WHOLE_WORDS
  return whole_words and _has_role(of_file, "bos_token")


def _has_role(of_file: config_file.ConfigFile, role: str) -> bool:
  default = role in _DEFAULTS and of_file.values.get(KIND) == SENTENCEPIECE
  return ROLES[role] in of_file.values or default


def _token(
  of_file: config_file.ConfigFile, tokens: list[str], role: str
) -> str:
  """Returns the token of a role."""
  i = of_file.values.get(ROLES[role])
  if i is None and _has_role(of_file, role):
    i = _DEFAULTS[role]
  if type(i) is not int or not 0 <= i < len(tokens):
    raise of_file.refusal(ROLES[role], f"must be an id in [0, {len(tokens)})")
  return tokens[i]


def _choice(of_file: config_file.ConfigFile, key: str, known) -> str:
  """Returns one of the known values; others need a tokenizer.json."""
  try:
    return of_file.choice(key, known, "")
  except InputError as error:
    raise InputError(
      error.field,
      error.value,
      error.rule,
      f"put the model's {hub.TOKENIZER_FILES[0]} beside the file",
    ) from None
