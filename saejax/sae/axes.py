"""Axis names of the arrays of an SAE, of optimizer moments, or of a part."""

from typing import Any

import jax
import numpy as np

from saejax.sae import part
from saejax.sae.part import Axes
from saejax.sae.sae import SAE

LATENT = "n"  # one row per latent
HEAD = "h"  # one row per head of latents
STAGE = "n_stage"  # one row per latent of an SAE inside another's prep


def axes(tree: Any, *, stacked: bool = False) -> Any:
  """Names the axes of each array, in a tree of equal structure.

  An array's names are those that its field declares (see `part`), wherever the
  part stands in the tree: nested in other parts, or in the state of an
  optimizer, whose moments are SAEs too. `n` of an SAE inside another SAE
  becomes `n_stage`: its latents are not those of the whole.

  Args:
    tree: arrays or shapes.
    stacked: whether every array has a leading axis of members, which is not
      among the names.

  Returns:
    A tuple of names for each array, () for a scalar, and None for an array
    that is not shaped as its field says or belongs to no part. Use it as
    `jax.tree.map(f, tree, axes(tree))`.

  Raises:
    TypeError: a part holds an array that its class does not declare.
  """
  leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
  return structure.unflatten(
    _axes(tree, path, len(np.shape(leaf)) - stacked) for path, leaf in leaves
  )


def _axes(node: Any, path, rank: int) -> Axes | None:
  """The axes of the array at a path below a node."""
  field, saes = None, 0
  for key in path:
    saes += isinstance(node, SAE)
    match key:
      case jax.tree_util.GetAttrKey(name=name):
        if saes or isinstance(node, part.Part):
          field = type(node), name
        node = getattr(node, name)
      case jax.tree_util.SequenceKey(idx=at) | jax.tree_util.DictKey(key=at):
        node = node[at]
      case _:
        return None
  if field is None:
    return None if rank else ()
  names = part.axes_of(*field, rank)
  if names and saes > 1 and names[0] == LATENT:
    return STAGE, *names[1:]
  return names if rank else ()
