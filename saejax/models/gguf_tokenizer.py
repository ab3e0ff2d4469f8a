"""Tokenizers in GGUF files, in the form of a tokenizer.json.

Implemented are those of GPT-2's kind: texts are split by GPT-2's pattern into
bytes, which are shown as printable characters and merged by rank. `PRE` lists
which further split comes before. The settings of a tokenizer_config.json (roles
of special tokens, chat template) are in the metadata too.

References:
  ggml, docs/gguf.md (tokenizer.ggml.*); llama.cpp, src/llama-vocab.cpp (the
  patterns by name, and defaults).
"""

import collections
from typing import Any

from saejax.models import config_file, gguf

KIND = "tokenizer.ggml.model"
MERGES = "tokenizer.ggml.merges"
TOKEN_TYPES = "tokenizer.ggml.token_type"
CHAT_TEMPLATE = "tokenizer.chat_template"
_DIGITS = {"type": "Digits", "individual_digits": True}
# Name of the split before GPT-2's -> pre-tokenizers of the package tokenizers.
PRE = {"gpt-2": [], "smollm": [_DIGITS]}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
# Types of tokens: in texts only as a whole; the first kind is special.
_CONTROL, _USER_DEFINED = 3, 4
ROLES = {
  "bos_token": "tokenizer.ggml.bos_token_id",
  "eos_token": "tokenizer.ggml.eos_token_id",
  "unk_token": "tokenizer.ggml.unknown_token_id",
  "pad_token": "tokenizer.ggml.padding_token_id",
}


def tokenizer(file: gguf.File) -> dict[str, Any]:
  """Returns the contents of a tokenizer.json.

  Args:
    file: the file.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  of_file = config_file.ConfigFile(file.path, file.metadata, "metadata")
  of_file.choice(KIND, ("gpt2",), "")
  pre = of_file.choice("tokenizer.ggml.pre", PRE, "")
  if of_file.flag("tokenizer.ggml.add_space_prefix", False):
    rule = "must be false or absent; others are not implemented"
    raise of_file.refusal("tokenizer.ggml.add_space_prefix", rule)
  tokens = _tokens(of_file)
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": _added(of_file, tokens),
    "normalizer": None,
    "pre_tokenizer": {
      "type": "Sequence",
      "pretokenizers": [*PRE[pre], _BYTES | {"use_regex": True}],
    },
    "post_processor": _framing(of_file, tokens),
    "decoder": _BYTES | {"use_regex": True},
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": False,
      "byte_fallback": False,
      "ignore_merges": False,
      "vocab": {token: i for i, token in enumerate(tokens)},
      "merges": _merges(of_file, set(tokens)),
    },
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
    role: _token(of_file, tokens, key)
    for role, key in ROLES.items()
    if key in file.metadata
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


def _added(
  of_file: config_file.ConfigFile, tokens: list[str]
) -> list[dict[str, Any]]:
  """Returns the tokens that are found in texts as a whole."""
  types = of_file.values.get(TOKEN_TYPES)
  if not isinstance(types, list) or len(types) != len(tokens):
    rule = f"must be a list of {len(tokens)} numbers, one per token"
    raise of_file.refusal(TOKEN_TYPES, rule)
  flags = {"single_word": False, "lstrip": False, "rstrip": False}
  return [
    {"id": i, "content": token, "normalized": False, **flags}
    | {"special": kind == _CONTROL}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
    if kind in (_CONTROL, _USER_DEFINED)
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


def _framing(
  of_file: config_file.ConfigFile, tokens: list[str]
) -> dict[str, Any] | None:
  """Returns the post-processor, which adds tokens around a text, if any."""
  single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
  special = {}
  for role, place in (("bos", 0), ("eos", 2)):
    if not of_file.flag(f"tokenizer.ggml.add_{role}_token", False):
      continue
    key = ROLES[f"{role}_token"]
    token = _token(of_file, tokens, key)
    single.insert(place, {"SpecialToken": {"id": token, "type_id": 0}})
    ids = [of_file.values[key]]
    special[token] = {"id": token, "ids": ids, "tokens": [token]}
  if not special:
    return None
  return {
    "type": "TemplateProcessing",
    "single": single,
    "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": special,
  }


def _token(of_file: config_file.ConfigFile, tokens: list[str], key: str) -> str:
  i = of_file.values.get(key)
  if type(i) is not int or not 0 <= i < len(tokens):
    raise of_file.refusal(key, f"must be an id in [0, {len(tokens)})")
  return tokens[i]
