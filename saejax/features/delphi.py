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

The store is read once. Entries go to one file per split and process as they are found,
16 bytes each, and each split is sorted by itself, so that memory holds one split, and
per row of the store its place.

References:
  Paulo et al., Automatically Interpreting Millions of Features in Large Language
  Models, 2024, arXiv:2410.13928; github.com/EleutherAI/delphi, latents/cache.py.
"""

import contextlib
import dataclasses
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
from saejax.features import parts, reading, summary
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
  kept: parts.Pass | None = None,
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
    kept: folder of the entries, in which a stopped pass is resumed; by default
      one that is removed.

  Raises:
    InputError: the store has no text or another width, there is no such latent,
      the folder cannot be written, or as `parts.total`.
    parts.Unfinished: other processes are not done.
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
  wanted = np.zeros(sae.n, bool)
  wanted[list(latents) if len(latents) else slice(None)] = True
  bounds = np.linspace(0, sae.n, min(splits, sae.n) + 1).astype(int)
  target = pathlib.Path(folder) / module
  with durable.disk_errors(target.parent, field="write", what=module):
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".draft-") as drafts:
      kept = kept or parts.Pass(pathlib.Path(drafts))
      place, tokens = sequences(store, words, length)
      work = _Entries(sae, store, kept, place, wanted, bounds, batch_rows)
      about = reading.identity(
        "delphi",
        sae,
        store,
        latents=[int(latent) for latent in latents],
        bounds=bounds.tolist(),
        length=length,
        batch_rows=batch_rows,
      )
      intervals = reading.intervals(store, batch_rows)
      rows = np.cumsum([0] + [b - a for a, b in intervals])
      found = parts.total(
        kept,
        work,
        intervals,
        lambda: about,
        lambda number: say("rows", int(rows[number]), store.rows),
      )
      say("rows", store.rows, store.rows)
      count = len(bounds) - 1
      for i in range(count):
        start, end = int(bounds[i]), int(bounds[i + 1]) - 1
        name = f"{start}_{end}.safetensors"
        _write_split(target / name, work.read(found, i), start, tokens)
        say("files", i + 1, count)
    _write_config(target, store, tokens, count, site)
  return int(found[:, 1:].sum()) // _ENTRY.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class _Entries(parts.Work[np.ndarray, tuple[int, int]]):
  """Entries over intervals of rows, in a file per split and process.

  The sums are the bytes of these files: a row (process, bytes of each split) for
  each process that has any.
  """

  sae: SAE
  store: Store
  kept: parts.Pass
  place: Int[np.ndarray, "rows"]
  wanted: np.ndarray
  bounds: Int[np.ndarray, "splits+1"]
  batch_rows: int

  def _files(self, process: int) -> list[pathlib.Path]:
    folder = self.kept.place(process)
    return [folder / f"entries-{i}" for i in range(len(self.bounds) - 1)]

  def _errors(self) -> contextlib.AbstractContextManager[None]:
    field, what = parts.FIELD, "the entries"
    return durable.disk_errors(self.kept.folder, field=field, what=what)

  def nothing(self) -> np.ndarray:
    return np.zeros((0, len(self.bounds)), np.int64)

  def added(self, total: np.ndarray, batch: tuple[int, int]) -> np.ndarray:
    files = self._files(self.kept.share.process)
    with self._errors():
      return self._appended(total, batch, files)

  def _appended(
    self,
    total: np.ndarray,
    batch: tuple[int, int],
    files: Sequence[pathlib.Path],
  ) -> np.ndarray:
    """With the entries of a batch at the ends of the files."""
    if not len(total):  # what a killed process has left is overwritten
      for file in files:
        file.write_bytes(b"")
      total = np.zeros((1, len(self.bounds)), np.int64)
      total[0, 0] = self.kept.share.process
    total = total.copy()
    numbers, x = np.arange(*batch), self.store.read(*batch)
    for part in summary.active(self.sae, numbers, x, self.batch_rows):
      found = self._entries(part)
      split = np.searchsorted(self.bounds, found["latent"], side="right") - 1
      for i, path in enumerate(files):
        mine = found[split == i]
        with open(path, "ab") as file:
          mine.tofile(file)
        total[0, 1 + i] += mine.nbytes
    return total

  def _entries(self, part: summary.Active) -> np.ndarray:
    """The entries of some rows, with their places among the tokens."""
    keep = self.wanted[part.latent] & (np.abs(part.value) > LEAST)
    row = part.row[keep]
    # Rows between buckets do not exist: the place is by order, not number.
    starts = np.array([a for a, _ in self.store.intervals])
    counts = np.cumsum([0] + [b - a for a, b in self.store.intervals])
    bucket = np.searchsorted(starts, row, side="right") - 1
    found = np.empty(len(row), _ENTRY)
    found["at"] = self.place[counts[bucket] + row - starts[bucket]]
    found["latent"], found["value"] = part.latent[keep], part.value[keep]
    return found

  def merged(self, total: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.concatenate([total, other])

  def arrays(self, total: np.ndarray) -> dict[str, np.ndarray]:
    with self._errors():
      for process in total[:, 0]:
        for file in self._files(int(process)):
          durable.sync_file(file)
    return {"bytes": total}

  def restored(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
    total = arrays["bytes"]
    for process, *lengths in total.tolist():
      for file, length in zip(self._files(process), lengths, strict=True):
        if not file.exists() or file.stat().st_size < length:
          raise KeyError(file.name)
        if file.stat().st_size > length:  # written after the last save
          os.truncate(file, length)
    return total

  def read(self, total: np.ndarray, split: int) -> np.ndarray:
    """The entries of a split, of all processes."""
    found = [np.zeros(0, _ENTRY)]
    for process in total[:, 0].tolist():
      found.append(np.fromfile(self._files(process)[split], _ENTRY))
    return np.concatenate(found)


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
