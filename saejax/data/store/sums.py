"""Statistics of rows that can be summed bucket by bucket.

Sums are accumulated in float64, chunk by chunk in row order, so that the sums of
a bucket depend on its rows alone and a resumed harvest gives the same bits as an
uninterrupted one. Non-finite rows are counted and left out of the sums. A column
with several axes per row is flattened to one vector per row.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_BINS_PER_OCTAVE = 64  # norm quantiles to 0.5 %
_CHUNK_ROWS = 4096
_BLOCK_BYTES = 2**19  # of float64: two blocks stay in a cache of 2 MB
_QUANTILES = (0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)


@dataclasses.dataclass(frozen=True)
class Sums:
  """Sums over finite rows x [rows, d].

  Attributes:
    rows: finite rows.
    nonfinite: rows with a non-finite value.
    infinite: rows with an infinite value, among the non-finite ones.
    x: sum of x, [d].
    square: sum of x^2, [d].
    max_abs: largest absolute value.
    norms: number of rows per bin floor(64 log2 |x|) of the row norm; the bin of
      norm 0 is None.
  """

  rows: int
  nonfinite: int
  infinite: int
  x: np.ndarray
  square: np.ndarray
  max_abs: float
  norms: Mapping[int | None, int]

  def to_json(self) -> dict[str, Any]:
    """Returns the sums as a dict that JSON can store."""
    norms = [[k, n] for k, n in self.norms.items()]
    norms.sort(key=lambda pair: (pair[0] is not None, pair[0] or 0))
    return {
      "rows": self.rows,
      "nonfinite": self.nonfinite,
      "infinite": self.infinite,
      "x": self.x.tolist(),
      "square": self.square.tolist(),
      "max_abs": self.max_abs,
      "norms": norms,
    }

  @classmethod
  def from_json(cls, record: Mapping[str, Any]) -> "Sums":
    """Reads sums.

    Args:
      record: a dict written by `to_json`.
    """
    return cls(
      rows=record["rows"],
      nonfinite=record["nonfinite"],
      infinite=record["infinite"],
      x=np.asarray(record["x"], np.float64),
      square=np.asarray(record["square"], np.float64),
      max_abs=record["max_abs"],
      norms=dict(record["norms"]),
    )


def summed(x: np.ndarray, pool: futures.Executor | None = None) -> Sums:
  """Computes the sums of rows.

  Args:
    x: rows [rows, ...] of any float type.
    pool: threads that share the work; the result is the same bit for bit.

  >>> summed(np.ones((3, 2))).x.tolist()
  [3.0, 3.0]
  """
  x = x.reshape(len(x), math.prod(x.shape[1:]))
  chunks = [x[i : i + _CHUNK_ROWS] for i in range(0, len(x), _CHUNK_ROWS)]
  parts = (
    map(_of_chunk, chunks) if pool is None else pool.map(_of_chunk, chunks)
  )
  return merge(parts, d=x.shape[-1])


def _of_chunk(x: np.ndarray) -> Sums:
  nonfinite = infinite = 0
  found = _moments(x)
  if not np.isfinite(found.norm).all():
    wide = x.astype(np.float64)
    finite = np.isfinite(wide).all(axis=-1)
    nonfinite = int(len(x) - finite.sum())
    infinite = int(np.isinf(wide).any(axis=-1).sum())
    found = _moments(x[finite])
  norm = found.norm
  bins = np.floor(_BINS_PER_OCTAVE * np.log2(norm[norm > 0])).astype(int)
  which, counts = np.unique(bins, return_counts=True)
  norms: dict[int | None, int] = dict(
    zip(which.tolist(), counts.tolist(), strict=True)
  )
  zeros = int((norm == 0).sum())
  if zeros:
    norms[None] = zeros
  return Sums(
    rows=len(norm),
    nonfinite=nonfinite,
    infinite=infinite,
    x=found.x,
    square=found.square,
    max_abs=found.max_abs,
    norms=norms,
  )


class _Moments(NamedTuple):
  """Sums over rows, the norm of each [rows], and the largest absolute value."""

  x: np.ndarray
  square: np.ndarray
  norm: np.ndarray
  max_abs: float


def _moments(x: np.ndarray) -> _Moments:
  """Sums rows in order, in blocks that stay in a processor's cache."""
  block = max(1, _BLOCK_BYTES // (8 * max(1, x.shape[-1])))
  # The first row of each is the sum so far, so that blocks do not matter.
  wide = np.zeros((1 + min(block, len(x)), x.shape[-1]))
  square = np.zeros_like(wide)
  norm = np.empty(len(x))
  largest = 0.0
  for start in range(0, len(x), block):
    part = _native(x[start : start + block])
    rows = len(part)
    np.copyto(wide[1 : 1 + rows], part)
    np.multiply(
      wide[1 : 1 + rows], wide[1 : 1 + rows], out=square[1 : 1 + rows]
    )
    np.add.reduce(square[1 : 1 + rows], -1, out=norm[start : start + rows])
    first = 0 if start else 1
    for sums in (wide, square):
      sums[0] = np.add.reduce(sums[first : 1 + rows], 0)
    largest = max(
      largest, float(part.max(initial=0)), -float(part.min(initial=0))
    )
  return _Moments(wide[0], square[0], np.sqrt(norm), largest)


def _native(x: np.ndarray) -> np.ndarray:
  """The same values in a type that NumPy computes in: bfloat16 as float32."""
  if x.dtype != ml_dtypes.bfloat16:
    return x
  bits = np.left_shift(x.view(np.uint16), np.uint32(16), dtype=np.uint32)
  return bits.view(np.float32)


def merge(parts: Iterable[Sums], *, d: int) -> Sums:
  """Adds sums in the given order, which determines the bits of the result.

  Args:
    parts: the sums.
    d: width of a row, for the case of no parts.
  """
  rows = nonfinite = infinite = 0
  x, square, max_abs = np.zeros(d), np.zeros(d), 0.0
  norms: dict[int | None, int] = {}
  for part in parts:
    rows += part.rows
    nonfinite += part.nonfinite
    infinite += part.infinite
    x = x + part.x
    square = square + part.square
    max_abs = max(max_abs, part.max_abs)
    for key, count in part.norms.items():
      norms[key] = norms.get(key, 0) + count
  return Sums(rows, nonfinite, infinite, x, square, max_abs, norms)


def stats(sums: Sums, shape: tuple[int, ...]) -> dict[str, Any]:
  """Computes the moments and quantiles of a column, as stored in stats.json.

  Args:
    sums: sums over all rows.
    shape: shape of the column per row.

  Returns:
    mean and variance of this shape; mean_square, the mean of |x|^2 over rows;
    norm_quantiles {q: |x|}; mean_over_std_max, the largest |mean| / std over
    dimensions (above about 30, bfloat16 loses precision); max_abs;
    nonfinite_rows, and infinite_rows among them.
  """
  rows = max(sums.rows, 1)
  mean = sums.x / rows
  variance = np.maximum(sums.square / rows - mean * mean, 0.0)
  ratio = np.abs(mean) / np.sqrt(np.maximum(variance, 1e-300))
  ratio = np.where(variance > 0, ratio, 0.0)
  return {
    "mean": mean.reshape(shape).tolist(),
    "variance": variance.reshape(shape).tolist(),
    "mean_square": math.fsum(sums.square.tolist()) / rows,
    "norm_quantiles": _quantiles(sums.norms),
    "mean_over_std_max": float(ratio.max(initial=0.0)),
    "max_abs": sums.max_abs,
    "nonfinite_rows": sums.nonfinite,
    "infinite_rows": sums.infinite,
  }


def pooled(moments: Mapping[str, Any]) -> dict[str, Any]:
  """Pools the moments of a column over all axes except the last.

  Args:
    moments: the result of `stats`, with mean and variance as arrays [..., d].

  Returns:
    The moments, with mean and variance [d] and mean_square per vector [d].
  """
  mean, variance = moments["mean"], moments["variance"]
  if mean.ndim < 2:
    return dict(moments)
  d = mean.shape[-1]
  means, variances = mean.reshape(-1, d), variance.reshape(-1, d)
  center = means.mean(0)
  square = (variances + means * means).mean(0)
  return dict(moments) | {
    "mean": center,
    "variance": np.maximum(square - center * center, 0.0),
    "mean_square": moments["mean_square"] / len(means),
  }


def _quantiles(norms: Mapping[int | None, int]) -> dict[str, float]:
  if not norms:
    return {}
  keys = sorted(norms, key=lambda k: -math.inf if k is None else k)
  middle = [
    0.0 if k is None else 2.0 ** ((k + 0.5) / _BINS_PER_OCTAVE) for k in keys
  ]
  reached = np.cumsum([norms[k] for k in keys])
  where = np.searchsorted(reached, np.asarray(_QUANTILES) * reached[-1])
  return {str(q): middle[i] for q, i in zip(_QUANTILES, where, strict=True)}
