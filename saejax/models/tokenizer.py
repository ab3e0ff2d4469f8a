"""Token ids of texts, by the model's own tokenizer.json.

Files on the hub may switch truncation and padding on (MiniLM's cuts at 128
tokens): both are switched off, and no special tokens are added.
"""

import collections.abc
import dataclasses
import json
import pathlib

import numpy as np
import tokenizers
from jaxtyping import Int

from saejax import errors
from saejax.models import hub

ROLES = ("bos", "eos", "cls", "sep", "pad")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Texts to ids and back.

  Attributes:
    bos, eos, cls, sep, pad: ids of special tokens, None where the model has
      none. Padding may share the id of another token: mask by position.
    special_ids: all special tokens, with or without one of these roles.
    prefix, suffix: ids the tokenizer itself would put round one text.
    vocabulary: number of ids.
  """

  backend: tokenizers.Tokenizer = dataclasses.field(repr=False)
  bos: int | None
  eos: int | None
  cls: int | None
  sep: int | None
  pad: int | None
  special_ids: frozenset[int]
  prefix: tuple[int, ...]
  suffix: tuple[int, ...]
  vocabulary: int

  def encode(self, text: str) -> Int[np.ndarray, "T"]:
    """All ids of a text, int32, without special tokens round it.

    A special token spelled out in the text becomes that token, as in
    transformers.
    """
    return self.encode_batch([text])[0]

  def encode_batch(
    self, texts: collections.abc.Sequence[str]
  ) -> list[Int[np.ndarray, "T"]]:
    """As `encode` for each text, on all cores."""
    encodings = self.backend.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [np.array(e.ids, dtype=np.int32) for e in encodings]

  def decode(self, ids: collections.abc.Iterable[int]) -> str:
    """The text of ids, special tokens spelled out."""
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def load(path: str | pathlib.Path) -> Tokenizer:
  """The tokenizer of a model folder.

  Roles come from tokenizer_config.json, else special_tokens_map.json, else
  the ids in config.json; a role that the first of them sets to null is absent.

  Raises:
    InputError: no tokenizer.json, or an unreadable one.
  """
  folder = pathlib.Path(path)
  file = folder / "tokenizer.json"
  if not file.exists():
    raise errors.InputError(
      hub.FIELD,
      folder,
      "must hold tokenizer.json",
      "save a fast tokenizer into it (transformers' save_pretrained does)",
    )
  try:
    backend = tokenizers.Tokenizer.from_file(str(file))
  except Exception as error:  # the library raises Exception itself
    raise hub.unreadable(file, error) from error
  backend.no_truncation()
  backend.no_padding()
  roles = {role: _ids(folder, backend, role) for role in ROLES}
  added = backend.get_added_tokens_decoder()
  special = {i for i, token in added.items() if token.special}
  special.update(i for ids in roles.values() for i in ids)
  prefix, suffix = _template(backend)
  return Tokenizer(
    backend=backend,
    **{role: (ids[0] if ids else None) for role, ids in roles.items()},
    special_ids=frozenset(special),
    prefix=prefix,
    suffix=suffix,
    vocabulary=backend.get_vocab_size(),
  )


def _ids(
  folder: pathlib.Path, backend: tokenizers.Tokenizer, role: str
) -> list[int]:
  """Ids of a role, several where a model has several ends."""
  for name in ("tokenizer_config.json", "special_tokens_map.json"):
    values = _read(folder / name)
    if f"{role}_token" in values:
      token = values[f"{role}_token"]
      token = token["content"] if isinstance(token, dict) else token
      found = None if token is None else backend.token_to_id(token)
      return [] if found is None else [found]
  found = _read(folder / "config.json").get(f"{role}_token_id")
  return found if isinstance(found, list) else [] if found is None else [found]


def _read(file: pathlib.Path) -> dict:
  if not file.exists():
    return {}
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise hub.unreadable(file, error) from error


def _template(
  backend: tokenizers.Tokenizer,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  bare = backend.encode("a", add_special_tokens=False).ids
  whole = backend.encode("a").ids
  for start in range(len(whole) - len(bare) + 1):
    if whole[start : start + len(bare)] == bare:
      return tuple(whole[:start]), tuple(whole[start + len(bare) :])
  return (), ()
