"""How specific latents are: depths of common ancestors of their top items.

Items are of nodes of a taxonomy, such as species; the depth of two nodes is the number
of levels that their paths from the top share:

  equal species of seven levels: 7        different kingdoms: 0

The depth of a latent is the mean over the pairs of its top items; one that has fewer
top items than are asked for has none. Over the groups of a Matryoshka SAE it should
rise: the first latents stand for general concepts.

References:
  Pach et al., Sparse Autoencoders Learn Monosemantic Features in Vision-Language
  Models, 2025, arXiv:2504.02821, section 5.2: iNaturalist 2021, 16 images.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saejax.errors import InputError

_PAIRS = 2**22  # pairs of items that are compared at once


@dataclasses.dataclass(frozen=True, eq=False)
class Taxonomy:
  """A forest of named nodes.

  Attributes:
    names: names of the nodes [V].
    path: number of the ancestor of each node at each level, from the top, that is
      the node itself at its own level; -1 below.
  """

  names: tuple[str, ...]
  path: Int[np.ndarray, "V levels"]

  @property
  def depth(self) -> Int[np.ndarray, "V"]:
    """Depth of each node; 1 at the top."""
    return (self.path >= 0).sum(axis=1)

  def nodes(self, names: Sequence[str]) -> Int[np.ndarray, "N"]:
    """Numbers of nodes.

    Args:
      names: their names.

    Raises:
      InputError: there is no such node.
    """
    number = {name: i for i, name in enumerate(self.names)}
    for name in names:
      if name not in number:
        rule = f"must be one of the {len(number)} nodes of the taxonomy"
        raise InputError("names", name, rule, "add it with its parent")
    return np.array([number[name] for name in names], np.int64)

  def common(
    self, a: Int[np.ndarray, "*p"], b: Int[np.ndarray, "*p"]
  ) -> Int[np.ndarray, "*p"]:
    """Depth of the lowest common ancestor of nodes; 0 for none.

    Args:
      a, b: numbers of nodes.
    """
    ours, theirs = self.path[a], self.path[b]
    return ((ours == theirs) & (ours >= 0)).sum(axis=-1)


def taxonomy(parents: Mapping[str, str | None]) -> Taxonomy:
  """Builds a taxonomy from the parent of each node.

  Args:
    parents: name of the parent of each node; None or an empty text at the top.

  Raises:
    InputError: there are no nodes, a parent is not a node, or there is a cycle.

  >>> tree = taxonomy({"animal": None, "cat": "animal", "dog": "animal"})
  >>> int(tree.common(*tree.nodes(["cat", "dog"])))
  1
  """
  if not parents:
    raise InputError("parents", 0, "must have a node", "give a taxonomy")
  number = {name: i for i, name in enumerate(parents)}
  paths: dict[str, tuple[int, ...]] = {}
  for name in parents:
    trail, at = [], name
    while at and at not in paths:
      if at not in parents:
        rule = f"must be a node itself: it is the parent of {trail[-1]}"
        raise InputError("parents", at, rule, "give it a parent, or None")
      if at in trail:
        cycle = " > ".join([*trail[trail.index(at) :], at])
        rule = "must have no cycle"
        raise InputError("parents", cycle, rule, "make one of them a top node")
      trail.append(at)
      at = parents[at]
    path = paths[at] if at else ()
    for node in reversed(trail):
      path = (*path, number[node])
      paths[node] = path
  levels = max(map(len, paths.values()))
  table = np.full((len(paths), levels), -1, np.int64)
  for name, path in paths.items():
    table[number[name], : len(path)] = path
  return Taxonomy(tuple(parents), table)


@dataclasses.dataclass(frozen=True, eq=False)
class Depths:
  """Depths of latents.

  Attributes:
    depth: mean depth over pairs of top items of each latent; NaN for none.
    mode: most frequent depth over pairs, the lowest of equally frequent ones; -1
      for none.
  """

  depth: Float[np.ndarray, "n"]
  mode: Int[np.ndarray, "n"]

  @property
  def rounded(self) -> Float[np.ndarray, "n"]:
    """The mean depth as a whole level, as the paper's tables."""
    return np.round(self.depth)

  def by_group(self, ends: Sequence[int]) -> list[dict[str, float | int]]:
    """Averages depths over the groups of a Matryoshka SAE.

    Args:
      ends: latents up to each group's end, ascending; the last is n.

    Returns:
      For each group its latents, how many of them have a depth, and the mean
      of their depths and whole levels; NaN for none.

    Raises:
      InputError: the ends do not ascend to the number of latents.
    """
    starts = [0, *ends[:-1]]
    n = len(self.depth)
    if list(ends) != sorted(set(ends)) or not ends or ends[-1] != n:
      rule = f"must ascend to {n}, the number of latents"
      raise InputError(
        "ends", ",".join(map(str, ends)), rule, "give all groups"
      )
    found: list[dict[str, float | int]] = []
    for start, stop in zip(starts, ends, strict=True):
      own = self.depth[start:stop]
      live = own[~np.isnan(own)]
      mean = lambda values: (
        float(values.mean()) if len(values) else float("nan")
      )
      found.append(
        {
          "latents": stop - start,
          "with_depth": len(live),
          "depth": mean(live),
          "level": mean(np.round(live)),
        }
      )
    return found

  def record(self) -> dict[str, Any]:
    """Returns the numbers over all latents, for results.json."""
    group = self.by_group([len(self.depth)])[0]
    return {"taxonomy_" + k: v for k, v in group.items()}


def depths(
  tree: Taxonomy, node: Int[np.ndarray, "N"], top: Int[np.ndarray, "n c"]
) -> Depths:
  """Computes the depth of each latent; see the module.

  Args:
    tree: the taxonomy.
    node: node of each item.
    top: top items of each latent, such as `Summary.top_rows`, -1 where there are
      fewer; those latents have no depth.

  Raises:
    InputError: a latent keeps fewer than two items, or an item has no node.
  """
  n, c = top.shape
  if c < 2:
    rule = "must have at least two items for each latent"
    raise InputError("top", c, rule, "keep more of them")
  if len(node) <= top.max(initial=-1):
    rule = f"must have a node for each of {top.max() + 1} items"
    raise InputError("node", len(node), rule, "give the nodes of all items")
  first, second = np.triu_indices(c, 1)
  mean, mode = np.full(n, np.nan), np.full(n, -1)
  latents = np.flatnonzero((top >= 0).all(axis=1))
  block = max(1, _PAIRS // len(first))
  for start in range(0, len(latents), block):
    part = latents[start : start + block]
    own = np.asarray(node)[top[part]]
    depth = tree.common(own[:, first], own[:, second])
    mean[part] = depth.mean(axis=1)
    levels = np.arange(tree.path.shape[1] + 1)
    often = (depth[:, :, None] == levels).sum(axis=1)
    mode[part] = often.argmax(axis=1)
  return Depths(mean, mode)
