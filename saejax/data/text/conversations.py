"""Conversations: templates, deduplication, packing and a mixing buffer.

FAST gives the model one templated conversation per row, which is packing
"per_sample" here. "segmented" packs several conversations into a row; they do
not attend to each other and positions restart, so activations are equal and
less padding is needed. "block" cuts the concatenated conversations into blocks
regardless of their ends; it is the baseline that FAST improves on.

Special tokens are kept, since FAST's metric is measured on them. To harvest
conversations, write their ids with `corpus.write_ids` and use `as_conversations`;
for the rows of some roles only, such as the assistant's, see `turns`.

References:
  Li et al., Training Superior Sparse Autoencoders for Instruct Models, 2025,
  arXiv:2506.07691.
"""

import bisect
import dataclasses
import hashlib
import importlib
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Int

from saejax.data import shuffle
from saejax.data.text import subject
from saejax.errors import InputError
from saejax.models import checkpoint, taps
from saejax.models import model as models

Turn = Mapping[str, str]  # {"role": ..., "content": ...}
PACKINGS = ("per_sample", "segmented", "block")
EXTRA = "transformers"  # of saejax[models]


# --- templates ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Template:
  """Joins the turns of a conversation into one text.

  Attributes:
    turn: format of a turn, with {role} and {content}.
    begin: text before the first turn.

  >>> TEMPLATES["plain"]([{"role": "user", "content": "Hello"}])
  'user: Hello\\n'
  """

  turn: str
  begin: str = ""

  def __call__(self, turns: Sequence[Turn]) -> str:
    """Returns the text of a conversation.

    Args:
      turns: the turns, each with "role" and "content".
    """
    parts = [self.turn.format(**turn) for turn in turns]
    return self.begin + "".join(parts)


TEMPLATES = {
  "plain": Template("{role}: {content}\n"),
  "chatml": Template("<|im_start|>{role}\n{content}<|im_end|>\n"),
  "llama3": Template(
    "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
    begin="<|begin_of_text|>",
  ),
}


def render(
  path: str | pathlib.Path, turns: Sequence[Turn], *, reply: bool = False
) -> str:
  """Applies the chat template of a model to a conversation.

  Args:
    path: folder or GGUF file of the model, with its tokenizer.
    turns: the turns, each with "role" and "content".
    reply: whether the text ends where the model's next turn begins.

  Raises:
    InputError: transformers is not installed, or the tokenizer has no chat
      template.
  """
  return render_all(path, [turns], reply=reply)[0]


def render_all(
  path: str | pathlib.Path,
  conversations: Iterable[Sequence[Turn]],
  *,
  reply: bool = False,
) -> list[str]:
  """Applies the chat template of a model to conversations, see `render`.

  Args:
    path: folder or GGUF file of the model, with its tokenizer.
    conversations: the conversations, each a sequence of turns.
    reply: whether the texts end where the model's next turn begins.

  Raises:
    InputError: as `render`.
  """
  try:
    tokenizers = importlib.import_module(EXTRA)
  except ImportError as error:
    raise InputError(
      "chat_template",
      path,
      f"needs the package {EXTRA}, which is not installed",
      "run: pip install 'saejax[models]', or use one of TEMPLATES",
    ) from error
  with checkpoint.at(path).saved() as folder:
    words = tokenizers.AutoTokenizer.from_pretrained(folder)
  if not words.chat_template:
    raise InputError(
      "chat_template",
      path,
      "the tokenizer must have a chat template",
      f"use one of TEMPLATES ({', '.join(TEMPLATES)})",
    )
  template = partial(
    words.apply_chat_template, tokenize=False, add_generation_prompt=reply
  )
  return [template(list(turns)) for turns in conversations]


def deduplicate(
  conversations: Iterable[Sequence[Turn]], *, words: int = 20
) -> list[int]:
  """Returns the numbers of conversations to keep, in order.

  A conversation is dropped if a sequence of `words` words within one of its
  turns occurs in an earlier conversation that is kept. Turns with fewer words
  are not compared. Memory is 8 bytes per sequence.

  Args:
    conversations: the conversations, as sequences of turns.
    words: length of the compared sequences.
  """
  seen: set[bytes] = set()
  numbers = []
  for number, turns in enumerate(conversations):
    own = {h for turn in turns for h in _runs(turn["content"], words)}
    if seen.isdisjoint(own):
      numbers.append(number)
      seen |= own
  return numbers


