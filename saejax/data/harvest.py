"""From a model and a corpus to two stores of activations.

Forward batches are dispatched ahead of the host; rows that pass the rules are
collected into a bucket, and a thread shuffles and writes one bucket while the
next is filled: at most two are in memory. The ledger holds after each bucket
from which forward batch, and after how many of its rows, to go on. The same
call after a kill starts there and ends with the bytes of an undisturbed run.

The training store is shuffled inside buckets; the held-out store keeps
documents whole and in order.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saejax import durable
from saejax.data import bucket
from saejax.data.spec import HarvestConfig as HarvestConfig
from saejax.data.spec import meta as meta
from saejax.data.spec import path as path
from saejax.data.store import reader, writer
from saejax.data.text import corpus as text
from saejax.data.text import subject, windows
from saejax.errors import InputError

OUTLIER = "outlier"
_AHEAD = 1  # forward batches on the device beside the one on the host
Progress = Callable[[dict[str, Any]], None]


def harvest(
  config: HarvestConfig,
  *,
  source: subject.Subject | None = None,
  progress: Progress | None = None,
) -> tuple[reader.Store, reader.Store]:
  """Harvests the training and the held-out store, or opens them if complete.

  The same call goes on after a kill at any moment. A corpus with fewer rows
  than wanted gives a smaller store.

  Args:
    config: what and how.
    source: the model; that of config.model by default.
    progress: called about once a second with phase ("train" or "held_out"),
      rows, rows_wanted, complete, and of this call seconds, rows_per_second,
      tokens and dropped rows by rule.

  Returns:
    (training store, held-out store).

  Raises:
    InputError: settings, model, corpus or disk do not allow it; buckets that
      were finished are kept.
  """
  source = source or subject.of(config.model, config.layer, config.point)
  corpus = text.documents(config.corpus, field=config.field)
  progress = progress or (lambda _: None)
  found: list[reader.Store] = []
  for part in (text.TRAIN, text.HELD_OUT):
    run = _Run(config, source, corpus, part)
    if not (run.path / "stats.json").exists():
      # One threshold for both: the median norm is that of the training part.
      calibration = found[0].stats["calibration"] if found else None
      run.harvest(calibration, progress)
    found.append(reader.open(run.path, expect={"d": source.d}))
  return found[0], found[1]


class _Run:
  """The harvest of one store."""

  def __init__(
    self,
    config: HarvestConfig,
    source: subject.Subject,
    corpus: text.Corpus,
    part: str,
  ):
    self.config, self.source, self.corpus = config, source, corpus
    self.part = part
    self.meta = meta(config, part, source=source, corpus=corpus)
    self.path = path(config, self.meta)
    self.plan = windows.Plan(
      context=config.context,
      forward_batch=config.forward_batch,
      pool_batches=self.meta["pool_batches"],
      document_tokens=config.document_tokens,
      prefix=source.prefix,
      suffix=source.suffix,
      special=source.special,
      drop_ids=config.drop_ids,
    )
    self._check_context()

  def _check_context(self) -> None:
    frame = len(self.plan.prefix) + len(self.plan.suffix)
    most = self.source.max_positions or math.inf
    if not frame < self.config.context <= most:
      raise InputError(
        "harvest.context",
        self.config.context,
        f"must be above {frame}, the special tokens of a window, and at most "
        f"{most}, the positions of the model",
        "set harvest.context between them",
      )

  def harvest(
    self, calibration: Mapping[str, Any] | None, progress: Progress
  ) -> None:
    """Writes the store, or the rest of it."""
    out = writer.Writer(self.path, self.meta, files=self.source.files)
    try:
      self._check_space(out.rows)
      if out.calibration is None:
        out.calibrate(calibration or self._calibrate())
      self._fill(out, progress)
    finally:
      out.close()

  def _calibrate(self) -> dict[str, Any]:
    """Median norm of the first tokens of the training part, before any rule."""
    documents = self.corpus.part(text.TRAIN, self.config.held_out_fraction)
    plan = dataclasses.replace(self.plan, pool_batches=1)
    norms, rows = [np.zeros(0, np.float32)], 0
    for batch in windows.batches(plan, documents, self._encode):
      norm = np.asarray(self._forward(batch)[1])[batch.mask]
      norms.append(norm[np.isfinite(norm)])
      rows += len(norms[-1])
      if rows >= self.config.calibration_rows:
        break
    median = float(np.median(np.concatenate(norms))) if rows else 0.0
    return {"median_norm": median, "rows": rows}

  def _documents(self) -> np.ndarray:
    """The documents of this part; of the held-out, whole ones that fit.

    They are taken in order as long as the next one fits; one that alone is
    larger than the store is passed over.
    """
    found = self.corpus.part(self.part, self.config.held_out_fraction)
    if self.part == text.HELD_OUT:
      left, kept = self.config.held_out_rows, []
      for document in found:
        rows = self.plan.rows(self._encode(document))
        if left < rows <= self.config.held_out_rows:
          break
        if rows <= left:
          kept.append(document)
          left -= rows
      found = np.asarray(kept, np.int64)
    if not len(found):
      raise InputError(
        "harvest.corpus",
        self.config.corpus,
        f"must have a document for the {self.part} store ({len(self.corpus)} "
        f"documents, held_out_fraction {self.config.held_out_fraction}, "
        f"held_out_rows {self.config.held_out_rows})",
        "use more documents, or change these settings",
      )
    return found

  def _encode(self, document: int) -> np.ndarray:
    return self.corpus.encode(document, self.source.encode)

  def _forward(self, batch: windows.Batch) -> tuple[jax.Array, jax.Array]:
    x = self.source.forward(batch.ids, batch.mask)
    return _stored(x, dtype=self.config.dtype)

  def _check_space(self, rows: int) -> None:
    row = self.source.d * jnp.dtype(self.config.dtype).itemsize + 16
    need = (self.meta["rows"] - rows) * row
    free = shutil.disk_usage(self.path).free
    if need > free:
      raise InputError(
        "harvest.dir",
        self.path,
        f"must have room for {durable.size(need)}, and {durable.size(free)} "
        "are free",
        "free space, name another folder or lower harvest.rows",
      )

  def _fill(self, out: writer.Writer, progress: Progress) -> None:
    """Runs forward batches from the resume point on and writes buckets."""
    resume = dict(out.resume or windows.START._asdict())
    before = out.rows
    collect = bucket.Collector(
      bucket_rows=self.meta["bucket_rows"],
      wanted=self.meta["rows"] - before,
      skip=resume.pop("rows", 0),
    )
    documents = self._documents() if collect.wanted else np.zeros(0, np.int64)
    batches = windows.batches(
      self.plan, documents, self._encode, windows.Point(**resume)
    )
    median = (out.calibration or {})["median_norm"]
    limit = median * self.config.outlier_multiple
    report = _Report(self.part, before, self.meta["rows"], progress)
    with _Background(out) as write:
      for batch, x, norm in self._ahead(batches, collect):
        columns, dropped = _rows(batch, x, norm, limit)
        for full in collect.add(batch, columns, dropped):
          write(full)
        report(collect)
      last = collect.rest(windows.Point(len(documents), 0, 0))
      if last is not None:
        write(last)
    if not out.rows:
      raise InputError(
        "harvest.corpus",
        self.config.corpus,
        f"must give rows, and every token of its {self.part} part is dropped",
        "use other documents or lower harvest.outlier_multiple and drop_ids",
      )
    dropped, tokens = collect.pending
    out.finish(dropped=dropped, tokens=tokens)
    report(collect, last=True)

  def _ahead(
    self, batches: Iterator[windows.Batch], collect: bucket.Collector
  ) -> Iterator[tuple[windows.Batch, np.ndarray, np.ndarray]]:
    """Forward batches on the host, the next one under way on the device.

    No batch is begun whose rows would not be wanted.
    """
    waiting: collections.deque = collections.deque()
    coming = 0
    while collect.wanted:
      batch = next(batches, None) if coming < collect.wanted else None
      if batch is not None:
        found = self._forward(batch)
        for array in found:
          array.copy_to_host_async()
        waiting.append((batch, found))
        coming += int(batch.keep.sum())
      if waiting and (batch is None or len(waiting) > _AHEAD):
        batch, found = waiting.popleft()
        coming -= int(batch.keep.sum())
        x, norm = found
        yield batch, np.asarray(x), np.asarray(norm)
      elif not waiting:
        return


@functools.partial(jax.jit, static_argnames="dtype")
def _stored(x: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
  """Rows rounded to the stored dtype, and their norms before rounding."""
  norm = jnp.linalg.norm(x.astype(jnp.float32), axis=-1)
  return x.astype(dtype), norm


def _rows(
  batch: windows.Batch, x: np.ndarray, norm: np.ndarray, limit: float
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """The rows of a batch that pass all rules, and how many each rule drops."""
  keep = batch.keep
  if limit:
    # Written so that a norm that is NaN passes: training reports such rows.
    keep = keep & ~(norm > limit)
  columns = {
    "x": x[keep],
    "doc": batch.doc[keep],
    "pos": batch.pos[keep],
    "tok": batch.ids[keep],
  }
  outliers = int(batch.keep.sum() - keep.sum())
  return columns, batch.dropped | {OUTLIER: outliers}


class _Background:
  """Writes one bucket in a thread while the next is filled."""

  def __init__(self, out: writer.Writer):
    self._out = out
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._writing: concurrent.futures.Future | None = None

  def __enter__(self) -> "_Background":
    return self

  def __call__(self, full: bucket.Bucket) -> None:
    self._wait()
    self._writing = self._pool.submit(
      self._out.write,
      full.columns,
      resume=full.resume,
      dropped=full.dropped,
      tokens=full.tokens,
    )

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    try:
      self._wait()
    finally:
      self._pool.shutdown()

  def _wait(self) -> None:
    if self._writing is not None:
      writing, self._writing = self._writing, None
      writing.result()


class _Report:
  """Tells the progress of this call about once a second."""

  def __init__(self, part: str, before: int, wanted: int, progress: Progress):
    self._part, self._before, self._wanted = part, before, wanted
    self._progress = progress
    self._began = self._told = time.monotonic()

  def __call__(self, collect: bucket.Collector, last: bool = False) -> None:
    now = time.monotonic()
    if now - self._told < 1.0 and not last:
      return
    self._told = now
    seconds = now - self._began
    self._progress(
      {
        "phase": self._part,
        "rows": self._before + collect.rows,
        "rows_wanted": self._wanted,
        "tokens": collect.tokens,
        "seconds": seconds,
        "rows_per_second": collect.rows / max(seconds, 1e-9),
        "dropped": dict(collect.dropped),
        "complete": last,
      }
    )
