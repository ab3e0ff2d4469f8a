"""Writes a store bucket by bucket, so that writing can resume after any kill.

A bucket is permuted, its shards are written whole, and then one entry of the
ledger names them. Before that entry the bucket does not exist: files that a
killed process left are deleted on the next start. The manifest is written last
and makes the store complete. Buckets do not depend on each other, so that any
process can write any of them, and again.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import numpy as np

from saejax import durable
from saejax.data import shuffle
from saejax.data.store import arrays, codes, columns, ledger, manifest, sums
from saejax.data.store import place as places
from saejax.data.store import repair as repairing
from saejax.data.store.place import KEPT, Local, Path
from saejax.data.store.share import Share
from saejax.errors import InputError

_THREADS = 2  # that sum up and check a bucket, beside those that write it
MADE = "made"  # folder of times, hosts and versions; no result depends on it


def check_sizes(meta: Mapping[str, Any]) -> None:
  """Checks that the sizes of group, chunk, shard and bucket are multiples.

  Args:
    meta: metadata with chunk_rows, shard_rows, bucket_rows and group.

  Raises:
    InputError: a size is below 1, or not a multiple of the next smaller one.
  """
  names = ("chunk_rows", "shard_rows", "bucket_rows")
  for name in names:
    if meta[name] < 1:
      raise InputError(name, meta[name], "must be at least 1", "use 1 or more")
  sizes = {name: meta[name] for name in names}
  if meta.get("group"):
    sizes = {"the rows of a group": meta["group"]["rows"]} | sizes
  for small, large in itertools.pairwise(sizes):
    if sizes[large] % sizes[small]:
      raise InputError(
        large,
        sizes[large],
        f"must be a multiple of {small} ({sizes[small]})",
        f"set it to {-(-sizes[large] // sizes[small]) * sizes[small]}",
      )


class Writer(contextlib.ExitStack):
  """Writes buckets of one process into a store; `finish` completes it.

  A context manager, which holds the store's lock.

  Attributes:
    place: where the store is.
    meta: metadata of the store.
    columns: declarations of its columns.
    share: which buckets are this process's.
    entries: entries of the ledger that have been seen, by bucket.
    again: buckets with an entry whose shards have to be written again.
  """

  def __init__(
    self,
    path: Path,
    meta: Mapping[str, Any],
    *,
    files: Mapping[str, bytes] | None = None,
    share: Share = Share(),
    repair: bool = False,
  ):
    """Creates the store, or opens one to write what is missing.

    Args:
      path: folder or URL of the store.
      meta: metadata: format, columns, capacity, bucket_rows, shard_rows,
        chunk_rows, shuffled, seed, group, and further descriptions.
      files: further small files of the store, by name.
      share: which buckets are this process's.
      repair: whether to read what is there and remove what is damaged, so that
        it is written again.

    Raises:
      InputError: the folder cannot be written, has other metadata, is damaged,
        or is being written by another process.
    """
    super().__init__()
    check_sizes(meta)
    self.place, self.meta = places.at(path), dict(meta)
    self.columns = columns.from_json(self.meta["columns"])
    self.share = share
    self.entries: dict[int, dict[str, Any]] = {}
    self.again: set[int] = set()
    self._files = dict(files or {})
    with self._failures(), contextlib.ExitStack() as held:
      self._make_folder()
      held.enter_context(share.locked(self.place))
      if repair:
        self.again = repairing.discard(self.place, self.meta, share)
      self._check_meta()
      self.refresh()
      self._check_shards()
      self._clean()
      # The metadata are last, so that where they exist, the others do.
      content = durable.canonical(self.meta).encode()
      places.write_all(self.place, {**self._files, manifest.META: content})
      self._arrays = arrays.create(self.place, self.meta, self.columns)
      self._note()
      self._pool = held.enter_context(futures.ThreadPoolExecutor(_THREADS))
      self.push(held.pop_all())

  def _failures(self) -> contextlib.AbstractContextManager[None]:
    return self.place.failures("the rows", KEPT)

  def _make_folder(self) -> None:
    """Makes a local folder, and refuses one of something else."""
    if not isinstance(self.place, Local):
      return
    folder = self.place.folder
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / manifest.META).exists():
      return
    own = {ledger.FOLDER, MADE, *manifest.NAMES, *self.columns}
    own |= {name.split("/")[0] for name in self._files}
    for entry in folder.iterdir():
      ours = entry.name in own or entry.name.startswith(".lock-")
      if not ours and not entry.name.endswith(".tmp"):
        raise InputError(
          "path",
          str(self.place),
          f"must be a store or empty, and has {entry.name}",
          "give another folder",
        )

  def _check_meta(self) -> None:
    """Refuses another store, and buckets of which it is not known."""
    found = places.one(self.place, manifest.META)
    if found is None and self.place.names(ledger.FOLDER):
      raise manifest.broken(self.place / manifest.META, "the file is missing")
    if found not in (None, durable.canonical(self.meta).encode()):
      raise InputError(
        "path",
        str(self.place),
        "has a store with other settings",
        "give another folder",
      )

  def refresh(self) -> None:
    """Reads the entries that were added to the ledger."""
    self.entries |= ledger.read(self.place)
    entries = self.entries.values()
    ledger.check(self.place, entries, self.meta, self.columns)

  def _check_shards(self) -> None:
    """Checks sizes of the ledger's shards; reading checks their contents."""
    shards: dict[str, int | None] = {}
    for bucket, entry in self.entries.items():
      if bucket not in self.again:
        shards |= entry["shards"]
    if fault := self.place.fault(shards):
      raise manifest.broken(self.place / fault[0], fault[1])

  def _clean(self) -> None:
    """Deletes what a kill left: shards that no entry names, locks, drafts.

    Other processes may be writing theirs.
    """
    if not isinstance(self.place, Local):
      return  # where no object is half written
    known = {n for e in self.entries.values() for n in e["shards"]}
    shards = self.meta["bucket_rows"] // self.meta["shard_rows"]
    for column in self.columns:
      for name in self.place.names(f"{column}/c"):
        at = name.split("/")[2].split(".")[0]
        own = at.isdecimal() and self.share.owns(int(at) // shards)
        if own and name not in known:
          self.place.remove(name)
    if self.share.processes == 1:
      for pattern in ("*.tmp", "*/*.tmp", "*/*.__lock"):
        for file in self.place.folder.glob(pattern):
          file.unlink()

  def _note(self) -> None:
    """Records time, host and versions; no result depends on them."""
    names = ("jax", "jaxlib", "numpy", "tensorstore", "tokenizers")
    versions = {"python": platform.python_version()} | {
      name: importlib.metadata.version(name) for name in names
    }
    now = datetime.datetime.now(datetime.UTC)
    record = {
      "time": now.isoformat(),
      "host": platform.node(),
      "process": [self.share.process, self.share.processes],
      "rows": self.rows,
      "versions": versions,
    }
    name = f"{now:%Y%m%dT%H%M%S.%f}-{platform.node()}-{os.getpid()}.json"
    self.place.write(f"{MADE}/{name}", json.dumps(record).encode() + b"\n")

  @property
  def calibration(self) -> dict[str, Any] | None:
    """Calibration recorded by `calibrate`, or None."""
    return manifest.calibration(self.place)

  @property
  def rows(self) -> int:
    """Number of rows written, by all processes."""
    return ledger.rows(self.entries.values())

  def calibrate(self, measured: Mapping[str, Any]) -> None:
    """Records measurements made before the first row, unless there are some.

    Args:
      measured: the measurements, JSON-serialisable.
    """
    record = durable.canonical(durable.seal(measured)).encode()
    with self._failures():
      self.place.add(manifest.CALIBRATION, record)

  def write(
    self,
    bucket: int,
    values: Mapping[str, np.ndarray],
    *,
    resume: Mapping[str, Any] | None = None,
    dropped: Mapping[str, int] | None = None,
    read: int = 0,
  ) -> dict[str, Any]:
    """Writes a bucket and its entry; durable when it returns.

    A bucket that has an entry is written again only to restore its shards.

    Args:
      bucket: number of the bucket.
      values: every column [rows, ...] in its dtype; at most `bucket_rows` rows.
      resume: where the source goes on after it, JSON-serialisable.
      dropped: rows of it that each rule dropped.
      read: units that the source read for it, such as tokens.

    Returns:
      The entry.

    Raises:
      InputError: a column has another dtype or shape, the disk is full, or the
        bucket has an entry of other rows.
      ValueError: columns are missing.
    """
    declared = columns.with_scales(columns.declare(values, self.columns))
    if declared.keys() != self.columns.keys():
      raise ValueError(f"columns must be {[*self.columns]}, got {[*values]}")
    if self.meta["shuffled"]:
      order = self._order(len(values["x"]), bucket)
      values = {name: column[order] for name, column in values.items()}
    values = codes.encode(values, self.columns)
    with self._failures():
      known = ledger.read(self.place, [ledger.name(bucket)]).get(bucket)
      # What has an entry is compared with it before it is written over.
      writes = [] if known else self._start(values, bucket)
      entry = self._entry(bucket, values, resume or {}, dropped or {}, read)
      self._check_same(entry, known)
      for write, size in writes or self._start(values, bucket):
        self.place.wait(write, size=size)
      content = ledger.encoded(entry)
      name = ledger.name(bucket)
      if not self.place.add(name, content):
        there = self.place.read([name])[name]
        self._check_same(entry, ledger.parse(self.place, name, there))
    self.entries[bucket] = entry
    return entry

  def _entry(
    self,
    bucket: int,
    values: Mapping[str, np.ndarray],
    resume: Mapping[str, Any],
    dropped: Mapping[str, int],
    read: int,
  ) -> dict[str, Any]:
    rows, first = len(values["x"]), bucket * self.meta["bucket_rows"]
    entry = {
      "bucket": bucket,
      "first": first,
      "rows": rows,
      "resume": dict(resume),
      "dropped": dict(dropped),
      "read": read,
      "sums": {},
      "chunks": {},
      "contents": {},
      "shards": {},
    }
    size = self.meta["chunk_rows"]
    for name, column in self.columns.items():
      x = values[name]
      chunks = self._pool.submit(arrays.checksums, name, first, x, size)
      content = self._pool.submit(_sha256, x)
      if column.is_float:
        found = sums.summed(codes.read(values, name, column), self._pool)
        entry["sums"][name] = found.to_json()
      entry["chunks"][name] = chunks.result()
      entry["contents"][name] = content.result()
      entry["shards"] |= arrays.shards(name, column, first, rows, self.meta)
    return durable.seal(entry)

  def _check_same(
    self, ours: Mapping[str, Any], theirs: Mapping[str, Any] | None
  ) -> None:
    """Refuses to write a bucket over one of other rows."""
    if theirs is not None and ours != theirs:
      raise InputError(
        "path",
        str(self.place / ledger.name(ours["bucket"])),
        "has other rows than those that were computed now",
        "write it with the hardware and versions of the other buckets (see "
        f"{MADE}/), or into another folder",
      )

  def _order(self, rows: int, bucket: int) -> np.ndarray:
    """Returns the permutation of a bucket's rows, which keeps groups whole."""
    group = (self.meta.get("group") or {"rows": 1})["rows"]
    if rows % group:
      raise ValueError(f"{rows} rows are not whole groups of {group}")
    return shuffle.grouped(
      rows, group, shuffle.BUCKET, self.meta["seed"], bucket
    )

  def _start(
    self, values: Mapping[str, np.ndarray], bucket: int
  ) -> list[tuple[Any, int]]:
    """Starts writing the shards of a bucket; (future, bytes) of each."""
    shard, first = self.meta["shard_rows"], bucket * self.meta["bucket_rows"]
    writes = []
    for i in range(0, len(values["x"]), shard):
      for name, array in self._arrays.items():
        part = values[name][i : i + shard]
        there = array[first + i : first + i + len(part)]
        # Not copied: rows stay as they are until they are written.
        writes.append(
          there.write(part, can_reference_source_data_indefinitely=True)
        )
    # All share the connection, and the last may have waited for the others.
    size = sum(values[name].nbytes for name in self._arrays)
    return [(write, size) for write in writes]

  def finish(self, buckets: int) -> bool:
    """Writes stats.json and the manifest, which make the store complete.

    Args:
      buckets: number of buckets that the source has.

    Returns:
      Whether it is complete: False where other processes are not done.
    """
    with self._failures():
      self.refresh()
      if set(self.entries) != set(range(buckets)):
        return False
      entries = [self.entries[bucket] for bucket in range(buckets)]
      stats = durable.canonical(self._stats(entries)).encode()
      places.write_all(self.place, {manifest.STATS: stats})
      if places.one(self.place, manifest.NAME) is None:
        shards = {n: size for e in entries for n, size in e["shards"].items()}
        manifest.write(self.place, self._small(buckets), shards)
    return True

  def _stats(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return ledger.stats(entries, self.columns) | {
      "calibration": self.calibration
    }

  def _small(self, buckets: int) -> list[str]:
    """Returns the names of files other than shards."""
    calibrated = [manifest.CALIBRATION] * (self.calibration is not None)
    return [
      manifest.META,
      manifest.STATS,
      *calibrated,
      *(ledger.name(bucket) for bucket in range(buckets)),
      *sorted(self._files),
      *(f"{name}/zarr.json" for name in self.columns),
    ]


def _sha256(x: np.ndarray) -> str:
  flat = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
  return hashlib.sha256(flat.data).hexdigest()
