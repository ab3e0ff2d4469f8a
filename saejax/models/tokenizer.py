"""Token ids of texts, by the model's own tokenizer.json.

Files on the hub may switch truncation and padding on (MiniLM's cuts at 128
tokens): both are switched off, and no special tokens are added.
"""

import collections.abc
import contextlib
import dataclasses
import pathlib
import re

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
    prefix, suffix: ids that the tokenizer itself puts round one text.
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
    """As `encode` for each text, on all cores.

    Raises:
      InputError: the tokenizer knows neither a token of a text nor a token for
        what it does not know.
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
    """The text of ids, special tokens spelled out."""
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def well_formed(text: str) -> str:
  """The text with U+FFFD for each lone surrogate.

  JSON can spell them out; they have no UTF-8 form, and tokenizers refuse them.
  """
  return _SURROGATE.sub("\ufffd", text)


_SURROGATE = re.compile("[\ud800-\udfff]")


def load(path: str | pathlib.Path) -> Tokenizer:
  """The tokenizer of a model folder.

  Roles come from tokenizer_config.json, else special_tokens_map.json, else
  the ids in config.json; a role that the first of them sets to null is absent,
  and so is one whose name the tokenizer lacks, or whose id is not special to
  it: configs are saved with the defaults of their class, such as GPT-2's 50256
  whatever the vocabulary.

  Raises:
    InputError: no tokenizer.json, or one of these files is damaged.
  """
  folder = pathlib.Path(path)
  file = folder / "tokenizer.json"
  if not hub.is_there(file):
    raise errors.InputError(
      hub.FIELD,
      folder,
      "must hold tokenizer.json",
      "save a fast tokenizer into it (transformers' save_pretrained does)",
    )
  with _refused(file):
    backend = tokenizers.Tokenizer.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    added = backend.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    prefix, suffix = _template(backend)
  roles = {role: _ids(folder, backend, role, special) for role in ROLES}
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
  """Turns what the library raises on a damaged file into one line."""
  try:
    yield
  except (errors.InputError, KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # Exception itself, or a panic of Rust
    raise hub.unreadable(file, ValueError(str(error))) from error


def _ids(
  folder: pathlib.Path,
  backend: tokenizers.Tokenizer,
  role: str,
  special: collections.abc.Collection[int],
) -> list[int]:
  """Ids of a role, several where a model has several ends."""
  key = f"{role}_token"
  for name in ("tokenizer_config.json", "special_tokens_map.json"):
    values = _read(folder / name)
    if key in values:
      token = values[key]
      token = token.get("content") if isinstance(token, dict) else token
      if not isinstance(token, str | None):
        raise _wrong(folder / name, key, "a token's text or null")
      found = None if token is None else backend.token_to_id(token)
      return [] if found is None else [found]
  file = folder / "config.json"
  found = _read(file).get(f"{key}_id")
  found = found if isinstance(found, list) else [found]
  if not all(i is None or type(i) is int for i in found):
    raise _wrong(file, f"{key}_id", "an id, a list of ids or null")
  return [i for i in found if i is not None and i in special]


def _wrong(file: pathlib.Path, key: str, rule: str) -> errors.InputError:
  return errors.InputError(
    hub.FIELD, file, f"{key} must be {rule}", "fetch the file again"
  )


def _read(file: pathlib.Path) -> dict:
  return hub.read_json(file) if hub.is_there(file) else {}


def _template(
  backend: tokenizers.Tokenizer,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """What the post-processor puts before and after one text.

  Told by the tokens that belong to no text: a special token may also be the
  text's own, or the text's only one.
  """
  # A tokenizer may know no word of a text, but it knows its added tokens.
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
  raise ValueError("its template cannot be told: it gives no token for a text")
