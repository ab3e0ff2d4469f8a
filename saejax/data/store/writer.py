"""Writes a store bucket by bucket, so that writing can resume after any kill.

A bucket is permuted, its shards are written whole, and then one ledger line
names them. Before that line the bucket does not exist: files that a killed
process left beyond its ledger are deleted on the next start. The manifest is
written last and makes the store complete.
"""

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax import durable
from saejax.data import shuffle
from saejax.data.store import arrays, columns, ledger, manifest, sums
from saejax.errors import InputError

MADE = "made.jsonl"  # time, host and versions; no result depends on it


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


class Writer:
  """Writes the buckets of one host into a store; `finish` completes it.

  Attributes:
    path: folder of the store.
    meta: metadata of the store.
    columns: declarations of its columns.
  """

  def __init__(
    self,
    path: pathlib.Path,
    meta: Mapping[str, Any],
    *,
    files: Mapping[str, bytes] | None = None,
    host: int = 0,
    hosts: int = 1,
  ):
    """Creates the store, or opens an unfinished one to resume writing.

    Args:
      path: folder of the store.
      meta: metadata: format, columns, capacity, bucket_rows, shard_rows,
        chunk_rows, shuffled, seed, group, and further descriptions.
      files: further small files of the store, by name.
      host: index of this process, which writes buckets host, host + hosts, ...
      hosts: number of processes that write the store.

    Raises:
      InputError: the folder cannot be written, has other metadata, is damaged,
        or is being written by another process.
    """
    check_sizes(meta)
    self.path, self.meta = path, dict(meta)
    self.columns = columns.from_json(self.meta["columns"])
    self._host, self._hosts = host, hosts
    self._files = dict(files or {})
    with _disk_errors(path):
      path.mkdir(parents=True, exist_ok=True)
      self._check_folder()
      self._ledger = ledger.Ledger(path / ledger.FOLDER / f"{host:05d}.jsonl")
      try:
        self._check_meta()
        self._check_lines()
        if hosts == 1:
          self._clean()
        self._write_files()
        self._arrays = arrays.create(path, self.meta, self.columns)
        self._note()
      except BaseException:
        self._ledger.close()
        raise

  def _check_folder(self) -> None:
    own = {ledger.FOLDER, *self.columns}
    own |= {name.split("/")[0] for name in self._files}
    if (self.path / manifest.META).exists():
      return
    for entry in self.path.iterdir():
      if entry.name not in own and not entry.name.endswith(".tmp"):
        raise InputError(
          "path",
          self.path,
          f"must be a store or empty, and has {entry.name}",
          "give another folder",
        )

  def _check_meta(self) -> None:
    file = self.path / manifest.META
    wanted = durable.canonical(self.meta).encode()
    if file.exists() and file.read_bytes() != wanted:
      raise InputError(
        "path",
        self.path,
        "has a store with other settings",
        "give another folder",
      )

  def _check_lines(self) -> None:
    """Checks sizes of the ledger's shards; reading checks their contents."""
    ledger.check(self.path, self.lines, self.meta, self.columns)
    for line in self.lines:
      for name, (size, _) in line["shards"].items():
        file = self.path / name
        if not file.is_file() or file.stat().st_size != size:
          raise manifest.broken(file, f"the shard must have {size} bytes")

  def _clean(self) -> None:
    """Deletes shards that no ledger line names, locks and temporary files."""
    known = {name for line in self.lines for name in line["shards"]}
    for name in self.columns:
      for file in sorted((self.path / name).glob("c/**/*")):
        if file.is_file() and str(file.relative_to(self.path)) not in known:
          file.unlink()
    for pattern in ("*.tmp", "*/*.tmp", "*/*.__lock"):
      for file in self.path.glob(pattern):
        file.unlink()

  def _write_files(self) -> None:
    # meta.json is last, so that where it exists, the others do.
    content = durable.canonical(self.meta).encode()
    for name, wanted in {**self._files, manifest.META: content}.items():
      file = self.path / name
      if not file.is_file() or file.read_bytes() != wanted:
        durable.write_file(file, wanted)

  def _note(self) -> None:
    """Appends time, host and versions; no result depends on them."""
    names = ("jax", "jaxlib", "numpy", "tensorstore", "tokenizers")
    versions = {"python": platform.python_version()} | {
      name: importlib.metadata.version(name) for name in names
    }
    record = {
      "time": datetime.datetime.now(datetime.UTC).isoformat(),
      "host": platform.node(),
      "rows": self.rows,
      "versions": versions,
    }
    with (self.path / MADE).open("a", encoding="utf-8") as file:
      file.write(json.dumps(record) + "\n")

  @property
  def lines(self) -> list[dict[str, Any]]:
    """Bucket lines of the ledger."""
    return [line for line in self._ledger.lines if line["kind"] == "bucket"]

  @property
  def calibration(self) -> dict[str, Any] | None:
    """Calibration recorded by `calibrate`, or None."""
    for line in self._ledger.lines:
      if line["kind"] == "calibration":
        return line["calibration"]
    return None

  @property
  def rows(self) -> int:
    """Number of rows written by this host."""
    return sum(line["rows"] for line in self.lines)

  @property
  def resume(self) -> dict[str, Any] | None:
    """Resume point after the last bucket; None before the first."""
    return self.lines[-1]["resume"] if self.lines else None

  def calibrate(self, calibration: Mapping[str, Any]) -> None:
    """Records measurements made before the first row.

    Args:
      calibration: the measurements, JSON-serialisable.
    """
    record = {"kind": "calibration", "calibration": dict(calibration)}
    with _disk_errors(self.path):
      self._ledger.append(record)

  def write(
    self,
    values: Mapping[str, np.ndarray],
    *,
    resume: Mapping[str, Any],
    dropped: Mapping[str, int] | None = None,
    read: int = 0,
  ) -> dict[str, Any]:
    """Writes the next bucket and its ledger line; durable when it returns.

    Args:
      values: every column [rows, ...] in its dtype; `bucket_rows` rows, fewer
        in the last bucket only.
      resume: resume point of the next bucket, JSON-serialisable.
      dropped: rows dropped by each rule since the last bucket.
      read: units that the source read since the last bucket, such as tokens.

    Returns:
      The ledger line.

    Raises:
      InputError: a column has another dtype or shape, or the disk is full.
      ValueError: columns are missing.
    """
    if columns.declare(values, self.columns).keys() != self.columns.keys():
      raise ValueError(
        f"columns must be {set(self.columns)}, got {set(values)}"
      )
    number = self._host + self._hosts * len(self.lines)
    rows, first = len(values["x"]), number * self.meta["bucket_rows"]
    if self.meta["shuffled"]:
      order = self._order(rows, number)
      values = {name: column[order] for name, column in values.items()}
    with _disk_errors(self.path):
      shards = self._write_shards(values, first)
      return self._ledger.append(
        {
          "kind": "bucket",
          "bucket": number,
          "first": first,
          "rows": rows,
          "sums": {
            name: sums.summed(values[name]).to_json()
            for name, column in self.columns.items()
            if column.is_float
          },
          "chunks": {
            name: arrays.checksums(
              name, first, values[name], self.meta["chunk_rows"]
            )
            for name in self.columns
          },
          "resume": dict(resume),
          "dropped": dict(dropped or {}),
          "read": read,
          "shards": shards,
        }
      )

  def _order(self, rows: int, bucket: int) -> np.ndarray:
    """Returns the permutation of a bucket's rows, which keeps groups whole."""
    group = (self.meta.get("group") or {"rows": 1})["rows"]
    if rows % group:
      raise ValueError(f"{rows} rows are not whole groups of {group}")
    return shuffle.grouped(
      rows, group, shuffle.BUCKET, self.meta["seed"], bucket
    )

  def _write_shards(
    self, values: Mapping[str, np.ndarray], first: int
  ) -> dict[str, list[Any]]:
    """Writes whole shards; returns [size, SHA-256] of each by name."""
    rows, shard = len(values["x"]), self.meta["shard_rows"]
    writes = [
      self._arrays[name][first + i : first + min(i + shard, rows)].write(
        values[name][i : i + shard]
      )
      for i in range(0, rows, shard)
      for name in self.columns
    ]
    for write in writes:
      write.result()
    return {
      file: list(durable.checksum(self.path / file))
      for name, column in self.columns.items()
      for file in arrays.shard_files(name, column, first, rows, shard)
    }

  def finish(
    self, *, dropped: Mapping[str, int] | None = None, read: int = 0
  ) -> None:
    """Writes stats.json and the manifest, which make the store complete.

    Args:
      dropped: rows dropped after the last bucket.
      read: units read after the last bucket.
    """
    lines = [x for x in ledger.unfinished(self.path) if x["kind"] == "bucket"]
    counts = dict(dropped or {})
    for line in lines:
      for rule, count in line["dropped"].items():
        counts[rule] = counts.get(rule, 0) + count
    stats = {
      "columns": total(lines, self.columns),
      "rows": sum(line["rows"] for line in lines),
      "read": read + sum(line["read"] for line in lines),
      "dropped": counts,
      "calibration": self.calibration,
    }
    with _disk_errors(self.path):
      content = durable.canonical(stats).encode()
      durable.write_file(self.path / manifest.STATS, content)
      manifest.write(
        self.path,
        self._small(),
        {name: x for line in lines for name, x in line["shards"].items()},
      )
    self.close()

  def _small(self) -> list[str]:
    """Returns the names of files other than shards."""
    ledgers = sorted((self.path / ledger.FOLDER).glob("*.jsonl"))
    return [
      manifest.META,
      manifest.STATS,
      *(f"{ledger.FOLDER}/{file.name}" for file in ledgers),
      *sorted(self._files),
      *(f"{name}/zarr.json" for name in self.columns),
    ]

  def close(self) -> None:
    """Releases the store's lock."""
    self._ledger.close()


def total(
  lines: list[dict[str, Any]], declared: Mapping[str, columns.Column]
) -> dict[str, Any]:
  """Computes the moments of each float column over bucket lines.

  Args:
    lines: bucket lines of ledgers.
    declared: declarations of the columns.

  Returns:
    The result of `sums.stats` by column name.
  """
  return {
    name: sums.stats(
      sums.merge(
        (sums.Sums.from_json(line["sums"][name]) for line in lines),
        d=column.size,
      ),
      column.shape,
    )
    for name, column in declared.items()
    if column.is_float
  }


def _disk_errors(path: pathlib.Path) -> contextlib.AbstractContextManager[None]:
  return durable.disk_errors(
    path, what="the rows", kept="finished buckets are kept"
  )
