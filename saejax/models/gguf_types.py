"""Types of tensors in GGUF files, and their conversion to float32.

Quantised tensors are blocks of 32 values w with a scale d, and m where there
is an offset (float16):
  Q8_0: w = d q, q int8;  Q4_0: w = d (q - 8);  Q4_1: w = d q + m,
where q in [0, 16) are the low, then the high four bits of 16 bytes.

Those named K are blocks of 256 values in groups with a scale s, and t where there
is an offset, of few bits:
  Q4_K, Q5_K: w = (d s) q - (m t), 8 groups with s, t in [0, 64);
  Q6_K: w = (d s) (q - 32), 16 groups with s int8.

References:
  ggml, src/ggml-quants.c (layout of blocks).
"""

from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

BLOCK, K_BLOCK = 32, 256  # values per block of quantised tensors


class Kind(NamedTuple):
  """A type of tensors.

  Attributes:
    name: name in ggml.
    values: values per block.
    bytes: bytes per block.
    decode: blocks [n, bytes] uint8 -> values [n, values] float32.
  """

  name: str
  values: int
  bytes: int
  decode: Callable[[np.ndarray], np.ndarray]


def _float32(blocks: np.ndarray) -> np.ndarray:
  return blocks.view("<f4")


def _float16(blocks: np.ndarray) -> np.ndarray:
  return blocks.view("<f2").astype(np.float32)


def _bfloat16(blocks: np.ndarray) -> np.ndarray:
  return blocks.view(ml_dtypes.bfloat16).astype(np.float32)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
  return _float16(blocks[:, :2]) * blocks[:, 2:].view(np.int8)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
  return _float16(blocks[:, :2]) * (_nibbles(blocks[:, 2:]) - np.float32(8))


def _q4_1(blocks: np.ndarray) -> np.ndarray:
  d, m = _float16(blocks[:, :2]), _float16(blocks[:, 2:4])
  values = _nibbles(blocks[:, 4:])
  values *= d
  values += m
  return values


def _nibbles(packed: np.ndarray) -> np.ndarray:
  """Low, then high four bits of bytes [n, 16], as float32 [n, 32]."""
  return np.concatenate([packed & 15, packed >> 4], axis=-1, dtype=np.float32)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
  return _k_groups(blocks[:, :16], _nibble_groups(blocks[:, 16:]))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
  # Bit g of byte i is the highest of value i in group g.
  bits = np.unpackbits(blocks[:, None, 16:48], axis=1, bitorder="little")
  return _k_groups(blocks[:, :16], _nibble_groups(blocks[:, 48:]) | bits << 4)


def _k_groups(head: np.ndarray, q: np.ndarray) -> np.ndarray:
  """Values of blocks by d, m and the 6-bit numbers of 8 groups.

  Args:
    head: [n, 16] bytes, d and m as float16, then 12 bytes: the numbers s and t of
      groups 0 to 3 in the low six bits of four bytes each; those of groups 4 to 7
      have their low four bits in the last four, t in the high half, and their
      highest two in the rest of the bytes before.
    q: [n, 8, 32] integers.
  """
  first, second, last = np.moveaxis(head[:, 4:].reshape(-1, 3, 4), 1, 0)
  s = [first & 63, last & 15 | (first >> 6) << 4]
  t = [second & 63, last >> 4 | (second >> 6) << 4]
  scale, offset = (
    _float16(number) * np.concatenate(parts, axis=1, dtype=np.float32)
    for number, parts in ((head[:, :2], s), (head[:, 2:4], t))
  )
  return (scale[..., None] * q.astype(np.float32) - offset[..., None]).reshape(
    -1, K_BLOCK
  )


def _nibble_groups(packed: np.ndarray) -> np.ndarray:
  """[n, 128] bytes -> [n, 8, 32]: of each 32 bytes the low, then the high bits."""
  each = packed.reshape(-1, 4, 32)
  return np.stack([each & 15, each >> 4], axis=2).reshape(-1, 8, 32)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
  low = blocks[:, :128].reshape(-1, 2, 64)
  low = np.concatenate([low & 15, low >> 4], axis=-1)  # [n, 2, 128]
  shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
  high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
  q = (low | high.reshape(low.shape) << 4).astype(np.int8) - np.int8(32)
  scale = _float16(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8)
  values = scale[..., None] * q.reshape(-1, 16, 16)
  return values.reshape(-1, K_BLOCK)


KINDS = {
  0: Kind("F32", 1, 4, _float32),
  1: Kind("F16", 1, 2, _float16),
  2: Kind("Q4_0", BLOCK, 18, _q4_0),
  3: Kind("Q4_1", BLOCK, 20, _q4_1),
  8: Kind("Q8_0", BLOCK, 34, _q8_0),
  12: Kind("Q4_K", K_BLOCK, 144, _q4_k),
  13: Kind("Q5_K", K_BLOCK, 176, _q5_k),
  14: Kind("Q6_K", K_BLOCK, 210, _q6_k),
  30: Kind("BF16", 1, 2, _bfloat16),
}
# Names of types that are not implemented, for errors.
OTHERS = {
  6: "Q5_0",
  7: "Q5_1",
  9: "Q8_1",
  10: "Q2_K",
  11: "Q3_K",
  15: "Q8_K",
}
