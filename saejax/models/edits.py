"""Edits: functions that rewrite the tensors at sites of a model.

An edit replaces h [B, T, ...] at a site, in a whole forward pass (`taps.write`)
or in generation (`generate`), where a pass has the tokens of the prompt or one
token per sequence. It is one of

  f                      h -> h
  Edit(f)                (h, context) -> h
  Edit(f, state=s)       (h, context, state) -> (h, state)
  by_token(f, state=s)   the last one for one token at a time

The context says which tokens these are. A state is carried per sequence from one
pass to the next; `s` is that of one sequence before its first token. The result
must not depend on how a sequence is divided into passes, which holds for any f
without a state that treats tokens alone, and for `by_token`.

An edit may depend on an earlier site of the same pass: `context.after(site)` is
the state of that site's edit after each token, where the edit gives it.
`by_token` does, and so does

  Edit(f, state=s, each=True)   (h, context, state) -> (h, states [B, T, ...])

whose states stay as they are at padding. A state is only passed on to later
sites, since in a whole pass an earlier site is done with all tokens before a later
one starts.

Edits are compiled with the model. `jax.tree_util.Partial(f, v)` makes arrays v
arguments of the program: f is compiled once for all v, where a closure is
compiled anew each time that it is made.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from saejax import errors
from saejax.models import stack

FIELD = "edits"
States: TypeAlias = dict[str, Any]  # state of the edit of each site


class Context(flax.struct.PyTreeNode):
  """The tokens whose activations an edit gets.

  Attributes:
    site: name of the site in saejax, such as `layers.3.resid_post`.
    ids: token ids.
    mask: which tokens are real; an edit may do anything to padding, but its
      state must not depend on it.
    positions: number of the token in its sequence, from 0.
    step: number of the token among the generated ones, from 0. It is negative
      in the prompt, where the last token, -1, is the one that the first
      generated token is predicted from.
    sequence: number of the sequence of each row, in the order of the caller.
    states: states after each token of edits at earlier sites, see `after`.
  """

  ids: Int[Array, "B *T"]
  mask: Bool[Array, "B *T"]
  positions: Int[Array, "B *T"]
  step: Int[Array, "B *T"]
  sequence: Int[Array, "B"]
  states: States = flax.struct.field(default_factory=dict)
  site: str = flax.struct.field(pytree_node=False, default="")

  def after(self, site: str) -> Any:
    """Returns the states of an edit after each token, [B, T, ...].

    Args:
      site: name in saejax of an earlier site.

    Raises:
      InputError: no edit there gives its states, or the site is not earlier.
    """
    if site in self.states:
      return self.states[site]
    given = ", ".join(self.states) or "none"
    raise errors.InputError(
      FIELD,
      site,
      f"must be before {self.site} in the forward pass and have an edit that "
      f"gives its state after each token, which {given} has",
      "make it with edits.by_token, or set each",
    )


class Edit(flax.struct.PyTreeNode):
  """A function of activations and context, with a state or without.

  Attributes:
    function: (h, context) -> h, or (h, context, state) -> (h, state) where
      there is a state. Leaves of a state have the sequences as first axis.
    state: state of one sequence before its first token, a pytree; None for an
      edit without a state.
    each: whether the function returns the states after each token, with leaves
      [B, T, ...], rather than the last one.
  """

  function: Callable
  state: Any = None
  each: bool = flax.struct.field(pytree_node=False, default=False)

  def __call__(
    self, h: Float[Array, "B T ..."], context: Context, state: Any
  ) -> tuple[Float[Array, "B T ..."], Any]:
    """Returns the edited activations, and the next state or that after each token.

    Args:
      h: activations.
      context: their tokens.
      state: state of each row, None for an edit without.
    """
    if self.state is None:
      return self.function(h, context), None
    return self.function(h, context, state)


AnyEdit: TypeAlias = Edit | Callable[[Array], Array]


def prepared(edit: AnyEdit) -> Edit:
  """Returns an edit that may be an argument of a compiled function.

  Args:
    edit: a function of h, or an `Edit`.
  """
  if not isinstance(edit, Edit):
    edit = Edit(Partial(_alone, edit))
  wrap = lambda leaf: Partial(leaf) if callable(leaf) else leaf
  return jax.tree.map(wrap, edit)


def _alone(function: Callable, h: Array, context: Context) -> Array:
  return function(h)


def at_rows(
  edit: Edit,
  rows: Bool[Array, "B T"],
  limit: Float[Array, ""],
  h: Float[Array, "B T ..."],
  context: Context,
  state: Any = None,
) -> Any:
  """Applies an edit to some rows; the others keep their activations.

  These others are padding to the edit, so that its state does not depend on them
  either. `Partial(at_rows, edit, rows, limit)` is the function of an edit with
  the state of the edit.

  Args:
    edit: the edit.
    rows: which tokens are rows.
    limit: largest norm of a row.
    h, context, state: as for `Edit`.

  Returns:
    The activations, with the next state where there is one.
  """
  flat = h.reshape(*h.shape[:2], -1).astype(jnp.float32)
  rows = rows & (jnp.linalg.norm(flat, axis=-1) <= limit)
  edited, state = edit(h, context.replace(mask=rows), state)
  h = jnp.where(_along(rows, h), edited, h)
  return h if edit.state is None else (h, state)


def by_token(function: Callable, *, state: Any) -> Edit:
  """Returns an edit that goes over tokens in order.

  Padding is passed over: its activations and the state stay as they are. Later
  sites can read the state after each token.

  Args:
    function: (h [B, ...], context of one token per row, state) -> (h, state).
    state: state of one sequence before its first token.
  """
  return Edit(Partial(_over_tokens, function), state, each=True)


def _over_tokens(
  function: Callable, h: Array, context: Context, state: Any
) -> tuple[Array, Any]:
  first = lambda a: jnp.swapaxes(a, 0, 1)
  tokens = ("ids", "mask", "positions", "step")
  columns = {name: first(getattr(context, name)) for name in tokens}
  columns["states"] = jax.tree.map(first, context.states)

  def step(state, at):
    h, column = at
    edited, after = function(h, context.replace(**column), state)
    keep = lambda new, old: jnp.where(_along(column["mask"], new), new, old)
    after = jax.tree.map(keep, after, state)
    return after, (keep(edited, h), after)

  _, (edited, states) = jax.lax.scan(step, state, (first(h), columns))
  return first(edited), jax.tree.map(first, states)


def _along(rows: Array, like: Array) -> Array:
  return rows.reshape(rows.shape + (1,) * (like.ndim - rows.ndim))


# --- in a forward pass -------------------------------------------------------


def starts(edits: Mapping[str, Edit], rows: int) -> States:
  """Returns the states of edits before the first token.

  Args:
    edits: edits by name of site.
    rows: number of sequences.
  """

  def spread(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf, jnp.result_type(leaf))  # not weakly typed
    return jnp.broadcast_to(leaf[None], (rows, *leaf.shape))

  return {
    name: jax.tree.map(spread, edit.state) for name, edit in edits.items()
  }


def tap(
  edits: Mapping[str, Edit], context: Context, states: States
) -> tuple[stack.Edits, States]:
  """Returns the tap that applies edits, and where it puts the states.

  Args:
    edits: edits by name of site, see `prepared`.
    context: the tokens of the forward pass.
    states: state of each edit before it.

  Returns:
    (tap, states after the forward pass, which is empty before it).
  """
  after: States = {}
  passed: States = {}  # in the order of sites in the forward pass

  def at(name: str, edit: Edit, h: Array) -> Array:
    seen = context.replace(site=name, states=dict(passed))
    edited, state = edit(h, seen, states[name])
    if edit.each:
      passed[name] = state
      state = jax.tree.map(lambda a: a[:, -1], state)
    check_same(name, "", edited, h)
    check_same(name, "a state of ", state, states[name])
    after[name] = state
    return edited

  each = {name: partial(at, name, edit) for name, edit in edits.items()}
  return stack.Edits(each), after


def check_same(site: str, what: str, got: Any, want: Any) -> None:
  """Refuses a tree of other structure, shapes or dtypes."""
  shown = [
    jax.tree.map(lambda a: f"{jnp.asarray(a).dtype} {jnp.shape(a)}", tree)
    for tree in (want, got)
  ]
  if shown[0] != shown[1]:
    raise errors.InputError(
      FIELD,
      site,
      f"the edit of {site} must return {what}{shown[0]}, got {shown[1]}",
      "correct the edit",
    )
