"""A store of activations on disk, read-only.

    store-<16 hex of the SHA-256 of meta.json>/
      meta.json       what shapes the bytes, canonical JSON
      x/ doc/ pos/ tok/   zarr3 arrays, see `arrays`
      ledger/*.jsonl  one line a bucket: rows, shards, checksums, sums
      stats.json      moments of the rows; its presence says "complete"
      tokenizer/      of the model, where there is one

The rows that exist are the ledger's intervals, never the arrays' shape.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorstore as ts

from saejax import durable
from saejax.data.store import arrays, ledger, writer
from saejax.data.text import neighbours
from saejax.errors import InputError
from saejax.models import tokenizer


class Store:
  """Rows x [rows, d] with document, position and token of each row.

  Made by `store.open`. Safe to use from several threads, and picklable; not
  usable in a forked child.

  Attributes:
    path: folder.
    meta: metadata, as written.
    stats: of stats.json; "mean" and "variance" are [d] float64 arrays,
      "mean_square" is the mean over rows of |x|^2.
    lines: the ledger's lines, one a bucket, by first row.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.meta: dict[str, Any] = json.loads((path / "meta.json").read_bytes())
    self.stats: dict[str, Any] = json.loads((path / "stats.json").read_bytes())
    for name in ("mean", "variance"):
      self.stats[name] = np.asarray(self.stats[name], np.float64)
    self.lines = [x for x in ledger.read(path) if x["kind"] == "bucket"]

  def __repr__(self) -> str:
    return f"Store({str(self.path)!r}, rows={self.rows}, d={self.d})"

  def __getstate__(self) -> dict[str, Any]:
    kept = ("path", "meta", "stats", "lines")
    return {name: self.__dict__[name] for name in kept}

  @property
  def rows(self) -> int:
    """Rows that exist."""
    return sum(line["rows"] for line in self.lines)

  @property
  def d(self) -> int:
    """Width of a row."""
    return self.meta["d"]

  @property
  def intervals(self) -> list[tuple[int, int]]:
    """(start, stop) of the rows of each bucket."""
    return [(x["first"], x["first"] + x["rows"]) for x in self.lines]

  @property
  def chunks(self) -> list[tuple[int, int]]:
    """(start, stop) of the rows of each chunk, the unit of reading."""
    size = self.meta["chunk_rows"]
    return [
      (i, min(i + size, stop))
      for start, stop in self.intervals
      for i in range(start, stop, size)
    ]

  @functools.cached_property
  def _x(self) -> Any:
    return self._open("x")

  @functools.cached_property
  def _provenance(self) -> dict[str, Any]:
    return {name: self._open(name) for name in arrays.PROVENANCE}

  def _open(self, name: str) -> Any:
    with self._read_errors():
      return arrays.open_(self.path, name)

  def read(self, start: int, stop: int) -> np.ndarray:
    """Rows [stop - start, d] in the stored dtype.

    Raises:
      InputError: the rows do not exist, or a shard is missing or corrupt.
    """
    return self.read_many([(start, stop)])[0]

  def read_many(self, intervals: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """The rows of several intervals, requested together."""
    arrays.check_process(self.path)
    for start, stop in intervals:
      self._check_rows(np.asarray([start, stop - 1]))
    with self._read_errors():
      with ts.Batch() as batch:
        reads = [
          self._x[start:stop].read(batch=batch) for start, stop in intervals
        ]
      return [read.result() for read in reads]

  def provenance(self, rows: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """Document, token position in it, and token id: {doc, pos, tok}, [rows].

    Args:
      rows: row numbers, as batches carry them.
    """
    arrays.check_process(self.path)
    index = np.asarray(rows, np.int64)
    self._check_rows(index)
    with self._read_errors():
      reads = {
        name: array[ts.d[0][index]].read()
        for name, array in self._provenance.items()
      }
      return {name: read.result() for name, read in reads.items()}

  def _check_rows(self, rows: np.ndarray) -> None:
    # Inside the arrays' shape, what lies between buckets reads as zeros.
    start, stop = self._bounds
    bucket = np.searchsorted(start, rows, side="right") - 1
    if not np.all((bucket >= 0) & (rows < stop[bucket])):
      raise IndexError(f"rows must lie in {self.intervals}, got {rows}")

  @functools.cached_property
  def _bounds(self) -> np.ndarray:
    return np.asarray(self.intervals, np.int64).reshape(-1, 2).T

  def columns(self, *names: str) -> dict[str, np.ndarray]:
    """Whole provenance arrays over the rows that exist, in row order."""
    arrays.check_process(self.path)
    with self._read_errors():
      return {
        name: np.concatenate(
          [
            self._provenance[name][a:b].read().result()
            for a, b in self.intervals
          ]
        )
        for name in names
      }

  def text(
    self,
    row: int,
    before: int = 8,
    after: int = 4,
    mark: tuple[str, str] = ("", ""),
  ) -> str:
    """The text around a row: its token and the neighbours that were stored.

    Args:
      row: row number.
      before: tokens before it, of the same document.
      after: tokens after it.
      mark: put before and after the row's own token.
    """
    if self.meta["shuffled"]:
      near = neighbours.search(self._index, row, before, after)
    else:
      near = neighbours.around(self, row, before, after)
    return neighbours.decode(self._tokenizer, near, mark)

  @functools.cached_property
  def _index(self) -> neighbours.Index:
    return neighbours.index(self)

  @functools.cached_property
  def _tokenizer(self) -> Any:
    path = self.path / "tokenizer"
    if not path.is_dir():
      raise InputError(
        "harvest.dir",
        self.path,
        "holds no tokenizer, so its rows have no text",
        "harvest from a model with a tokenizer",
      )
    return tokenizer.load(path)

  def verify(self) -> None:
    """Compares every shard with size and checksum of the ledger.

    Finds what chunk checksums cannot: two shards that were swapped.
    """
    for line in self.lines:
      for name, recorded in line["shards"].items():
        if list(durable.checksum(self.path / name)) != recorded:
          raise _broken(self.path / name, "differs from the ledger's checksum")

  @contextmanager
  def _read_errors(self) -> Iterator[None]:
    try:
      yield
    except ValueError as error:
      text = str(error)
      if "DATA_LOSS" in text:
        rule = "a shard is corrupt"
      elif "NOT_FOUND" in text:
        rule = "a shard or row is missing"
      else:
        raise
      raise _broken(self.path, f"{rule} ({text})") from error


def open(  # pylint: disable=redefined-builtin
  path: str | pathlib.Path, *, expect: Mapping[str, Any] | None = None
) -> Store:
  """Opens a complete store.

  Args:
    path: folder of the store.
    expect: what the store must be of; any of model, layer, point, d.

  Raises:
    InputError: no store, not complete, a shard missing or of another size, or
      of another model, layer, point or d than expected.
  """
  path = pathlib.Path(path)
  arrays.check_process(path)
  if not (path / "meta.json").is_file():
    raise InputError(
      "harvest.dir",
      path,
      "must be a store (meta.json is not there)",
      "harvest first, or name the folder store-...",
    )
  if not (path / "stats.json").is_file():
    raise InputError(
      "harvest.dir",
      path,
      "must be complete, and the harvest that wrote it did not finish",
      "repeat the harvest with the same flags: it goes on where it stopped",
    )
  try:
    store = Store(path)
  except (KeyError, TypeError, json.JSONDecodeError) as error:
    raise _broken(
      path, f"meta.json or stats.json is damaged ({error})"
    ) from error
  if store.meta.get("format") != writer.FORMAT:
    raise _broken(path, f"format must be {writer.FORMAT}")
  for field, wanted in (expect or {}).items():
    found = _described(store.meta, field)
    if found != wanted:
      raise InputError(
        f"harvest.{field}",
        wanted,
        f"the store {path.name} is of {found}",
        "name another store, or harvest one with these flags",
      )
  for line in store.lines:
    for name, (size, _) in line["shards"].items():
      file = path / name
      if not file.is_file():
        raise _broken(file, "the shard is missing")
      if file.stat().st_size != size:
        raise _broken(file, f"the shard must have {size} bytes")
  return store


def _described(meta: Mapping[str, Any], field: str) -> Any:
  if field == "model":
    return meta.get("model", {}).get("name")
  if field in ("layer", "point"):
    return meta.get("site", {}).get(field)
  return meta.get(field)


def _broken(path: pathlib.Path, rule: str) -> InputError:
  return InputError(
    "harvest.dir",
    path,
    rule,
    "delete the store's folder and harvest again, or restore it from a copy",
  )


def write_arrays(
  path: str | pathlib.Path,
  x: np.ndarray,
  doc: np.ndarray | None = None,
  pos: np.ndarray | None = None,
  tok: np.ndarray | None = None,
  *,
  meta: Mapping[str, Any] | None = None,
  bucket_rows: int = 131_072,
  shard_rows: int = 32_768,
  chunk_rows: int = 4_096,
  seed: int | None = 0,
) -> Store:
  """Writes a store from arrays: activations of one's own.

  Args:
    path: folder of the store.
    x: [rows, d] float32, float16 or bfloat16; stored as given.
    doc: [rows] document of each row; all 0 by default.
    pos: [rows] position in the document; the row number by default.
    tok: [rows] token; all 0 by default.
    meta: further metadata, such as {"model": {"name": ...}}.
    bucket_rows: rows shuffled together; a multiple of shard_rows.
    shard_rows: rows a file; a multiple of chunk_rows.
    chunk_rows: rows read at once.
    seed: of the shuffle; None keeps the order.
  """
  if x.ndim != 2 or not len(x):
    raise ValueError(f"x must be [rows, d] with rows > 0, got {x.shape}")
  columns = {
    "x": x,
    "doc": np.zeros(len(x)) if doc is None else doc,
    "pos": np.arange(len(x)) if pos is None else pos,
    "tok": np.zeros(len(x)) if tok is None else tok,
  }
  for name, dtype in arrays.PROVENANCE.items():
    columns[name] = np.asarray(columns[name]).astype(dtype)
    if columns[name].shape != (len(x),):
      raise ValueError(f"{name} must be [{len(x)}], got {columns[name].shape}")
  sizes = {
    "bucket_rows": bucket_rows,
    "shard_rows": shard_rows,
    "chunk_rows": chunk_rows,
  }
  writer.check_sizes(sizes)
  content = hashlib.sha256()
  for column in columns.values():
    content.update(np.ascontiguousarray(column).view(np.uint8).data)
  full = dict(meta or {}) | {
    "content": content.hexdigest(),
    "format": writer.FORMAT,
    "d": x.shape[1],
    "dtype": x.dtype.name,
    "rows": len(x),
    "capacity": -(-len(x) // bucket_rows) * bucket_rows,
    "shuffled": seed is not None,
    "seed": seed or 0,
    **sizes,
  }
  path = pathlib.Path(path)
  out = writer.Writer(path, full)
  try:
    for start in range(out.rows, len(x), bucket_rows):
      part = {k: v[start : start + bucket_rows] for k, v in columns.items()}
      stop = start + len(part["x"])
      out.write(part, resume={"row": stop}, dropped={}, tokens=len(part["x"]))
    out.finish()
  finally:
    out.close()
  return open(path)
