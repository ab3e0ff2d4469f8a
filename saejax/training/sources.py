"""Sources of training rows, read from a stream or drawn on the device.

A source has an exact position, gives the next batches of a run, and can be
sampled for initial weights and for estimates after training.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

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


class Source(Protocol):
  """Rows to train on.

  Attributes:
    fields: names of the fields of `Batch` that its batches have.
    is_drawn: whether its batches are made inside the program.
  """

  @property
  def fields(self) -> tuple[str, ...]: ...

  @property
  def is_drawn(self) -> bool: ...

  def take(self, step: int, count: int, *, most: int = 1) -> Feed:
    """The batches of steps step to step + count, which is the new position.

    Args:
      step: step of the first batch.
      count: number of batches.
      most: largest count of the run.
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


class Stream:
  """A stream of batches on the host."""

  is_drawn = False

  def __init__(self, batches: Batches):
    self._batches = batches

  @property
  def fields(self) -> tuple[str, ...]:
    return self._batches.fields

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
        taken.append(next(self._batches))
      except StopIteration:
        raise InputError(
          "steps",
          f"more than {done}",
          f"the stream ended after {done} batches",
          "lower it or give more batches",
        ) from None
    return _Read(taken, most)

  def sample(self, rows: int) -> Batch:
    """Returns the stream's sample, on the default device."""
    return jax.tree.map(jnp.asarray, as_batch(self._batches.sample(rows)))

  def get_state(self) -> Any:
    """The position of the stream."""
    return self._batches.get_state()

  def set_state(self, state: Any) -> None:
    """Goes to a position."""
    self._batches.set_state(state)

  def close(self) -> None:
    """Stops the stream's threads, if it has any."""
    getattr(self._batches, "close", lambda: None)()


class _Read:
  """Batches on the host."""

  def __init__(self, batches: Sequence[Mapping[str, np.ndarray]], most: int):
    self._batches, self._most = batches, most
    self._rows = [batch.get("row") for batch in batches]

  def run(self, group: Any, states: Any) -> tuple[Any, Any, np.ndarray]:
    xs = [group.put(batch) for batch in self._batches]
    self._batches = ()  # a feed is kept for its row numbers
    return group.run(states, xs, most=self._most)

  def rows(self, i: int) -> np.ndarray | None:
    return self._rows[i]


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
