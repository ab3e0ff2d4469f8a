"""Sources of training rows, read from a stream or drawn on the device.

A source has an exact position, gives the next batches of a run, and can be
sampled for initial weights and for estimates after training.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from saejax.data import streams
from saejax.data.batches import Batches
from saejax.errors import InputError
from saejax.sae.context import FIELDS, Batch, as_batch

Draw = Callable[[Array], Array | Batch | Mapping[str, Array]]


class Feed(Protocol):
  """Some consecutive batches of a source."""

  def run(self, group: Any, states: Any) -> tuple[Any, Any, np.ndarray]:
    """Steps the members of a `members.Group` on them, as its `run` does."""
    ...

  def rows(self, i: int) -> np.ndarray | None:
    """Numbers of the rows of batch i of the feed; None if it has none."""
    ...

  def measured(self, i: int) -> Mapping[str, float]:
    """Facts about the rows of batch i of the feed, by name; mostly none."""
    ...


class Source(Protocol):
  """Rows to train on.

  Attributes:
    fields: names of the fields of `Batch` that its batches have.
    is_drawn: whether its batches are made inside the program.
    sites: names of the sites along the first axis of each field, where the
      batches have several.
  """

  @property
  def fields(self) -> tuple[str, ...]: ...

  @property
  def is_drawn(self) -> bool: ...

  @property
  def sites(self) -> tuple[str, ...]: ...

  def take(self, step: int, count: int, *, most: int = 1) -> Feed:
    """The batches of steps step to step + count, which is the new position.

    Args:
      step: step of the first batch.
      count: number of batches.
      most: largest count of the run.
    """
    ...

  def ahead(self, count: int, group: Any) -> None:
    """Starts moving the next batches to the devices while a step runs.

    The position does not change, and errors are raised by `take`.

    Args:
      count: number of batches.
      group: the `members.Group` that will be stepped on them.
    """
    ...

  def sample(self, rows: int) -> Batch:
    """Raw rows spread over all; the position does not change."""
    ...

  def get_state(self) -> Any:
    """Returns the position, JSON-serialisable."""
    ...

  def set_state(self, state: Any) -> None:
    """Moves to a position returned by `get_state`."""
    ...

  def close(self) -> None:
    """Frees what reads ahead; nothing is taken after it."""
    ...


def source_of(rows: Source | Batches) -> Source:
  """Wraps a stream of batches as a source; returns a source unchanged.

  Args:
    rows: a source, or an iterator of batches.
  """
  if hasattr(rows, "take"):
    return cast(Source, rows)
  return Stream(cast(Batches, rows))


def of_arrays(
  arrays: Mapping[str, np.ndarray],
  steps: int,
  mesh: Sequence[int],
  *,
  batch_rows: int,
  seed: int,
  epochs: int,
  sample_batches: bool = False,
) -> Source:
  """Arrays in memory as a source: `streams.array_draw` on one device.

  On a mesh batches are put together on the host, in the same order.

  Args:
    arrays: by field, equally many rows each.
    steps: batches of the run.
    mesh: devices: ensemble, data, latent.
    batch_rows: rows per batch.
    seed: of the order.
    epochs: passes over the rows.
    sample_batches: on one device, sample whole batches instead of evenly spaced
      rows.
  """
  order: Any = {"batch_rows": batch_rows, "seed": seed, "epochs": epochs}
  if any(size > 1 for size in mesh):
    return Stream(streams.array_batches(arrays, **order))
  held = {name: jnp.asarray(array) for name, array in arrays.items()}
  draw = streams.array_draw(held, **order)
  return Drawn(draw, steps, arrays=None if sample_batches else arrays)


class _Taken(NamedTuple):
  """A batch of a stream.

  Attributes:
    put: the batch on the devices; None if it is not there yet.
    batch: the batch on the host, until it is on the devices.
    rows: row numbers.
    measured: facts about the rows.
    position: of the stream after the batch.
  """

  put: Batch | None
  batch: Mapping[str, np.ndarray] | None
  rows: np.ndarray | None
  measured: Mapping[str, float]
  position: Any


class Stream:
  """A stream of batches on the host.

  The batches that `ahead` moves to the devices are taken from the stream, but
  the position is that after the last batch that `take` gave.
  """

  is_drawn = False

  def __init__(self, batches: Batches):
    self._batches = batches
    self._ahead: collections.deque[_Taken] = collections.deque()
    self._error: Exception | None = None  # of reading ahead
    self._position: Any = None  # after the last batch given, if read ahead
    self._parts: int = getattr(batches, "process_count", 1)

  @property
  def fields(self) -> tuple[str, ...]:
    return self._batches.fields

  @property
  def sites(self) -> tuple[str, ...]:
    return getattr(self._batches, "sites", ())

  def take(self, step: int, count: int, *, most: int = 1) -> Feed:
    """Reads the next batches.

    Args:
      step: step of the first batch, for the error.
      count: number of batches.
      most: largest count of the run, for which there is room in the program.

    Raises:
      InputError: the stream ended.
    """
    taken = []
    for done in range(step, step + count):
      try:
        taken.append(self._ahead.popleft() if self._ahead else self._next())
      except StopIteration:
        raise InputError(
          "steps",
          f"more than {done}",
          f"the stream ended after {done} batches",
          "lower it or give more batches",
        ) from None
      self._position = taken[-1].position
    return _Read(taken, most, self._parts)

  def ahead(self, count: int, group: Any) -> None:
    """Reads the next batches and starts moving them to the devices.

    Args:
      count: number of batches.
      group: where to, see `members.Group.put`.
    """
    if self._position is None:
      self._position = self._batches.get_state()
    try:
      while self._error is None and len(self._ahead) < count:
        self._ahead.append(_moved(self._next(), group, self._parts))
    except Exception as error:  # it belongs to a later step
      self._error = error

  def sample(self, rows: int) -> Batch:
    """Returns the stream's sample, on the default device."""
    return jax.tree.map(jnp.asarray, as_batch(self._batches.sample(rows)))

  def get_state(self) -> Any:
    """The position of the stream after the batches that were taken."""
    if self._position is None:
      return self._batches.get_state()
    return self._position

  def set_state(self, state: Any) -> None:
    """Goes to a position."""
    self._batches.set_state(state)
    self._ahead.clear()
    self._error, self._position = None, None

  def close(self) -> None:
    """Stops the stream's threads, if it has any."""
    self._ahead.clear()
    getattr(self._batches, "close", lambda: None)()

  def _next(self) -> _Taken:
    if self._error is not None:
      raise self._error
    batch = next(self._batches)
    measure = getattr(self._batches, "measure", lambda _: {})
    position = self._batches.get_state()
    return _Taken(None, batch, batch.get("row"), measure(batch), position)


