"""Arrays of a checkpoint that are read by parts.

A part is a slice with start and stop per axis, so that a device's share of a
weight is read without the rest, also where a family transposes, splits or joins
what a checkpoint stores.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

Part: TypeAlias = tuple[slice, ...]


class Lazy(NamedTuple):
  """An array that is not read yet.

  Attributes:
    shape: its shape.
    read: part -> the array there.
  """

  shape: tuple[int, ...]
  read: Callable[[Part], np.ndarray]

  @property
  def T(self) -> "Lazy":
    """The transposed array."""
    return Lazy(self.shape[::-1], lambda part: self.read(part[::-1]).T)

  def split(self, widths: Sequence[int]) -> "list[Lazy]":
    """Returns consecutive pieces of the last axis.

    Args:
      widths: size of each.
    """
    stops = np.cumsum(widths).tolist()
    return [
      self._cut(stop - width, width)
      for stop, width in zip(stops, widths, strict=True)
    ]

  def _cut(self, offset: int, width: int) -> "Lazy":
    def read(part: Part) -> np.ndarray:
      last = slice(part[-1].start + offset, part[-1].stop + offset)
      return self.read((*part[:-1], last))

    return Lazy((*self.shape[:-1], width), read)


def whole(shape: Sequence[int]) -> Part:
  """Returns the part that is all of an array.

  Args:
    shape: shape of the array.
  """
  return tuple(slice(0, size) for size in shape)


def joined(pieces: Sequence[Lazy], count: int, dtype: DTypeLike) -> Lazy:
  """Joins arrays [..., o_j] along their last axis, in parts.

  Part s has the s-th of `count` equal shares of each array, one after the other,
  so that a device with one part has its share of all of them.

  Args:
    pieces: the arrays, equal but for the last axis.
    count: number of parts, a divisor of every o_j.
    dtype: their dtype.

  Returns:
    [..., count, sum(o_j) / count]; its last axis is read as a whole.
  """
  widths = [piece.shape[-1] // count for piece in pieces]
  total = sum(widths)

  def read(part: Part) -> np.ndarray:
    *rest, shares, _ = part
    sizes = [p.stop - p.start for p in (*rest, shares)]
    found = np.empty((*sizes, total), dtype)
    for s in range(shares.start, shares.stop):
      at = 0
      for piece, width in zip(pieces, widths, strict=True):
        own = slice(s * width, (s + 1) * width)
        found[..., s - shares.start, at : at + width] = piece.read((*rest, own))
        at += width
    return found

  return Lazy((*pieces[0].shape[:-1], count, total), read)
