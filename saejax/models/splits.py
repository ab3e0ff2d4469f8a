"""A forward pass in two parts: the layers before a site, and those after it.

Passes that differ at one site only share what is before it:

  read(model, ids, mask, [start(model, site), site])   once
  hidden(model, ids, mask, tensors)                    for each tensor at the site

The second part is the forward pass with given tensors in place of those of its
taps, so that every family has it: no output depends on the layers before the
start any more, and XLA leaves them out, scanned ones too.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.models import family as family_lib
from saejax.models import mesh, model, stack, taps

RESIDUAL = ("resid_pre", "resid_mid", "resid_post")


def start(model_: model.Model, site: str) -> str:
  """Returns the latest point of the residual stream at or before a site.

  All that follows it depends on the tensor there and on positions alone. A site
  outside layers is its own start.

  Args:
    model_: the model.
    site: the site, in any of the forms of `taps`.

  Raises:
    InputError: there is no such site.
  """
  layer, point = taps.parse(site, model_.family)
  found = taps.resolve(model_, layer, point)
  if point in family_lib.OUTER_POINTS:
    return found.name
  points = model.FAMILIES[model_.family].points(model_.config)
  before = points[: points.index(point) + 1]
  latest = [one for one in before if one in RESIDUAL][-1]
  return taps.resolve(model_, layer, latest).name


def hidden(
  model_: model.Model,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  tensors: Mapping[str, Float[Array, "B T ..."]],
) -> Float[Array, "B T d"]:
  """Computes the last hidden state from given tensors on, compiled.

  Args:
    model_: the model.
    ids: token ids; their embeddings are read only where the start is `embed`.
    mask: which tokens are real.
    tensors: tensors by name of the site in saejax: that of the start, and that of
      the site where they differ.
  """
  return mesh.settled(_hidden(model_, ids, mask, dict(tensors)), model_.mesh)


@jax.jit
def _hidden(
  model_: model.Model, ids: Array, mask: Array, tensors: dict[str, Array]
) -> Array:
  put = {name: partial(_given, h) for name, h in tensors.items()}
  ids, mask = jnp.asarray(ids), jnp.asarray(mask)
  return model_.hidden(ids, mask, tap=stack.Edits(put))


def _given(tensor: Array, h: Array) -> Array:
  return tensor.astype(h.dtype)