def _moved(taken: _Taken, group: Any, parts: int) -> _Taken:
  """The batch on the devices, without its arrays on the host."""
  if taken.put is not None:
    return taken
  return taken._replace(put=group.put(taken.batch, parts), batch=None)


class _Read:
  """Batches on the host or on the devices."""

  def __init__(self, taken: Sequence[_Taken], most: int, parts: int):
    self._taken, self._most, self._parts = taken, most, parts

  def run(self, group: Any, states: Any) -> tuple[Any, Any, np.ndarray]:
    xs = [_moved(taken, group, self._parts).put for taken in self._taken]
    # A feed is kept for its row numbers.
    self._taken = [t._replace(put=None, batch=None) for t in self._taken]
    return group.run(states, xs, most=self._most)

  def rows(self, i: int) -> np.ndarray | None:
    return self._taken[i].rows

  def measured(self, i: int) -> Mapping[str, float]:
    return self._taken[i].measured


class Drawn:
  """Batches made inside the compiled program, such as `streams.array_draw`.

  The position is the step. How many steps a call of the program has changes no
  result: they are arguments of one program.

  Args:
    draw: from the step (a traced int32) to a batch; a `jax.tree_util.Partial`
      where it holds large arrays, see `Group.run_drawn`.
    steps: batches that samples are spread over.
    arrays: all rows by field, which samples are taken from; by default they are
      whole batches.
  """

  is_drawn = True
  sites = ()

  def __init__(
    self,
    draw: Draw,
    steps: int,
    *,
    arrays: Mapping[str, np.ndarray | Array] | None = None,
  ):
    if not isinstance(draw, jax.tree_util.Partial):
      draw = jax.tree_util.Partial(draw)
    self._draw, self._steps, self._arrays = draw, steps, arrays
    self._done = 0

  @property
  def fields(self) -> tuple[str, ...]:
    """Fields of the batches; nothing is drawn."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    batch = jax.eval_shape(lambda i: as_batch(self._draw(i)), step)
    return tuple(name for name in FIELDS if getattr(batch, name) is not None)

  def take(self, step: int, count: int, *, most: int = 1) -> Feed:
    """The batches of some steps, not drawn yet.

    Args:
      step: step of the first batch.
      count: number of batches.
      most: not read: every number of batches is one program.
    """
    self._done = step + count
    return _Span(self._draw, step, step + count)

  def ahead(self, count: int, group: Any) -> None:
    """Nothing is on the host."""

  def sample(self, rows: int) -> Batch:
    """Evenly spaced rows; whole batches, at least as many, without arrays."""
    if self._arrays is not None:
      even = streams.evenly(self._arrays, rows)
      return jax.tree.map(jnp.asarray, as_batch(even))
    draw = jax.jit(lambda draw, i: as_batch(draw(i)))
    first = draw(self._draw, jnp.asarray(0, jnp.int32))
    batches = min(-(-rows // len(first.x)), self._steps)
    which = np.linspace(0, self._steps - 1, batches).round().astype(np.int32)
    drawn = [draw(self._draw, jnp.asarray(i)) for i in which]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *drawn)

  def get_state(self) -> dict[str, int]:
    """The number of batches drawn."""
    return {"batches": self._done}

  def set_state(self, state: Mapping[str, int]) -> None:
    """Goes to a position."""
    self._done = int(state["batches"])

  def close(self) -> None:
    """Nothing is open."""


class _Span:
  """Steps whose batches are drawn."""

  def __init__(self, draw: Draw, start: int, stop: int):
    self._draw, self._start, self._stop = draw, start, stop

  def run(self, group: Any, states: Any) -> tuple[Any, Any, np.ndarray]:
    return group.run_drawn(states, self._draw, self._start, self._stop)

  def rows(self, i: int) -> np.ndarray | None:
    batch: Any = self._draw(jnp.asarray(self._start + i, jnp.int32))
    has = isinstance(batch, Mapping) and "row" in batch
    return np.asarray(batch["row"]) if has else None

  def measured(self, i: int) -> Mapping[str, float]:
    return {}
