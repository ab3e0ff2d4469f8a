"""A model with edits of one site, of which the layers before run once a batch.

Edits act on the rows of a harvest: the tokens that its rules keep and whose norm
at the site that is read is at most a limit. All others keep their activations.
"""

from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from saejax.models import edits as edits_lib
from saejax.models import mesh, splits, taps
from saejax.models.model import Model


class Tokens(Protocol):
  """A forward batch, such as `data.text.windows.Batch`.

  Attributes:
    ids: token ids [B, T].
    mask: which tokens are real [B, T].
    keep: which tokens are rows [B, T].
    doc: document of each token [B, T]; a window has tokens of one.
  """

  @property
  def ids(self) -> np.ndarray: ...

  @property
  def mask(self) -> np.ndarray: ...

  @property
  def keep(self) -> np.ndarray: ...

  @property
  def doc(self) -> np.ndarray: ...


class Reading:
  """A batch that has passed the layers before a site.

  Args:
    model: the model.
    site: the site that is edited, in any of the forms of `models.taps`.
    batch: the tokens.
    source: an earlier site that edits read (a transcoder's); by default the
      site itself.
    limit: largest norm of a row at the source.

  Attributes:
    site, source: names in saejax.
    ids, mask: the tokens.
    tensors: activations by site: those of the start of the second part, of the
      source and of the site.
    rows: which tokens are rows [B, T].

  Raises:
    InputError: there is no such site.
  """

  def __init__(
    self,
    model: Model,
    site: str,
    batch: Tokens,
    *,
    source: str = "",
    limit: float = np.inf,
  ):
    self.model = model
    self.site = name(model, site)
    self.source = name(model, source) if source else self.site
    self.start = splits.start(model, self.site)
    self.ids, self.mask = jnp.asarray(batch.ids), jnp.asarray(batch.mask)
    names = dict.fromkeys((self.start, self.source, self.site))
    self.tensors = taps.read(model, self.ids, self.mask, list(names))
    keep = jnp.asarray(batch.keep)
    self.rows = _rows(self.tensors[self.source], keep, jnp.float32(limit))

  @property
  def x(self) -> Float[Array, "B T d"]:
    """Activations that an SAE reads, float32, with heads joined."""
    return _joined(self.tensors[self.source])

  @property
  def target(self) -> Float[Array, "B T d"]:
    """Activations of the site, in the same form."""
    return _joined(self.tensors[self.site])

  def edited(
    self, edit: edits_lib.Edit, rows: Bool[Array, "B T"] | None = None
  ) -> Array:
    """Returns the activations of the site with an edit of the rows.

    Args:
      edit: the edit, see `edits.prepared`; on the devices of the model.
      rows: which tokens are rows, by default those of the harvest.
    """
    context = _context(self.ids, self.mask, self.x, self.site, self.source)
    h = _edited(
      edit,
      self.tensors[self.site],
      context,
      self.rows if rows is None else rows,
    )
    return mesh.settled(h, self.model.mesh)

  def hidden(self, h: Array | None = None) -> Float[Array, "B T d"]:
    """Computes the last hidden state.

    Args:
      h: activations of the site; by default those of the model.
    """
    given = {self.start: self.tensors[self.start]}
    given[self.site] = self.tensors[self.site] if h is None else h
    return splits.hidden(self.model, self.ids, self.mask, given)


def name(model: Model, site: str) -> str:
  """Returns the name of a site in saejax.

  Args:
    model: the model.
    site: the site, in any of the forms of `models.taps`.

  Raises:
    InputError: there is no such site.
  """
  return taps.resolve(model, *taps.parse(site, model.family)).name


def prepared(model: Model, edit: edits_lib.AnyEdit) -> edits_lib.Edit:
  """Returns an edit as `Reading.edited` takes it, on the devices of a model.

  Args:
    model: the model.
    edit: the edit.
  """
  return mesh.put(edits_lib.prepared(edit), model.mesh)


@jax.jit
def _joined(h: Array) -> Array:
  return h.reshape(*h.shape[:2], -1).astype(jnp.float32)


@jax.jit
def _rows(h: Array, keep: Array, limit: Array) -> Array:
  norm = jnp.linalg.norm(
    h.reshape(*h.shape[:2], -1).astype(jnp.float32), axis=-1
  )
  return keep & (norm <= limit)


@partial(jax.jit, static_argnames=("site", "source"))
def _context(
  ids: Array, mask: Array, x: Array, site: str, source: str
) -> edits_lib.Context:
  return taps.context(ids, mask).replace(site=site, states={source: x})


@jax.jit
def _edited(
  edit: edits_lib.Edit, h: Array, context: edits_lib.Context, rows: Array
) -> Array:
  """The edited activations at rows, the given ones elsewhere.

  The limit of norms has been applied: `at_rows` gets none.
  """
  every = jnp.float32(jnp.inf)
  state = edits_lib.starts({context.site: edit}, len(h))[context.site]
  found = edits_lib.at_rows(edit, rows, every, h, context, state)
  found = found if edit.state is None else found[0]
  edits_lib.check_same(context.site, "", found, h)
  return found
