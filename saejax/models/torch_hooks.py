"""Reads and rewrites the tensors at sites of any PyTorch model, by hooks.

Needs the extra `torch`. A site is a `taps.Site` or the path of a module, such as
"model.layers.3" for its output and "model.layers.3:in" for its input:

    found = torch_hooks.read(model, ["h.3"], lambda: model(ids))
    out = torch_hooks.write(model, {"h.3": edit}, lambda: model(ids))

Tensors go to JAX by dlpack: memory is shared where JAX has the device and the
dtype, and copied otherwise. Hooks exist only while the forward pass runs, also
where it fails.
"""

import collections.abc
import contextlib
from typing import Any, TypeAlias

import jax
from jaxtyping import Array, Bool

from saejax import errors
from saejax.models import sites as sites_lib
from saejax.models import taps, torch_models

Run: TypeAlias = collections.abc.Callable[[], Any]
Edit: TypeAlias = collections.abc.Callable[[Any], Any]
FRAMEWORKS = ("jax", "torch")


class Reader:
  """Reads sites of a model, in as many forward passes as are wanted.

  The first forward pass is run to its end and counts the calls of each module;
  later ones stop after the last call that a site needs.

  Args:
    model: the module that has the sites.
    sites: the sites, or names of them.
    stop: whether to stop early; not where what follows must run, too, such as
      the steps of a sampler.

  Raises:
    InputError: a module does not exist (lists those with similar paths), or
      hooks would not run in the model.
  """

  def __init__(
    self,
    model: Any,
    sites: collections.abc.Iterable[taps.Site | str],
    *,
    stop: bool = True,
  ):
    self.sites = [sites_lib.at(site) for site in sites]
    self._modules = [
      torch_models.find(model, site.module) for site in self.sites
    ]
    self._stop = stop
    self._calls: list[int] | None = None
    self._copied = [False] * len(self.sites)

  def __call__(
    self, run: Run, *, mask: Bool[Array, "B T"] | None = None
  ) -> dict[str, Any]:
    """Runs a forward pass, without gradients, and returns the rows at sites.

    Args:
      run: runs the model.
      mask: which positions are real, for sites that are pooled.

    Returns:
      JAX arrays by name: [B, ..., D], [B, D] where rows are pooled, with an axis
      of calls before them where the call is "all"; for a pair the two of them.

    Raises:
      InputError: a module was not called, or a tensor is not as the site says.
    """
    torch = torch_models.library()
    while True:
      watches = [
        _Watch(site, copied)
        for site, copied in zip(self.sites, self._copied, strict=True)
      ]
      hooks = _hooks(self._modules, watches, self._check(watches))
      with torch.no_grad(), contextlib.suppress(_Stop), hooks:
        run()
      for watch in watches:
        watch.require()
      if self._calls is None:
        self._calls = [watch.calls for watch in watches]
      changed = [watch.changed for watch in watches]
      if not any(changed):
        return {w.site.name: w.value(mask) for w in watches}
      # The model changes such a tensor in place later: run again, with copies.
      self._copied = [
        a or b for a, b in zip(self._copied, changed, strict=True)
      ]

  def _check(self, watches: list["_Watch"]) -> collections.abc.Callable:
    """Ends the forward pass where every site has what it needs."""

    def check() -> None:
      if self._stop and self._calls is not None:
        pairs = zip(watches, self._calls, strict=True)
        if all(watch.has_all(calls) for watch, calls in pairs):
          raise _Stop

    return check


def read(
  model: Any,
  sites: collections.abc.Iterable[taps.Site | str],
  run: Run,
  *,
  mask: Bool[Array, "B T"] | None = None,
) -> dict[str, Any]:
  """Reads sites of a model in one forward pass, see `Reader`.

  Args:
    model: the module that has the sites.
    sites: the sites, or names of them.
    run: runs the model, such as `lambda: model(ids)`.
    mask: which positions are real, for sites that are pooled.
  """
  return Reader(model, sites)(run, mask=mask)


