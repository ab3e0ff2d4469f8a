"""Permutations keyed by integers, equal on all machines and releases."""

import numpy as np

# First word of a key: the kind of permutation. Keys of a kind have one length.
BUCKET = 1
CHUNKS = 2
ROWS = 3
ARRAYS = 4
LAYERS = 5
BUFFER = 6
RESERVOIR = 7
TOKEN_LAYERS = 8
STREAM_CHUNKS = 9
STREAM_ROWS = 10
LANES = 11
DOCUMENTS = 12
ONLINE_HALVES = 13
ONLINE_MIX = 14


def permutation(size: int, *key: int) -> np.ndarray:
  """Returns a uniform permutation of range(size), fixed by size and key.

  It sorts the raw output of a counter-based generator, whose bit stream is
  stable across NumPy releases; `Generator.permutation` does not promise that.

  Args:
    size: size of the range.
    *key: integers that identify the permutation, the first one of the constants
      above.

  >>> permutation(4, ROWS, 0).tolist() == permutation(4, ROWS, 0).tolist()
  True
  """
  bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
  order = np.argsort(bits)  # with SIMD, but ties in any order
  drawn = bits[order]
  if (drawn[1:] == drawn[:-1]).any():
    order = np.argsort(bits, kind="stable")
  return order


def grouped(size: int, group: int, *key: int) -> np.ndarray:
  """Returns a permutation of groups of consecutive numbers.

  The order within each group does not change.

  Args:
    size: size of the range, a multiple of `group`.
    group: numbers per group; 1 is equivalent to `permutation`.
    *key: integers that identify the permutation.
  """
  order = permutation(size // group, *key)
  if group == 1:
    return order
  return (order[:, None] * group + np.arange(group)).reshape(-1)
