"""Writes latents as delphi caches them, so that it explains and scores them.

    FOLDER/MODULE/START_END.safetensors   latents START to END, both included
      locations    sequence, position, latent - START [entries, 3] uint16 or uint32,
                   sorted by sequence, then position, then latent
      activations  [entries] float16, or float32 where one is above its range
      tokens       [sequences, length] int64
    FOLDER/MODULE/config.json             the settings and the model's name

as delphi 0.1.3 does, with |z| above 1e-5 only. The rows of the store, by document
and position, are divided into sequences of one length; a document begins a new one
in the middle of it, after the tokenizer's end or separator where it has one, as
delphi packs its text. Latents are those of the store's rows, in their own context.
The rest of the last sequence is filled with that token, which has no latents.

The store is read once. Entries go to one file per split as they are found, and each
is sorted by itself, so that memory holds one split, and per row of the store its
place.

References:
  Paulo et al., Automatically Interpreting Millions of Features in Large Language
  Models, 2024, arXiv:2410.13928; github.com/EleutherAI/delphi, latents/cache.py.
"""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int
from safetensors import numpy as safetensors

from saejax import durable
from saejax.data.store import reader
from saejax.data.store.reader import Store
from saejax.data.text import neighbours
from saejax.errors import InputError
from saejax.features import reading, summary
from saejax.models.tokenizer import Tokenizer
from saejax.sae.sae import SAE

LEAST = 1e-5  # values that are kept are above it
_ENTRY = np.dtype(
  [("at", np.int64), ("latent", np.uint32), ("value", np.float32)]
)


def write(
  folder: str | os.PathLike[str],
  sae: SAE,
  store: Store,
  latents: Sequence[int] = (),
  *,
  module: str = "",
  splits: int = 5,
  length: int = 256,
  batch_rows: int = 4096,
  progress: Callable[[str, int, int], None] | None = None,
) -> int:
  """Writes the cache; returns the number of entries.

  Args:
    folder: what delphi calls raw_dir; with the folder of the module in it.
    sae: the SAE, in the inference form.
    store: store of text.
    latents: numbers of the latents; all by default.
    module: name of the module, by default the store's.
    splits: number of files; fewer where there are fewer latents.
    length: tokens of a sequence; delphi's windows of 32 must divide it.
    batch_rows: largest number of rows on the device at once.
    progress: called with a stage, what is done of it, and of how much.

  Raises:
    InputError: the store has no text or another width, there is no such latent,
      or the folder cannot be written.
  """
  if store.d != sae.d:
    raise InputError(
      "store",
      str(store.place),
      f"must have rows of the width of the SAE, {sae.d}, not {store.d}",
      "give a store of its site",
    )
  outside = [i for i in latents if not 0 <= i < sae.n]
  if outside:
    raise InputError(
      "latents",
      outside[0],
      f"must be in [0, {sae.n})",
      f"use at most {sae.n - 1}",
    )
  words = neighbours.tokenizer_of(store)
  say = progress or (lambda *_: None)
  site = store.meta.get("site") or {}
  module = module or str(site.get("module") or "site")
  place, tokens = sequences(store, words, length)
  wanted = np.zeros(sae.n, bool)
  wanted[list(latents) if len(latents) else slice(None)] = True
  bounds = np.linspace(0, sae.n, min(splits, sae.n) + 1).astype(int)
  target = pathlib.Path(folder) / module
  with durable.disk_errors(target.parent, field="write", what=module):
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".draft-") as drafts:
      draft = [pathlib.Path(drafts, str(i)) for i in range(len(bounds) - 1)]
      entries = _collect(
        sae, store, place, wanted, bounds, draft, batch_rows, say
      )
      for i, file in enumerate(draft):
        start, end = int(bounds[i]), int(bounds[i + 1]) - 1
        found = np.fromfile(file, _ENTRY)
        name = f"{start}_{end}.safetensors"
        _write_split(target / name, found, start, tokens)
        say("files", i + 1, len(draft))
    _write_config(target, store, tokens, len(draft), site)
  return entries