def write(
  model: Any,
  edits: collections.abc.Mapping[taps.Site | str, Edit],
  run: Run,
  *,
  framework: str = "jax",
) -> Any:
  """Runs a forward pass in which the rows x at each site become edit(x).

  A module returns what it did before, with one tensor replaced: the same tuple,
  list or ModelOutput. An edit of port "diff" replaces output - input.

  Args:
    model: the module that has the sites.
    edits: functions of the rows [B, ..., D] by site or name.
    run: runs the model.
    framework: of the arrays that edits take and return: "jax", without
      gradients, or "torch", with those that are enabled.

  Returns:
    What `run` returns.

  Raises:
    InputError: as `Reader`; or the site has a pool or is a pair; or the module
      is called more than once and the site says neither which call nor all.
    ValueError: an edit changes the shape or dtype, or the framework is another.
  """
  if framework not in FRAMEWORKS:
    raise ValueError(f"framework must be jax or torch, got {framework}")
  torch = torch_models.library()
  watches, modules = [], []
  for site, edit in edits.items():
    site = sites_lib.at(site)
    if site.pool != "none" or site.port == "pair":
      field = "port" if site.port == "pair" else "pool"
      raise errors.InputError(
        f"site.{field}",
        getattr(site, field),
        "cannot be edited",
        "edit the site without it",
      )
    modules.append(torch_models.find(model, site.module))
    watches.append(_Watch(site, False, _Change(site, edit, framework)))
  gradients = contextlib.nullcontext() if framework == "torch" else None
  with gradients or torch.no_grad(), _hooks(modules, watches, lambda: None):
    output = run()
  for watch in watches:
    watch.require()
  return output


# --- hooks ----------------------------------------------------------------------


class _Stop(BaseException):
  """Ends a forward pass; no Exception, which a model may catch."""


@contextlib.contextmanager
def _hooks(
  modules: collections.abc.Sequence[Any],
  watches: collections.abc.Sequence["_Watch"],
  check: collections.abc.Callable[[], None],
) -> collections.abc.Iterator[None]:
  """Hooks of sites; they are removed at the end, whatever happens."""

  def hooks(watch: "_Watch") -> tuple:
    def before(module, args, kwargs):
      del module
      changed = watch.before(args, kwargs)
      check()
      return changed

    def after(module, args, kwargs, output):
      del module, args, kwargs
      changed = watch.after(output)
      check()
      return changed

    return before, after

  with contextlib.ExitStack() as stack:
    for module, watch in zip(modules, watches, strict=True):
      before, after = hooks(watch)
      for handle in (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
      ):
        stack.callback(handle.remove)
    yield