def _runs(text: str, words: int) -> Iterator[bytes]:
  parts = text.split()
  for i in range(len(parts) - words + 1):
    run = " ".join(parts[i : i + words]).encode("utf-8", "surrogatepass")
    yield hashlib.blake2b(run, digest_size=8).digest()


# --- packing -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
  """Rows for the model; all arrays [R, T].

  Attributes:
    ids: int32 tokens, 0 at padding.
    mask: whether a place has a token.
    doc: int64, document of each token.
    pos: int32, position of each token in its document.
    segmented: whether documents in a row must not attend to each other.
  """

  ids: Int[np.ndarray, "R T"]
  mask: Bool[np.ndarray, "R T"]
  doc: Int[np.ndarray, "R T"]
  pos: Int[np.ndarray, "R T"]
  segmented: bool


def pack(
  documents: Sequence[Int[np.ndarray, "t"]],
  *,
  packing: str = "per_sample",
  max_tokens: int,
) -> Packed:
  """Packs documents into rows of at most `max_tokens` tokens.

  Args:
    documents: ids of each document, special tokens included, truncated at
      max_tokens except for "block".
    packing: "per_sample" for one row per document; "segmented" for several
      documents per row, longest first, each in the fullest row that has room
      (best fit); "block" for the concatenated documents cut into rows.
    max_tokens: maximum number of tokens per row.

  Raises:
    InputError: the packing is unknown, or there are no tokens.

  >>> pack([np.array([1, 2]), np.array([3])], max_tokens=4).ids.tolist()
  [[1, 2], [3, 0]]
  """
  if packing not in PACKINGS:
    raise InputError(
      "packing", packing, f"must be one of {', '.join(PACKINGS)}", "choose one"
    )
  if max_tokens < 1 or not any(map(len, documents)):
    raise InputError(
      "max_tokens",
      max_tokens,
      "must be at least 1, and documents must have tokens",
      "raise it, or pass documents with tokens",
    )
  lengths = [min(len(ids), max_tokens) for ids in documents]
  if packing == "block":
    pieces = _blocks([len(ids) for ids in documents], max_tokens)
  elif packing == "per_sample":
    pieces = [[(i, 0, n)] for i, n in enumerate(lengths) if n]
  else:
    pieces = _fitted(lengths, max_tokens)
  width = max(sum(n for _, _, n in row) for row in pieces)
  shape = (len(pieces), width)
  ids, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
  doc, pos = np.full(shape, -1, np.int64), np.zeros(shape, np.int32)
  for r, row in enumerate(pieces):
    at = 0
    for number, start, n in row:
      where = slice(at, at + n)
      ids[r, where] = documents[number][start : start + n]
      doc[r, where], pos[r, where] = number, np.arange(start, start + n)
      at += n
    mask[r, :at] = True
  return Packed(ids, mask, doc, pos, packing == "segmented")


Pieces = list[list[tuple[int, int, int]]]  # (document, start, n), per row


def _blocks(lengths: Sequence[int], width: int) -> Pieces:
  rows: Pieces = [[]]
  room = width
  for number, length in enumerate(lengths):
    start = 0
    while start < length:
      if not room:
        rows.append([])
        room = width
      n = min(room, length - start)
      rows[-1].append((number, start, n))
      start, room = start + n, room - n
  return rows


def _fitted(lengths: Sequence[int], width: int) -> Pieces:
  rows: Pieces = []
  free: list[tuple[int, int]] = []  # (room, row), ascending
  for number in np.argsort(-np.asarray(lengths), kind="stable").tolist():
    n = lengths[number]
    if not n:
      continue
    i = bisect.bisect_left(free, (n, 0))
    if i == len(free):
      room, row = width, len(rows)
      rows.append([])
    else:
      room, row = free.pop(i)
    rows[row].append((number, 0, n))
    bisect.insort(free, (room - n, row))
  return rows


