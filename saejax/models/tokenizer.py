"""Encodes and decodes texts with a model's tokenizer.json, or GGUF metadata.

Some files on the hub enable truncation and padding (MiniLM's truncates at 128
tokens). Both are disabled here, and no special tokens are added.
"""

import collections.abc
import contextlib
import dataclasses
import functools
import pathlib
import re

import numpy as np
import tokenizers
from jaxtyping import Int

from saejax import errors
from saejax.models import checkpoint, first_ids, hub

FILE = "tokenizer.json"
ROLES = ("bos", "eos", "cls", "sep", "pad")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """The tokenizer of a model, built by `load`.

  Attributes:
    backend: the tokenizer of the package tokenizers.
    bos, eos, cls, sep, pad: ids of special tokens, or None. Padding may share
      its id with another token, so mask it by position.
    special_ids: ids of all special tokens, with or without one of these roles.
    prefix, suffix: ids that the tokenizer by default adds around a text.
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
    """Encodes a text, without special tokens around it.

    As in transformers, a special token spelled out in the text becomes that
    token.

    Args:
      text: the text.

    Returns:
      Ids [T] int32.

    Raises:
      InputError: the text has unknown words, and the tokenizer has no token for
        them.
    """
    return self.encode_batch([text])[0]

  def encode_first(self, text: str, count: int) -> Int[np.ndarray, "T"]:
    """Encodes the beginning of a text.

    The rest is not encoded where the tokenizer allows it, see `first_ids`.

    Args:
      text: the text.
      count: maximum number of ids.

    Returns:
      The first `count` ids of those that `encode` returns.

    Raises:
      InputError: as `encode`, where what is encoded has unknown words.
    """
    if self._is_local:
      return first_ids.encode(self.encode, text, count)
    return self.encode(text)[:count]

  @functools.cached_property
  def _is_local(self) -> bool:
    return first_ids.are_local(self.backend)

  def encode_batch(
    self, texts: collections.abc.Sequence[str]
  ) -> list[Int[np.ndarray, "T"]]:
    """Encodes texts as `encode` does, on all cores.

    Args:
      texts: the texts.

    Raises:
      InputError: a text has unknown words, and the tokenizer has no token for
        them.
    """
    try:
      encodings = self.backend.encode_batch_fast(
        [well_formed(text) for text in texts], add_special_tokens=False
      )
    except Exception as error:  # the library raises Exception itself
      shown = texts[0] if len(texts) == 1 else f"{len(texts)} texts"
      raise errors.InputError(
        "text",
        shown,
        f"must be text that the tokenizer can encode ({error})",
        "use a tokenizer with a token for unknown text",
      ) from error
    return [np.array(e.ids, dtype=np.int32) for e in encodings]

  def decode(self, ids: collections.abc.Iterable[int]) -> str:
    """Returns the text of ids, with special tokens spelled out.

    Args:
      ids: token ids.
    """
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def well_formed(text: str) -> str:
  """Replaces lone surrogates in a text by U+FFFD.

  JSON can contain them, but UTF-8 cannot encode them and tokenizers refuse
  them.

  Args:
    text: the text.
  """
  return _SURROGATE.sub("\ufffd", text)


_SURROGATE = re.compile("[\ud800-\udfff]")


def load(path: str | pathlib.Path) -> Tokenizer:
  """Loads the tokenizer of a checkpoint.

  Roles are read from tokenizer_config.json, otherwise special_tokens_map.json,
  otherwise the ids in config.json; the first file that has a role decides. A
  role is None if its value is null, its token is not in the vocabulary, or its
  id in config.json is not a special token: configs are saved with the defaults
  of their class, such as 50256 for GPT-2, regardless of the vocabulary.

  Args:
    path: folder or GGUF file of the model.

  Raises:
    InputError: there is no tokenizer.json, or one of these files is damaged.
  """
  files = checkpoint.at(path)
  if not files.has(FILE):
    raise errors.InputError(
      hub.FIELD,
      files.path,
      "must have tokenizer.json",
      "save a fast tokenizer into it with transformers' save_pretrained",
    )
  content = files.read_bytes(FILE)
  with _refused(files.where(FILE)):
    backend = tokenizers.Tokenizer.from_buffer(content)
    backend.no_truncation()
    backend.no_padding()
    added = backend.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    prefix, suffix = _template(backend)
  roles = {role: _ids(files, backend, role, special) for role in ROLES}
  special.update(i for ids in roles.values() for i in ids)
  return Tokenizer(
    backend=backend,
    **{role: (ids[0] if ids else None) for role, ids in roles.items()},
    special_ids=frozenset(special),
    prefix=prefix,
    suffix=suffix,
    vocabulary=backend.get_vocab_size(),
  )


@contextlib.contextmanager
def _refused(file: pathlib.Path) -> collections.abc.Iterator[None]:
  """Converts the library's errors about a damaged file to InputError."""
  try:
    yield
  except (errors.InputError, KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # Exception itself, or a panic of Rust
    raise hub.unreadable(file, ValueError(str(error))) from error


def _ids(
  files: checkpoint.Checkpoint,
  backend: tokenizers.Tokenizer,
  role: str,
  special: collections.abc.Collection[int],
) -> list[int]:
  """Returns the ids of a role; a model may have several end tokens."""
  key = f"{role}_token"
  for name in ("tokenizer_config.json", "special_tokens_map.json"):
    values = _read(files, name)
    if key in values:
      token = values[key]
      token = token.get("content") if isinstance(token, dict) else token
      if not isinstance(token, str | None):
        raise _wrong(files.where(name), key, "a token's text or null")
      token_id = None if token is None else backend.token_to_id(token)
      return [] if token_id is None else [token_id]
  ids = _read(files, checkpoint.CONFIG).get(f"{key}_id")
  ids = ids if isinstance(ids, list) else [ids]
  if not all(i is None or type(i) is int for i in ids):
    file = files.where(checkpoint.CONFIG)
    raise _wrong(file, f"{key}_id", "an id, a list of ids or null")
  return [i for i in ids if i is not None and i in special]


def _wrong(file: pathlib.Path, key: str, rule: str) -> errors.InputError:
  return errors.InputError(
    hub.FIELD, file, f"{key} must be {rule}", "download the file again"
  )


def _read(files: checkpoint.Checkpoint, name: str) -> dict:
  return files.read_json(name) if files.has(name) else {}


def _template(
  backend: tokenizers.Tokenizer,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the ids that the post-processor adds before and after a text.

  They are recognised by belonging to no sequence, since a text may also contain
  special tokens itself.
  """
  # No word is certain to be in the vocabulary, but added tokens are.
  added = backend.get_added_tokens_decoder().values()
  texts = [token.content for token in added]
  if not texts and not backend.num_special_tokens_to_add(False):
    return (), ()
  for text in (*texts, "a"):
    encoding = backend.encode(text)
    own = [i for i, part in enumerate(encoding.sequence_ids) if part == 0]
    if own:
      ids = encoding.ids
      return tuple(ids[: own[0]]), tuple(ids[own[-1] + 1 :])
  raise ValueError("the template is unknown: texts are encoded to no tokens")
