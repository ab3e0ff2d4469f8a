"""Sites in functions and Flax NNX modules of the user's own.

A function `(params, ids, mask, tap) -> output` passes the tensors at its points
through its tap, as our own models do:

    def forward(params, ids, mask, tap):
      h = tap("embed", params["table"][ids])
      return tap("hidden", jax.nn.relu(h @ params["W"]))

`from_nnx` makes such a function of a module, whose submodules are its points. A
tap inside `jax.jit`, `scan` or `vmap` of the function itself is not reached.
"""

import collections.abc
import contextvars
import functools
import hashlib
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from saejax import errors
from saejax.models import sites as sites_lib
from saejax.models import stack, taps

Function: TypeAlias = collections.abc.Callable[[Any, Array, Array, Any], Any]
Edit: TypeAlias = collections.abc.Callable[[Array], Array]
Names: TypeAlias = tuple[str, ...]
_LISTED = 200  # points that an error lists


def points(
  function: Function,
  params: Any,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the points of a function, in order, without running it.

  Args:
    function: the function.
    params: its weights, a pytree.
    ids, mask: tokens and which are real, or their shapes.
  """
  found = {}

  def note(name: str, h: Array) -> Array:
    found[name] = jax.ShapeDtypeStruct(h.shape, h.dtype)
    return h

  def traced(params, ids, mask):
    function(params, ids, mask, note)

  jax.eval_shape(traced, params, ids, mask)
  return found


def read(
  function: Function,
  params: Any,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  sites: collections.abc.Sequence[str],
) -> dict[str, Array]:
  """Computes the tensors at points; of several calls of one, the last.

  It is compiled once for a function and shapes, and XLA removes what no site
  depends on.

  Args:
    function: the function.
    params: its weights, a pytree.
    ids: token ids.
    mask: which tokens are real.
    sites: names of points.

  Raises:
    InputError: the function has no such point, or none outside of its own
      transformations; lists those that it has.
  """
  try:
    return _read(function, tuple(sites), params, ids, mask)
  except jax.errors.UnexpectedTracerError as error:
    raise errors.InputError(
      "site.name",
      ", ".join(sites),
      "must be outside of jit, scan and vmap inside the function",
      "tap what they return",
    ) from error


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(
  function: Function, names: Names, params: Any, ids: Array, mask: Array
) -> dict[str, Array]:
  found = {}

  def keep(name: str, h: Array) -> Array:
    found[name] = h
    return h

  tap = stack.Edits({name: functools.partial(keep, name) for name in names})
  function(params, ids, mask, tap)
  _require(function, names, found, params, ids, mask)
  return found


def write(
  function: Function,
  params: Any,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  edits: collections.abc.Mapping[str, Edit],
) -> Any:
  """Computes the function's output with h replaced by edits[site](h).

  Edits are closures, so it is not compiled; use it inside jax.jit.

  Args:
    function: the function.
    params: its weights, a pytree.
    ids: token ids.
    mask: which tokens are real.
    edits: functions of h by name of a point; every call of it is edited.

  Raises:
    InputError: the function has no such point.
    ValueError: an edit changes the shape or dtype.
  """
  done = set()

  def checked(name: str, edit: Edit, h: Array) -> Array:
    edited = edit(h)
    done.add(name)
    if edited.shape != h.shape or edited.dtype != h.dtype:
      raise ValueError(
        f"the edit of {name} must return {h.dtype} {h.shape},"
        f" got {edited.dtype} {edited.shape}"
      )
    return edited

  at = {
    name: functools.partial(checked, name, edit) for name, edit in edits.items()
  }
  output = function(params, ids, mask, stack.Edits(at))
  _require(function, tuple(edits), done, params, ids, mask)
  return output


def _require(
  function: Function,
  names: Names,
  found: collections.abc.Collection[str],
  params: Any,
  ids: Array,
  mask: Array,
) -> None:
  """Refuses names that the function has not tapped."""
  for name in names:
    if name not in found:
      known = ", ".join([*points(function, params, ids, mask)][:_LISTED])
      raise errors.InputError(
        "site.name",
        name,
        "must be a point that the function taps",
        f"choose one of {known}" if known else "tap it in the function",
      )


# --- Flax NNX -------------------------------------------------------------------

_HOOKS: contextvars.ContextVar[dict[int, collections.abc.Callable]] = (
  contextvars.ContextVar("_HOOKS")
)


def from_nnx(
  module: nnx.Module,
  call: collections.abc.Callable[[Any, Array, Array], Any] | None = None,
) -> tuple[Function, Any]:
  """Makes a function with taps of a module, and its weights.

  A point is the path of a submodule, "layers.0.attn", for what a call of it
  returns, or for the first element where that is a tuple; "layers.0.attn:1" is
  another element, "layers.0.attn:in" its first input. The module itself is not
  changed.

  Args:
    module: the module, in eval mode.
    call: runs it on ids and mask; module(ids, mask) by default.

  Returns:
    (function, weights).

  Raises:
    InputError: the module is in training mode.
  """
  for path, part in nnx.iter_modules(module):
    drops = getattr(part, "deterministic", True) is False
    drops = drops and getattr(part, "rate", 0) > 0
    if drops or getattr(part, "use_running_average", True) is False:
      raise errors.InputError(
        "module",
        ".".join(map(str, path)) or type(part).__name__,
        "must be in eval mode, so that one input gives one output",
        "call module.eval()",
      )
  graph, weights = nnx.split(module)
  run = call or (lambda module, ids, mask: module(ids, mask))

  def function(params, ids, mask, tap):
    fresh = nnx.merge(graph, params)
    hooks = {}
    for path, part in list(nnx.iter_modules(fresh)):
      if path:
        name = ".".join(map(str, path))
        hooks[id(part)] = functools.partial(_tapped, name, tap)
        # Only this copy, which nobody else sees, gets the class with a tap.
        object.__setattr__(part, "__class__", _with_hook(type(part)))
    token = _HOOKS.set(hooks)
    try:
      return run(fresh, ids, mask)
    finally:
      _HOOKS.reset(token)

  return function, weights


@functools.cache
def _with_hook(cls: type) -> type:
  """A class whose calls go through the hook of the object, if it has one."""

  def __call__(self, *args, **kwargs):
    run = functools.partial(cls.__call__, self)
    hook = _HOOKS.get({}).get(id(self))
    return run(*args, **kwargs) if hook is None else hook(run, args, kwargs)

  return type(cls)(cls.__name__, (cls,), {"__call__": __call__})


def _tapped(
  name: str,
  tap: stack.Tap,
  run: collections.abc.Callable,
  args: tuple,
  kwargs: dict,
) -> Any:
  """Calls a submodule with its input and output passed through a tap."""
  if args and _is_array(args[0]):
    args = (tap(f"{name}:in", args[0]), *args[1:])
  output = run(*args, **kwargs)
  if _is_array(output):
    return tap(name, output)
  keys = range(len(output)) if isinstance(output, tuple | list) else ()
  keys = list(output) if isinstance(output, collections.abc.Mapping) else keys
  for place, key in enumerate(keys):
    if _is_array(output[key]):
      own = f"{name}:{key}" if place else name
      site = taps.Site(name=own, module=name, index=key)
      output = sites_lib.put(output, site, tap(own, output[key]))
  return output


def _is_array(value: Any) -> bool:
  return isinstance(value, jax.Array | np.ndarray)


# --- identity -------------------------------------------------------------------


def digest(params: Any) -> str:
  """Returns the SHA-256 of weights: paths, shapes, dtypes and values.

  Args:
    params: a pytree of arrays and numbers.

  Raises:
    InputError: a leaf is neither.
  """
  found = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(
      leaf.dtype, jax.dtypes.prng_key
    ):
      leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    name = jax.tree_util.keystr(path)
    if array.dtype.hasobject:
      raise errors.InputError(
        "params",
        name,
        f"must be an array or a number, not {type(leaf).__name__}",
        "leave it out of the weights",
      )
    found.update(f"{name} {array.dtype} {array.shape}".encode())
    found.update(np.ascontiguousarray(array).tobytes())
  return found.hexdigest()
