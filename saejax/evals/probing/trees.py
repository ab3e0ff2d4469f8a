"""Decision trees of Gini impurity (CART), for small tables.

A node is divided at the feature j and threshold t that leave the smallest

  sum over sides of rows * (1 - sum_c p_c^2)

where both sides have at least `min_leaf` rows and the node at least `min_split`, up
to `depth`. A leaf scores a class by its share of the leaf's training rows.

References:
  Breiman et al., Classification and Regression Trees, 1984.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int

# The grid of the mosaic reference.
DEPTHS, MIN_SPLITS, MIN_LEAVES = (3, 5, 7, 9), (2, 5, 10), (1, 2, 4)
_BLOCK_ENTRIES = 2**22  # of features sorted at once


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
  """A fitted tree; node 0 is the root.

  Attributes:
    feature: feature of each node; -1 for a leaf.
    threshold: rows with the feature at most this go left.
    left, right: numbers of the children.
    share: share of each class in the node.
  """

  feature: Int[np.ndarray, "N"]
  threshold: Float[np.ndarray, "N"]
  left: Int[np.ndarray, "N"]
  right: Int[np.ndarray, "N"]
  share: Float[np.ndarray, "N C"]

  def score(self, x: Float[np.ndarray, "D n"]) -> Float[np.ndarray, "D C"]:
    """Shares of classes less 1/2 for one class (above 0 is positive), else shares.

    Args:
      x: rows.
    """
    node = np.zeros(len(x), np.int64)
    while (inner := self.feature[node] >= 0).any():
      at = node[inner]
      low = x[inner, self.feature[at]] <= self.threshold[at]
      node[inner] = np.where(low, self.left[at], self.right[at])
    share = self.share[node]
    return share - 0.5 if share.shape[1] == 1 else share


def fit(
  x: Float[np.ndarray, "D n"],
  y: Bool[np.ndarray, "D C"],
  *,
  depth: int,
  min_split: int = 2,
  min_leaf: int = 1,
) -> Tree:
  """Fits a tree.

  Args:
    x: rows.
    y: class of each row, one-hot; or one column for two classes.
    depth: largest number of divisions above a leaf.
    min_split: smallest number of rows of a node that is divided.
    min_leaf: smallest number of rows of a leaf.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  nodes: list[list] = []

  def grow(rows: np.ndarray, left_depth: int) -> int:
    number = len(nodes)
    nodes.append([-1, 0.0, 0, 0, y[rows].mean(axis=0)])
    pure = (y[rows] == y[rows[0]]).all()
    if left_depth and len(rows) >= max(min_split, 2 * min_leaf) and not pure:
      found = _division(x[rows], _hot(y[rows]), min_leaf)
      if found is not None:
        j, t = found
        low = x[rows, j] <= t
        nodes[number][:2] = j, t
        nodes[number][2] = grow(rows[low], left_depth - 1)
        nodes[number][3] = grow(rows[~low], left_depth - 1)
    return number

  grow(np.arange(len(x)), depth)
  feature, threshold, left, right, share = zip(*nodes, strict=True)
  return Tree(
    feature=np.array(feature),
    threshold=np.array(threshold),
    left=np.array(left),
    right=np.array(right),
    share=np.stack(share),
  )


def settings(
  depths: Sequence[int] = DEPTHS,
  min_splits: Sequence[int] = MIN_SPLITS,
  min_leaves: Sequence[int] = MIN_LEAVES,
) -> dict:
  """Returns the fits of a grid, for `pooled_classes.fit`.

  Args:
    depths, min_splits, min_leaves: values of each setting.
  """
  return {
    (d, s, l): partial(fit, depth=d, min_split=s, min_leaf=l)
    for d, s, l in itertools.product(depths, min_splits, min_leaves)
  }


def _hot(y: np.ndarray) -> np.ndarray:
  return np.concatenate([1 - y, y], axis=1) if y.shape[1] == 1 else y


def _division(x, y, min_leaf: int) -> tuple[int, float] | None:
  """The feature and threshold of least impurity, None if none lowers it."""
  rows = len(x)
  left = np.arange(1, rows)[:, None]
  total = y.sum(axis=0)
  least = rows - float((total * total).sum()) / rows - 1e-9
  best, step = None, max(1, _BLOCK_ENTRIES // (rows * y.shape[1]))
  for start in range(0, x.shape[1], step):
    part = x[:, start : start + step]
    order = part.argsort(axis=0, kind="stable")
    value = np.take_along_axis(part, order, axis=0)
    low = y[order].cumsum(axis=0)[:-1]  # [rows - 1, features, classes]
    square = lambda count: (count * count).sum(axis=-1)
    # rows * Gini of both sides
    impurity = rows - square(low) / left - square(total - low) / (rows - left)
    small = (left < min_leaf) | (rows - left < min_leaf)
    impurity[(value[1:] <= value[:-1]) | small] = np.inf
    i, j = np.unravel_index(impurity.argmin(), impurity.shape)
    if impurity[i, j] < least:
      least = float(impurity[i, j])
      below, above = value[i, j], value[i + 1, j]
      middle = (below + above) / 2  # of neighbouring floats it may be the upper
      best = start + int(j), float(middle if middle < above else below)
  return best