def activations(
  model: models.Model, packed: Packed, site: str, *, batch_rows: int = 16
) -> dict[str, np.ndarray]:
  """Computes the activations of all tokens, in order of document and position.

  Args:
    model: a causal model.
    packed: the result of `pack`.
    site: name of a site, see `models.taps`.
    batch_rows: rows per forward pass; the last batch is padded.

  Returns:
    Columns x [rows, d], doc, pos and tok [rows], as `write_store` takes them.
  """
  columns: dict[str, list[np.ndarray]] = {"x": []}
  for start in range(0, len(packed.ids), batch_rows):
    part = slice(start, start + batch_rows)
    real = packed.mask[part]
    ids, mask = _filled(packed.ids[part], batch_rows), _filled(real, batch_rows)
    mask[len(real) :, 0] = True  # padding rows attend to one token
    segment = None
    if packed.segmented:
      segment = _filled(packed.doc[part].astype(np.int32), batch_rows)
    x = taps.read(model, ids, mask, [site], segment=segment)[site]
    columns["x"].append(np.asarray(x)[: len(real)][real])
  doc, pos = packed.doc[packed.mask], packed.pos[packed.mask]
  order = np.lexsort([pos, doc])
  table = {
    "x": np.concatenate(columns["x"]),
    "doc": doc,
    "pos": pos,
    "tok": packed.ids[packed.mask],
  }
  return {name: column[order] for name, column in table.items()}


def _filled(a: np.ndarray, rows: int) -> np.ndarray:
  return np.pad(a, ((0, rows - len(a)), (0, 0)))


def as_conversations(source: subject.Subject) -> subject.Subject:
  """Returns a subject that adds no special tokens and keeps those of documents.

  The first positions of a window that a model needs dropped stay dropped.

  For a harvest of an "ids:" corpus, set harvest.context and
  harvest.document_tokens to the longest conversation, so that a window is one
  conversation.

  Args:
    source: the subject.
  """
  return dataclasses.replace(source, prefix=(), suffix=(), special=frozenset())


# --- mixing ------------------------------------------------------------------


def mixing_buffer(
  parts: Iterable[Mapping[str, np.ndarray]], *, capacity_rows: int, seed: int
) -> Iterator[dict[str, np.ndarray]]:
  """Mixes rows in a buffer that is filled, shuffled and half emptied, repeatedly.

  Every row is yielded once. The position cannot be restored; for rows on disk
  use the loader.

  Args:
    parts: columns of equal length, with any number of rows per part and without
      padding, such as the results of `activations`.
    capacity_rows: rows of the buffer, at least 2.
    seed: seed of the shuffles.

  Yields:
    Columns of capacity_rows // 2 rows; at the end, of all remaining rows.

  Raises:
    InputError: capacity_rows is below 2.
  """
  if capacity_rows < 2:
    raise InputError(
      "capacity_rows", capacity_rows, "must be at least 2", "raise it"
    )
  held: dict[str, np.ndarray] = {}
  waiting = iter(parts)
  rest: dict[str, np.ndarray] = {}
  for cycle in itertools.count():
    while _rows(held) < capacity_rows:
      if not _rows(rest):
        part = next(waiting, None)
        if part is None:
          break
        rest = dict(part)
      room = capacity_rows - _rows(held)
      head = {name: a[:room] for name, a in rest.items()}
      rest = {name: a[room:] for name, a in rest.items()}
      held = {
        name: np.concatenate([held[name], a]) if held else a
        for name, a in head.items()
      }
    rows = _rows(held)
    if not rows:
      return
    order = shuffle.permutation(rows, shuffle.BUFFER, seed, cycle)
    mixed = {name: a[order] for name, a in held.items()}
    stop = capacity_rows // 2 if rows == capacity_rows else rows
    yield {name: a[:stop] for name, a in mixed.items()}
    held = {name: a[stop:] for name, a in mixed.items()}


def _rows(columns: Mapping[str, np.ndarray]) -> int:
  return len(next(iter(columns.values()))) if columns else 0
