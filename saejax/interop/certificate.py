"""Parity certificates: two forward passes compared on stated rows.

Errors are the largest differences over the largest value. A latent that is
active in one pass alone counts as near a threshold where it is within 1e-5 of
what decides: its threshold, or another kept latent of the row. Those are
counted and left out, and so are their rows of x_hat.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from saejax import durable
from saejax.data.store import reader
from saejax.errors import InputError
from saejax.interop import folds, kinds
from saejax.interop.formats import Forward
from saejax.interop.record import Record

ROWS = 256  # random rows
GIVEN_ROWS = 4096  # most rows of a store
TOLERANCE = 1e-5
_BLOCK = 1 << 24  # latents computed at once


@dataclasses.dataclass(frozen=True)
class Rows:
  """Rows and what they are.

  Attributes:
    x: the rows.
    about: how they were made, JSON-serialisable.
  """

  x: Float[np.ndarray, "b d"]
  about: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Parity:
  """The comparison of two passes.

  Attributes:
    z_error, x_hat_error: largest difference over the largest value.
    l0_before, l0_after: active latents per row.
    near_threshold: latents that are active in one pass alone and lie at the
      threshold.
  """

  z_error: float
  x_hat_error: float
  l0_before: float
  l0_after: float
  near_threshold: int

  @property
  def holds(self) -> bool:
    """Whether both errors are within the tolerance."""
    return max(self.z_error, self.x_hat_error) <= TOLERANCE


def random_rows(record: Record, count: int = ROWS, seed: int = 0) -> Rows:
  """Normal rows on which latents lie on both sides of their thresholds.

  Their scale gives a typical pre-activation the size of a typical threshold.

  Args:
    record: the record.
    count: number of rows.
    seed: seed of the rows.
  """
  plain = folds.gate(record)
  theta = plain.kind.theta if isinstance(plain.kind, kinds.Threshold) else 0.5
  size = np.median(np.abs(theta - plain.b_enc)) + 1e-3
  norm = np.median(np.linalg.norm(plain.W_enc, axis=1))
  scale = float(size / max(norm, 1e-8))
  rng = np.random.default_rng(seed)
  x = scale * rng.standard_normal((count, record.d))
  if record.subtract_b_dec:
    x = x + record.b_dec
  if record.prep.kind == "affine":
    x = x * record.prep.scale + record.prep.centre
  about = {"kind": "normal", "rows": count, "seed": seed, "scale": scale}
  return Rows(np.asarray(x, np.float32), about)


def read_rows(path: str, count: int = GIVEN_ROWS) -> Rows:
  """Rows of a store or a .npy file, evenly spaced.

  Args:
    path: folder or URL of a store, or the file.
    count: most rows that are taken.

  Raises:
    InputError: there are no such rows.
  """
  if not path.endswith(".npy"):
    store = reader.open(path)
    numbers = np.concatenate([np.arange(*each) for each in store.intervals])
    which = numbers[_spread(len(numbers), count)]
    x, content = store.take(which, "x")["x"], store.content
    total = len(numbers)
  else:
    try:
      array = np.load(path, mmap_mode="r", allow_pickle=False)
      content = durable.checksum(path)[1]
    except (OSError, ValueError, EOFError) as error:
      rule = f"must be a .npy file of rows ({error})"
      raise InputError("rows", path, rule, "correct the path") from error
    if array.ndim != 2 or not len(array):
      rule = "must be an array [rows, d] with rows"
      raise InputError("rows", list(array.shape), rule, "reshape it")
    x, total = array[_spread(len(array), count)], len(array)
  about = {"kind": "given", "rows": len(x), "of": total, "content": content}
  return Rows(np.asarray(x, np.float32), about)


def _spread(total: int, count: int) -> np.ndarray:
  return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))


def compare(
  want: Forward, got: Forward, record: Record, rows: Rows, *, factor: Any = 1.0
) -> Parity:
  """Compares two passes.

  Args:
    want: the pass of the source.
    got: the other pass.
    record: the record of the source, for its thresholds.
    rows: the rows.
    factor: what latents of `got` are multiples of, one or per latent.

  Raises:
    InputError: the rows have another width.
  """
  x = rows.x
  if x.ndim != 2 or x.shape[1] != record.d:
    rule = f"must be rows of width {record.d}"
    raise InputError("rows", list(x.shape), rule, "pass rows of its site")
  plain = folds.gate(record)
  theta = plain.kind.theta if isinstance(plain.kind, kinds.Threshold) else None
  step = max(1, _BLOCK // record.n)
  blocks = [
    _block(want, got, x[i : i + step], theta, factor)
    for i in range(0, len(x), step)
  ]
  d_z, d_x, most_z, most_x, before, after, near = np.asarray(blocks).T
  return Parity(
    z_error=float(d_z.max() / max(most_z.max(), 1e-30)),
    x_hat_error=float(d_x.max() / max(most_x.max(), 1e-30)),
    l0_before=float(before.sum() / len(x)),
    l0_after=float(after.sum() / len(x)),
    near_threshold=int(near.sum()),
  )


def _block(want: Forward, got: Forward, x, theta, factor) -> list[float]:
  z, x_hat = want(np.asarray(x, np.float64))
  z_got, x_hat_got = got(np.asarray(x, np.float64))
  z_got = np.asarray(z_got, np.float64) / factor
  near = _near(z, z_got, theta)
  clear = ~near.any(axis=1)
  most = lambda a: float(np.abs(a).max(initial=0.0))
  return [
    most(np.where(near, 0, z - z_got)),
    most((x_hat - x_hat_got)[clear]),
    most(z),
    most(x_hat),
    float(np.count_nonzero(z)),
    float(np.count_nonzero(z_got)),
    float(near.sum()),
  ]


def _near(z, z_got, theta) -> np.ndarray:
  """Entries that are active in one pass alone, at what decides on them."""
  near = np.zeros(z.shape, bool)
  close = TOLERANCE * max(float(np.abs(z).max(initial=0.0)), 1e-30)
  for row, i in np.argwhere((z != 0) != (z_got != 0)):
    value = z[row, i] or z_got[row, i]
    if theta is not None:
      gap = abs(value - theta[i])
    else:  # a tie with a latent that the other pass kept
      other = z_got[row] if z[row, i] else z[row]
      gap = np.abs(np.abs(other[other != 0]) - abs(value)).min(initial=np.inf)
    near[row, i] = gap < close
  return near
