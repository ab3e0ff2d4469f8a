"""Permutations keyed by integers, equal on all machines and releases."""

import numpy as np

# First word of a key: what is permuted. Keys of one kind have one length.
BUCKET = 1
CHUNKS = 2
ROWS = 3
ARRAYS = 4
LAYERS = 5
BUFFER = 6
RESERVOIR = 7
TOKEN_LAYERS = 8


def permutation(size: int, *key: int) -> np.ndarray:
  """A uniform permutation of range(size), a pure function of size and key.

  Sorts the raw output of a counter-based generator: bit streams are stable
  across NumPy releases, which `Generator.permutation` does not promise.
  """
  bits = np.random.Philox(np.random.SeedSequence(key))
  return np.argsort(bits.random_raw(size), kind="stable")


def grouped(size: int, group: int, *key: int) -> np.ndarray:
  """A permutation of groups of consecutive numbers, kept in order inside.

  Args:
    size: size of the range, a multiple of group.
    group: numbers per group; 1 for `permutation`.
    *key: names the permutation.
  """
  order = permutation(size // group, *key)
  if group == 1:
    return order
  return (order[:, None] * group + np.arange(group)).reshape(-1)