class _Watch:
  """What is read or changed at one site in one forward pass."""

  def __init__(
    self, site: taps.Site, copied: bool, change: "_Change | None" = None
  ):
    self.site, self.calls = site, 0
    self._ended = 0  # calls whose tensors have been seen
    self._copied, self._change = copied, change
    self._input: Any = None
    self._found: list[tuple] = []  # tensors of a call that is wanted
    self._versions: list[tuple[Any, int]] = []

  def before(self, args: tuple, kwargs: dict) -> tuple | None:
    """Before a call of the module; returns its changed arguments."""
    self.calls += 1
    if self.site.port == "out":
      return None
    place, key = _first_input(self.site, args, kwargs)
    x = sites_lib.pick(place[key], self.site)
    if self.site.port != "in":
      is_kept = self._change is None and not self._copied
      self._input = self._kept(x) if is_kept else x.clone()
    elif self._change is None:
      self._keep(self._kept(x))
    elif self._is_wanted():
      changed = sites_lib.put(place[key], self.site, self._change(x))
      if isinstance(key, int):
        return (*args[:key], changed, *args[key + 1 :]), kwargs
      return args, kwargs | {key: changed}
    return None

  def after(self, output: Any) -> Any:
    """After a call of the module; returns its changed output."""
    if self.site.port == "in":
      return None
    y = sites_lib.pick(output, self.site)
    before, self._input = self._input, None
    if self._change is None:
      if self.site.port == "diff":
        self._keep(y - before)
      else:
        self._keep(*[t for t in (before,) if t is not None], self._kept(y))
    elif self._is_wanted():
      if self.site.port == "diff":
        diff = y - before
        edited = self._change(diff)
        # Exact where nothing is edited, and where the edit gives 0.
        same = edited == diff
        return sites_lib.put(output, self.site, y.where(same, before + edited))
      return sites_lib.put(output, self.site, self._change(y))
    return None

  def _is_wanted(self) -> bool:
    """Whether this call is one to change."""
    if self.site.call == sites_lib.LAST:
      if self.calls > 1:  # nobody knows yet which call is the last
        raise errors.InputError(
          "site.call",
          self.site.call,
          f"must say which call of {self.site.module} to edit, which is called "
          "several times",
          'give its number, from 0, or "all"',
        )
      return True
    return self.site.call in (sites_lib.ALL, self.calls - 1)

  def _kept(self, x: Any) -> Any:
    """The tensor, of which it is noted if the model changes it in place."""
    x = x.detach()
    if self._copied or x.is_inference():  # the latter have no versions
      return x.clone()
    self._versions.append((x, x._version))
    return x

  def _keep(self, *tensors: Any) -> None:
    self._ended = self.calls
    if self.site.call == sites_lib.LAST:
      self._found = [tensors]
    elif self.site.call in (sites_lib.ALL, self.calls - 1):
      self._found.append(tensors)

  def has_all(self, calls: int) -> bool:
    """Whether the site has all it needs, of so many calls of the module."""
    call = self.site.call
    if isinstance(call, int) and call >= 0:
      calls = call + 1
    return self._ended >= calls

  def require(self) -> None:
    """Refuses a site whose call did not happen."""
    call = self.site.call
    wanted = call + 1 if isinstance(call, int) and call > 0 else 1
    if self.calls < wanted:
      raise errors.InputError(
        "site.module",
        self.site.module,
        f"must be called in the forward pass, at least {wanted} times, and was "
        f"called {self.calls} times",
        "name a module that runs, and run the model as a whole",
      )

  @property
  def changed(self) -> bool:
    """Whether the model has changed a tensor in place since it was read."""
    return any(x._version != version for x, version in self._versions)

  def value(self, mask: Any) -> Any:
    """The rows of the site, in JAX."""

    def in_jax(x: Any) -> Array:
      x = torch_models.to_jax(sites_lib.rows(x, self.site))
      return sites_lib.pooled(x, self.site, mask)

    calls = [tuple(map(in_jax, tensors)) for tensors in self._found]
    parts = list(zip(*calls, strict=True))
    if self.site.call == sites_lib.ALL:
      parts = [jax.numpy.stack(part) for part in parts]
    else:
      parts = [part[0] for part in parts]
    return tuple(parts) if self.site.port == "pair" else parts[0]


def _first_input(
  site: taps.Site, args: tuple, kwargs: dict
) -> tuple[Any, int | str]:
  """Where a module's first input is: its arguments, and the place in them."""
  if args:
    return args, 0
  for name, value in kwargs.items():
    if hasattr(value, "shape"):
      return kwargs, name
  raise errors.InputError(
    "site.port",
    site.port,
    f"needs an input, and {site.module} is called without a tensor",
    "use port out",
  )


class _Change:
  """An edit of rows as a change of a module's tensor."""

  def __init__(self, site: taps.Site, edit: Edit, framework: str):
    self._site, self._edit, self._framework = site, edit, framework

  def __call__(self, x: Any) -> Any:
    rows = sites_lib.rows(x, self._site)
    given = torch_models.to_jax(rows) if self._framework == "jax" else rows
    edited = self._edit(given)
    kinds = [
      (tuple(getattr(a, "shape", ())), getattr(a, "dtype", type(a)))
      for a in (given, edited)
    ]
    if kinds[0] != kinds[1]:
      (shape, dtype), (got_shape, got) = kinds
      raise ValueError(
        f"the edit of {self._site.name} must return {dtype} {shape},"
        f" got {got} {got_shape}"
      )
    if self._framework == "jax":
      edited = torch_models.to_torch(edited).to(device=x.device, dtype=x.dtype)
    return sites_lib.replaced(x, self._site, edited)
