"""The rows that `saejax.fit` takes: arrays, stores, streams of batches."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from saejax.data import mix as mixes
from saejax.data import shared, shuffle, streams
from saejax.data.batches import Batches, IteratorBatches, StoreBatches
from saejax.data.mix import Mix
from saejax.data.online import OnlineRows
from saejax.data.store import quality
from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.sae.context import FIELDS, Batch, as_batch
from saejax.training import sharding, sources
from saejax.training.config import TrainConfig

HELD_OUT = 0.05  # held-out share of an array, if no held-out rows are given
LEAST_STEPS = 500  # minimum number of steps; small data are read repeatedly
STATISTICS_ROWS = 32_768  # rows of a stream for its mean and scale
_SPLIT = 2**30  # key of the split: an epoch that no stream reaches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
  """Rows to train on and to evaluate on.

  Attributes:
    arrays: arrays by field, for rows in memory; otherwise None.
    store: the store or mix, for rows on disk, or rows that are computed in
      training; otherwise None.
    stream: batches, for rows that can only be read in order; otherwise None.
    held_out: held-out rows: arrays, a batch or a store.
    stats: "mean" [d] and "mean_square" of x.
    target_stats: those of the target; None where x is reconstructed.
  """

  arrays: Mapping[str, np.ndarray] | None = None
  store: Any = None
  stream: Any = None
  held_out: Any
  stats: Mapping[str, Any]
  target_stats: Mapping[str, Any] | None = None

  @property
  def d(self) -> int:
    """Width of x."""
    return len(self.stats["mean"])

  @property
  def mean(self) -> np.ndarray:
    """Mean of what is reconstructed: x, or the target."""
    return (self.target_stats or self.stats)["mean"]

  def content(self) -> str:
    """Returns a hash of the rows, or the name of a stream."""
    if self.store is not None:
      return self.store.content
    if self.arrays is None:
      return repr(self.stream)
    return arrays_hash(self.arrays)

  @property
  def fields(self) -> tuple[str, ...]:
    """Names of the fields of the batches."""
    if self.arrays is not None:
      return tuple(self.arrays)
    return self.store.trained if self.store is not None else self.stream.fields

  def steps(self, batch_rows: int) -> int | None:
    """Returns the steps of one pass, at least 500; None for a stream.

    Args:
      batch_rows: rows per batch.
    """
    if self.stream is not None:
      return None
    rows = self.store.rows if self.arrays is None else len(self.arrays["x"])
    return max(LEAST_STEPS, rows // batch_rows)

  def source(self, config: TrainConfig, steps: int) -> sources.Source:
    """Builds shuffled batches, one per step.

    Arrays are drawn inside the compiled program where there is one device.

    Args:
      config: batch_rows, seed and mesh of the run.
      steps: number of batches.
    """
    if self.arrays is None:
      return sources.Stream(self.batches(config, steps))
    order = self._order(config, steps)
    return sources.of_arrays(self.arrays, steps, config.mesh, **order)

  def batches(self, config: TrainConfig, steps: int) -> Batches:
    """Builds the batches of `source` as a stream on the host.

    Args:
      config, steps: as for `source`.
    """
    if self.stream is not None:
      return self.stream
    if isinstance(self.store, OnlineRows):
      read = {"batch_rows": config.batch_rows, "seed": config.seed}
      return shared.readers([self.store], **read)[0]
    order = self._order(config, steps)
    if self.arrays is not None:
      return streams.array_batches(self.arrays, **order)
    mesh = sharding.make_mesh(config.mesh, first=config.first_device)
    part = sharding.rows_part(mesh, config.batch_rows)
    return StoreBatches(self.store, **{**order, "epochs": None}, **part)

  def _order(self, config: TrainConfig, steps: int) -> dict[str, Any]:
    """What fixes the order; a store is read until the steps end."""
    rows = self.store.rows if self.arrays is None else len(self.arrays["x"])
    return {
      "batch_rows": config.batch_rows,
      "seed": config.seed,
      "epochs": -(-steps * config.batch_rows // rows),
    }


def arrays_hash(arrays: Mapping[str, Any]) -> str:
  """A hash of arrays by name.

  Args:
    arrays: NumPy or JAX arrays by name; their order matters.

  Returns:
    SHA-256 over names, dtypes, shapes and bytes, in hex.
  """
  total = hashlib.sha256()
  for name, array in arrays.items():
    array = np.ascontiguousarray(array)
    total.update(f"{name} {array.dtype} {array.shape}".encode())
    total.update(array.view(np.uint8).data)
  return total.hexdigest()


def given(x: Any, held_out: Any) -> Rows:
  """Converts the arguments of `fit` to rows.

  Args:
    x: an array [rows, d], a mapping of fields or a `Batch`; a `Store`; a `Mix`;
      `OnlineRows`; `Batches` with a position; or an iterator of batches.
    held_out: array, batch or store to evaluate on; if None, 5 % of the rows of an
      array in memory.

  Raises:
    InputError: rows are not finite, too few or all equal, a field has another
      number of rows, or there are no held-out rows or none with a target.
  """
  if isinstance(x, Store | Mix | OnlineRows):
    for store, _ in mixes.parts(x):
      quality.check_rows(store)
    held_out = _needed(held_out, "a store")
    target = x.moments["target"] if "target" in x.trained else None
    _check_target(target is not None, held_out)
    return Rows(store=x, held_out=held_out, stats=x.stats, target_stats=target)
  if hasattr(x, "get_state") and hasattr(x, "sample"):
    return _of_stream(x, held_out)
  if isinstance(x, Iterator):
    return _of_stream(IteratorBatches(map(_fields, x)), held_out)
  arrays = _fields(x)
  if arrays["x"].ndim < 2 or len(arrays["x"]) < 2:
    raise InputError(
      "x",
      f"an array of shape {list(arrays['x'].shape)}",
      "must be [rows, d] with at least 2 rows",
      "give one row per token",
    )
  _check_finite(arrays)
  _check_fields(arrays, held_out)
  if held_out is None:
    arrays, held_out = _split(arrays)
  return Rows(arrays=arrays, held_out=held_out, **_all_stats(arrays))


def _of_stream(stream: Batches, held_out: Any) -> Rows:
  held_out = _needed(held_out, "a stream of batches")
  sample = stream.sample(STATISTICS_ROWS)
  return Rows(stream=stream, held_out=held_out, **_all_stats(sample))


def _needed(held_out: Any, kind: str) -> Any:
  if held_out is None:
    raise InputError(
      "held_out",
      None,
      f"must be given if x is {kind}",
      "give an array or a store of rows that are not in the training data",
    )
  return held_out


def _fields(x: Any) -> dict[str, np.ndarray]:
  """Returns arrays by field, on the host."""
  if not isinstance(x, Batch | Mapping):
    x = np.asarray(x)
  batch = as_batch(x)
  named = {name: getattr(batch, name) for name in FIELDS}
  return {n: np.asarray(a) for n, a in named.items() if a is not None}


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
  for name, array in arrays.items():
    if np.issubdtype(array.dtype, np.floating):
      bad = int((~np.isfinite(array.reshape(len(array), -1)).all(-1)).sum())
      if bad:
        raise InputError(
          name,
          f"{bad} of {len(array)} rows",
          "must be finite, but have NaN or infinity",
          "remove these rows",
        )


def _check_fields(arrays: Mapping[str, np.ndarray], held_out: Any) -> None:
  """Checks that fields have one entry per row, also those to evaluate on."""
  rows = len(arrays["x"])
  for name, array in arrays.items():
    if len(array) != rows or (name == "target" and array.ndim < 2):
      shape = "[rows, d]" if name == "target" else "[rows, ...]"
      raise InputError(
        name,
        f"an array of shape {list(array.shape)}",
        f"must be {shape}, and x has {rows} rows",
        "give one entry per row",
      )
  _check_target("target" in arrays, held_out)


def _check_target(needed: bool, held_out: Any) -> None:
  if needed and _lacks_target(held_out):
    raise InputError(
      "held_out",
      type(held_out).__name__,
      "must have a target, since x has one",
      "give x and target by name, as for x",
    )


def _lacks_target(held_out: Any) -> bool:
  if isinstance(held_out, Store):
    return "target" not in held_out.trained
  if isinstance(held_out, Batch | Mapping) or hasattr(held_out, "shape"):
    return as_batch(held_out).target is None
  return False


def _split(
  arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], Batch]:
  """Splits arrays into training rows and 5 % held-out rows.

  The split does not depend on the seed, so that seeds can be compared.
  """
  rows = len(arrays["x"])
  order = shuffle.permutation(rows, shuffle.ARRAYS, 0, _SPLIT)
  count = max(1, round(HELD_OUT * rows))
  is_held_out = np.zeros(rows, bool)
  is_held_out[order[:count]] = True
  held_out = Batch(**{name: a[is_held_out] for name, a in arrays.items()})
  return {name: a[~is_held_out] for name, a in arrays.items()}, held_out


def _all_stats(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Computes the statistics of x, and of the target where there is one."""
  named = {"stats": "x", "target_stats": "target"}
  return {
    name: _stats(arrays[field], field) if field in arrays else None
    for name, field in named.items()
  }


def _stats(x: Any, field: str) -> dict[str, Any]:
  """Computes the mean and mean square of rows, in float64.

  Raises:
    InputError: all rows are equal, up to rounding.
  """
  wide = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
  square, mean = float(np.square(wide).sum(axis=-1).mean()), wide.mean(axis=0)
  if not square - float(np.sum(mean**2)) > 1e-12 * square:
    raise InputError(
      field,
      f"{len(wide)} equal rows",
      "must differ from row to row",
      "nothing can be learned from them",
    )
  if not quality.SMALLEST < square < quality.LARGEST:
    raise InputError(
      field,
      f"rows with a mean of |{field}|^2 of {square:.3g}",
      f"must have one in ({quality.SMALLEST}, {quality.LARGEST}), so that "
      "squares fit in float32",
      "scale them",
    )
  return {"mean": mean, "mean_square": square}
