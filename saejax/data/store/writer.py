"""Writing a store, one bucket at a time, so that it survives any kill.

A bucket is permuted, its shards are written whole, and then one ledger line
names them. Before that line the bucket does not exist: whatever a killed
process left beyond its ledger is deleted on the next start.
"""

import contextlib
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax import durable
from saejax.data import shuffle
from saejax.data.store import arrays, ledger, sums
from saejax.errors import InputError

FORMAT = 1


def check_sizes(meta: Mapping[str, Any]) -> None:
  """Raises InputError where chunk, shard and bucket do not nest."""
  names = ("chunk_rows", "shard_rows", "bucket_rows")
  for name in names:
    if meta[name] < 1:
      raise InputError(
        f"harvest.{name}", meta[name], "must be at least 1", "raise it"
      )
  for small, large in itertools.pairwise(names):
    if meta[large] % meta[small]:
      raise InputError(
        f"harvest.{large}",
        meta[large],
        f"must be a multiple of harvest.{small} ({meta[small]})",
        f"set it to {-(-meta[large] // meta[small]) * meta[small]}",
      )


class Writer:
  """Writes the buckets of one host into a store; closes by `finish`.

  Attributes:
    path: folder of the store.
    meta: its metadata.
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
    """Creates the store, or opens what an earlier process left of it.

    Args:
      path: folder of the store.
      meta: metadata, as built by `harvest.meta` or `store.write_arrays`.
      files: further small files of the store, by name.
      host: number of this process; it writes buckets host, host + hosts, ...
      hosts: number of processes that write this store.

    Raises:
      InputError: the folder cannot be written, belongs to other metadata, or
        is being written by another process.
    """
    check_sizes(meta)
    self.path, self.meta = path, dict(meta)
    self._host, self._hosts = host, hosts
    with _disk_errors(path):
      path.mkdir(parents=True, exist_ok=True)
      self._check_folder()
      self._ledger = ledger.Ledger(path / "ledger" / f"{host:05d}.jsonl")
      try:
        self._check_meta()
        if hosts == 1:
          self._clean()
        self._write_files(files or {})
        self._arrays = arrays.create(path, self.meta)
      except BaseException:
        self._ledger.close()
        raise

  def _check_folder(self) -> None:
    own = {"ledger", "tokenizer", *arrays.NAMES}
    if (self.path / "meta.json").exists():
      return
    for found in self.path.iterdir():
      if found.name not in own and not found.name.endswith(".tmp"):
        raise InputError(
          "harvest.dir",
          self.path,
          f"must be a store or empty, and holds {found.name}",
          "name another folder",
        )

  def _check_meta(self) -> None:
    found = self.path / "meta.json"
    wanted = durable.canonical(self.meta).encode()
    if found.exists() and found.read_bytes() != wanted:
      raise InputError(
        "harvest.dir",
        self.path,
        "holds a store of other settings",
        "name another folder",
      )

  def _clean(self) -> None:
    """Deletes shards that no ledger line names, locks and temporary files."""
    known = {name for line in self.lines for name in line["shards"]}
    for name in arrays.NAMES:
      for file in sorted((self.path / name).glob("c/**/*")):
        if file.is_file() and str(file.relative_to(self.path)) not in known:
          file.unlink()
    for pattern in ("*.tmp", "*/*.tmp", "*/*.__lock"):
      for file in self.path.glob(pattern):
        file.unlink()

  def _write_files(self, files: Mapping[str, bytes]) -> None:
    # meta.json last: where it is, the others are.
    for name, content in files.items():
      (self.path / name).parent.mkdir(exist_ok=True)
      if not (self.path / name).exists():
        durable.write_file(self.path / name, content)
    if not (self.path / "meta.json").exists():
      content = durable.canonical(self.meta).encode()
      durable.write_file(self.path / "meta.json", content)

  @property
  def lines(self) -> list[dict[str, Any]]:
    """The ledger's lines about buckets."""
    return [line for line in self._ledger.lines if line["kind"] == "bucket"]

  @property
  def calibration(self) -> dict[str, Any] | None:
    """What `calibrate` recorded."""
    for line in self._ledger.lines:
      if line["kind"] == "calibration":
        return line["calibration"]
    return None

  @property
  def rows(self) -> int:
    """Rows written by this host."""
    return sum(line["rows"] for line in self.lines)

  @property
  def resume(self) -> dict[str, int] | None:
    """The resume point after the last bucket; None before the first."""
    return self.lines[-1]["resume"] if self.lines else None

  def calibrate(self, calibration: Mapping[str, Any]) -> None:
    """Records what was measured before the first row."""
    record = {"kind": "calibration", "calibration": dict(calibration)}
    with _disk_errors(self.path):
      self._ledger.append(record)

  def write(
    self,
    columns: Mapping[str, np.ndarray],
    *,
    resume: Mapping[str, int],
    dropped: Mapping[str, int],
    tokens: int,
  ) -> dict[str, Any]:
    """Writes the next bucket and its ledger line; durable when it returns.

    Args:
      columns: x [rows, d] in the store's dtype, doc, pos, tok [rows];
        `bucket_rows` rows, fewer in the last bucket only.
      resume: from where the next bucket goes on.
      dropped: rows dropped by each rule on the way to this bucket.
      tokens: tokens read on the way to this bucket.

    Returns:
      The ledger line.
    """
    number = self._host + self._hosts * len(self.lines)
    rows, first = len(columns["x"]), number * self.meta["bucket_rows"]
    if self.meta["shuffled"]:
      order = shuffle.permutation(
        rows, shuffle.BUCKET, self.meta["seed"], number
      )
      columns = {name: column[order] for name, column in columns.items()}
    shard = self.meta["shard_rows"]
    with _disk_errors(self.path):
      writes = [
        self._arrays[name][first + i : first + min(i + shard, rows)].write(
          columns[name][i : i + shard]
        )
        for i in range(0, rows, shard)
        for name in arrays.NAMES
      ]
      line = {
        "kind": "bucket",
        "bucket": number,
        "first": first,
        "rows": rows,
        "sums": sums.of(columns["x"]).to_json(),
        "resume": dict(resume),
        "dropped": dict(dropped),
        "tokens": tokens,
      }
      for write in writes:
        write.result()
      names = arrays.shard_files(first, rows, self.meta)
      line["shards"] = {
        name: list(durable.checksum(self.path / name)) for name in names
      }
      self._ledger.append(line)
    return line

  def finish(
    self, *, dropped: Mapping[str, int] | None = None, tokens: int = 0
  ) -> None:
    """Writes stats.json over all ledgers, which makes the store complete.

    Args:
      dropped: rows dropped after the last bucket.
      tokens: tokens read after the last bucket.
    """
    lines = ledger.read(self.path)
    buckets = [line for line in lines if line["kind"] == "bucket"]
    total = sums.merge(
      (sums.Sums.from_json(line["sums"]) for line in buckets), d=self.meta["d"]
    )
    counts = dict(dropped or {})
    for line in buckets:
      for rule, count in line["dropped"].items():
        counts[rule] = counts.get(rule, 0) + count
    stats = sums.stats(total) | {
      "rows": sum(line["rows"] for line in buckets),
      "tokens": tokens + sum(line["tokens"] for line in buckets),
      "dropped": counts,
      "calibration": self.calibration,
    }
    with _disk_errors(self.path):
      content = durable.canonical(stats).encode()
      durable.write_file(self.path / "stats.json", content)
    self.close()

  def close(self) -> None:
    """Gives up the store's lock."""
    self._ledger.close()


def _disk_errors(path: pathlib.Path) -> contextlib.AbstractContextManager[None]:
  return durable.disk_errors(
    path,
    field="harvest.dir",
    what="the rows",
    kept="finished buckets are kept",
  )