def _collect(
  sae: SAE,
  store: Store,
  place: Int[np.ndarray, "rows"],
  wanted: np.ndarray,
  bounds: Int[np.ndarray, "splits+1"],
  draft: Sequence[pathlib.Path],
  batch_rows: int,
  say: Callable[[str, int, int], None],
) -> int:
  """Writes the entries of each split to its draft, in the order of the store."""
  done = entries = 0
  starts = np.array([a for a, _ in store.intervals])
  counts = np.cumsum([0] + [b - a for a, b in store.intervals])
  with contextlib.ExitStack() as stack:
    files = [stack.enter_context(open(file, "wb")) for file in draft]
    for numbers, x in reading.batches(store, batch_rows=batch_rows):
      for part in summary.active(sae, numbers, x, batch_rows):
        keep = wanted[part.latent] & (np.abs(part.value) > LEAST)
        row, latent = part.row[keep], part.latent[keep]
        # Rows between buckets do not exist: the place is by order, not number.
        bucket = np.searchsorted(starts, row, side="right") - 1
        order = counts[bucket] + row - starts[bucket]
        found = np.empty(len(row), _ENTRY)
        found["at"], found["latent"] = place[order], latent
        found["value"] = part.value[keep]
        split = np.searchsorted(bounds, latent, side="right") - 1
        for i, file in enumerate(files):
          found[split == i].tofile(file)
        entries += len(found)
      done += len(numbers)
      say("rows", done, store.rows)
  return entries


def sequences(
  store: Store, words: Tokenizer, length: int
) -> tuple[Int[np.ndarray, "rows"], Int[np.ndarray, "S T"]]:
  """Divides the rows of a store into sequences of one length.

  Args:
    store: store of text.
    words: its tokenizer.
    length: tokens of a sequence.

  Returns:
    Place of each row, in the order of row numbers, among the tokens of all
    sequences; and the tokens.
  """
  columns = store.whole(*neighbours.COLUMNS)
  doc, pos = columns["doc"], columns["pos"]
  order = np.lexsort([pos, doc])
  ends = [i for i in (words.eos, words.sep) if i is not None]
  fill = ends[0] if ends else 0
  new = np.zeros(len(order), np.int64)
  new[1:] = np.diff(doc[order]) != 0
  at = np.arange(len(order)) + np.cumsum(new) * bool(ends)
  count = max(1, -(-(int(at[-1]) + 1 if len(at) else 0) // length))
  tokens = np.full(count * length, fill, np.int64)
  tokens[at] = columns["tok"][order]
  place = np.empty(len(order), np.int64)
  place[order] = at
  return place, tokens.reshape(count, length)


def _write_split(
  file: pathlib.Path,
  found: np.ndarray,
  start: int,
  tokens: Int[np.ndarray, "S T"],
) -> None:
  """Sorts the entries of a split and writes its file."""
  found = found[np.lexsort([found["latent"], found["at"]])]
  locations = np.stack(
    [*np.divmod(found["at"], tokens.shape[1]), found["latent"] - start], axis=1
  )
  small = locations.max(initial=0) < 2**16
  most = np.abs(found["value"]).max(initial=0)
  half = np.float16 if most <= np.finfo(np.float16).max else np.float32
  content = safetensors.save(
    {
      "locations": np.ascontiguousarray(
        locations.astype(np.uint16 if small else np.uint32)
      ),
      "activations": found["value"].astype(half),
      "tokens": tokens,
    }
  )
  durable.write_file(file, content, field="write")


def _write_config(
  target: pathlib.Path,
  store: Store,
  tokens: Int[np.ndarray, "S T"],
  splits: int,
  site: dict,
) -> None:
  """Writes the settings of a cache, with delphi's names."""
  content = {
    "dataset_repo": str((store.meta.get("corpus") or {}).get("name", "")),
    "dataset_split": str(store.meta.get("split") or ""),
    "dataset_name": "",
    "dataset_column": "text",
    "batch_size": 1,
    "cache_ctx_len": tokens.shape[1],
    "ctx_len": tokens.shape[1],
    "n_tokens": int(tokens.size),
    "n_splits": splits,
    "model_name": str(reader.described(store, "model") or ""),
    "site": str(site.get("name", "")),
  }
  text = json.dumps(content, indent=2).encode()
  durable.write_file(target / "config.json", text, field="write")
