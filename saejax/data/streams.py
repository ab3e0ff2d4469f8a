"""Batches of arrays in memory, with several fields and an exact position.

Every epoch is a separate permutation, keyed by the seed; the remainder of an
epoch goes into the next epoch's first batch, and the last one is dropped. A
position is a number of batches, so that any batch can be computed alone, with
equal rows on the host (`array_batches`) and in a compiled step (`array_draw`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from saejax.data import shuffle
from saejax.data.batches import Batches
from saejax.errors import InputError

_LAST = 2**31 - 1


class ArrayBatches:
  """Iterator of {name: [batch_rows, ...], ..., "row": [batch_rows] int64}.

  Created by `array_batches`; implements `batches.Batches`.

  Args:
    arrays: arrays by field, see `array_batches`.
    batch_rows: rows per batch.
    seed: seed of the order.
    epochs: passes over the rows; None for no end.

  Attributes:
    fields: names of the arrays, without "row".
    rows: rows per epoch.
  """

  def __init__(
    self,
    arrays: Mapping[str, np.ndarray],
    *,
    batch_rows: int,
    seed: int,
    epochs: int | None,
  ):
    self.fields = tuple(arrays)
    self.rows = _check(arrays, batch_rows, seed, epochs)
    self._arrays = arrays
    self._batch_rows, self._seed, self._epochs = batch_rows, seed, epochs
    self._done = 0
    self._order = (-1, np.zeros(0, np.int64))

  def __repr__(self) -> str:
    return (
      f"ArrayBatches(fields={self.fields}, rows={self.rows}, "
      f"batch_rows={self._batch_rows}, seed={self._seed}, "
      f"epochs={self._epochs})"
    )

  def __len__(self) -> int:
    """Number of batches of all epochs.

    Raises:
      TypeError: the number of epochs is unlimited.
    """
    if self._epochs is None:
      raise TypeError("batches without end (epochs=None) have no length")
    return self.rows * self._epochs // self._batch_rows

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._epochs is not None and self._done >= len(self):
      raise StopIteration
    row = self.order(self._done)
    self._done += 1
    fields = {name: array[row] for name, array in self._arrays.items()}
    return {**fields, "row": row}

  def order(self, batch: int) -> Int[np.ndarray, "b"]:
    """Returns the row numbers of a batch, [batch_rows].

    Args:
      batch: number of the batch, counted from the start.
    """
    position = batch * self._batch_rows
    parts, missing = [], self._batch_rows
    while missing:
      epoch, first = divmod(position, self.rows)
      part = self._epoch(epoch)[first : first + missing]
      parts.append(part)
      position += len(part)
      missing -= len(part)
    return np.concatenate(parts)

  def get_state(self) -> dict[str, int]:
    """Returns the position, {"batches": number of batches given so far}."""
    return {"batches": self._done}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Moves to a position, see `Batches.set_state`.

    Raises:
      ValueError: the state was not returned by `get_state`.
    """
    done = state.get("batches") if isinstance(state, Mapping) else None
    if not isinstance(done, int) or done < 0:
      raise ValueError(f"state must be {{'batches': int}}, got {state}")
    self._done = done

  def sample(self, rows: int) -> dict[str, np.ndarray]:
    """Returns at most `rows` evenly spaced rows."""
    return evenly(self._arrays, rows)

  def _epoch(self, epoch: int) -> np.ndarray:
    if self._order[0] != epoch:
      self._order = (epoch, permutation(self.rows, self._seed, epoch))
    return self._order[1]


def evenly(arrays: Mapping[str, Any], rows: int) -> dict[str, np.ndarray]:
  """Returns evenly spaced rows of arrays.

  Args:
    arrays: arrays [rows, ...] by name, with "x" among them.
    rows: maximum number of rows.

  >>> evenly({"x": np.arange(9)}, 3)["x"].tolist()
  [0, 4, 8]
  """
  count = len(arrays["x"])
  which = np.linspace(0, count - 1, min(rows, count)).astype(int)
  return {name: np.asarray(array[which]) for name, array in arrays.items()}


def array_batches(
  arrays: Mapping[str, np.ndarray],
  *,
  batch_rows: int,
  seed: int,
  epochs: int | None = 1,
) -> ArrayBatches:
  """Builds shuffled batches of arrays whose first axis counts rows.

  Args:
    arrays: NumPy arrays by field, memory-mapped ones included: "x", optionally
      "target", "cond", "score", "weight", and fields of your own. All have
      equally many rows. Pairs of rows are x [rows, 2, d].
    batch_rows: rows per batch.
    seed: seed of the order, which differs between epochs.
    epochs: passes over the rows; None for no end.

  Raises:
    InputError: no x, a field "row", unequal rows, or a setting out of range.

  >>> stream = array_batches({"x": np.zeros((5, 2))}, batch_rows=2, seed=0)
  >>> len(stream), next(stream)["x"].shape
  (2, (2, 2))
  """
  return ArrayBatches(arrays, batch_rows=batch_rows, seed=seed, epochs=epochs)


def array_draw(
  arrays: Mapping[str, np.ndarray | Array],
  *,
  batch_rows: int,
  seed: int,
  epochs: int = 1,
) -> Callable[[Int[Array, ""]], dict[str, Array]]:
  """Builds a function of the step that draws batches in a compiled program.

  It gives the batches of `array_batches`. Arrays and order are on the device;
  the order takes 4 bytes per row and epoch.

  Args:
    arrays, batch_rows, seed: as for `array_batches`.
    epochs: passes over the rows whose order is stored; later steps repeat them.

  Returns:
    draw(step) -> {name: [batch_rows, ...], ..., "row": [batch_rows] int32}.

  Raises:
    InputError: as `array_batches`, or rows * epochs exceeds 2^31.
  """
  rows = _check(arrays, batch_rows, seed, epochs)
  if rows * epochs > _LAST:
    raise InputError(
      "train.epochs",
      epochs,
      f"{rows} rows per epoch times epochs must be below 2^31",
      "lower it, or use array_batches",
    )
  order = np.concatenate([permutation(rows, seed, e) for e in range(epochs)])
  order = order[: len(order) // batch_rows * batch_rows]
  held = {name: jnp.asarray(array) for name, array in arrays.items()}
  # Arrays of a Partial are arguments of the program, not constants in it.
  order = jnp.asarray(order, jnp.int32).reshape(-1, batch_rows)
  return jax.tree_util.Partial(_drawn, held, order)


def _drawn(
  held: Mapping[str, Array], order: Int[Array, "s b"], step: Int[Array, ""]
) -> dict[str, Array]:
  row = order[step % len(order)]
  fields = {name: jnp.take(a, row, axis=0) for name, a in held.items()}
  return {**fields, "row": row}


def permutation(rows: int, seed: int, epoch: int) -> Int[np.ndarray, "rows"]:
  """Returns the order of `rows` rows in an epoch.

  Args:
    rows: rows per epoch.
    seed, epoch: seed of the order, and number of the epoch from 0.
  """
  return shuffle.permutation(rows, shuffle.ARRAYS, seed, epoch)


def _check(
  arrays: Mapping[str, Any], batch_rows: int, seed: int, epochs: int | None
) -> int:
  """Checks arrays and settings; returns the number of rows per epoch."""
  if "x" not in arrays or "row" in arrays:
    raise InputError(
      "batch",
      ", ".join(arrays),
      "fields must include x, and must not include row, the row number",
      "name the activations x, and rename a field called row",
    )
  counts = {name: len(array) for name, array in arrays.items()}
  rows = counts["x"]
  if set(counts.values()) != {rows}:
    rule = "fields must have equally many rows"
    raise InputError("batch", counts, rule, "give each one entry per row")
  passes = 1 if epochs is None else epochs
  for name, value, least in (("seed", seed, 0), ("epochs", passes, 1)):
    if value < least:
      rule = f"must be at least {least}"
      raise InputError(f"train.{name}", value, rule, f"use at least {least}")
  most = rows if epochs is None else rows * epochs
  if not 1 <= batch_rows <= most:
    raise InputError(
      "train.batch_rows",
      batch_rows,
      f"must be in [1, {most}], the number of rows",
      f"use at most {most}, or pass more rows",
    )
  return rows


# --- one layer of several ----------------------------------------------------


class Rows(Protocol):
  """The attributes of a store that `Stacked` compares."""

  columns: Mapping[str, Any]

  def whole(self, *names: str) -> dict[str, np.ndarray]: ...


class Stacked:
  """Stacks streams of equal rows at several layers: x [B, layers, d].

  The stores of the layers must be harvested with equal settings and with
  harvest.outlier_multiple=0, so that the loader gives their rows in one order.

  Args:
    streams: one stream per layer, in order; their batches have equal "row".
    stores: the stores of the streams; their provenance columns must be equal.

  Raises:
    InputError: the provenance of rows differs between stores.
  """

  fields = ("x",)

  def __init__(self, streams: Sequence[Batches], stores: Sequence[Rows] = ()):
    self._streams = list(streams)
    for store in stores[1:]:
      a, b = (
        s.whole(*(n for n, c in s.columns.items() if not c.train))
        for s in (stores[0], store)
      )
      if a.keys() != b.keys() or any(
        not np.array_equal(a[name], b[name]) for name in a
      ):
        raise InputError(
          "stores",
          store,
          f"must hold the rows of {stores[0]} in the same order",
          "harvest all layers with equal settings and outlier_multiple=0",
        )

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batches = [next(stream) for stream in self._streams]
    row = batches[0]["row"]
    for other in batches[1:]:
      if not np.array_equal(other["row"], row):
        raise ValueError("streams must give the same rows in the same order")
    return {"x": np.stack([b["x"] for b in batches], axis=1), "row": row}

  def get_state(self) -> list[Any]:
    """Returns the positions of the streams."""
    return [stream.get_state() for stream in self._streams]

  def set_state(self, state: Sequence[Any]) -> None:
    """Moves all streams to a position, see `Batches.set_state`."""
    for stream, own in zip(self._streams, state, strict=True):
      stream.set_state(own)

  def sample(self, rows: int) -> dict[str, np.ndarray]:
    """Samples equal rows of every layer, see `Batches.sample`."""
    parts = [stream.sample(rows)["x"] for stream in self._streams]
    return {"x": np.stack(parts, axis=1)}


class OneLayer:
  """Draws one layer of a group for each row; "cond" is its index.

  Maps batches x [B, L, d] to x [B, d], cond [B] int32. A row occurs once per
  epoch, at a layer that is drawn in each epoch by seed and batch.

  Args:
    batches: stream of x [B, L, d], from `array_batches` or `Stacked`.
    layers: indices in L of the group's layers; cond is an index of this list.
    seed: seed of the draws; use a different one for each group.

  Raises:
    InputError: there are no layers, or one is negative.

  References:
    Ghilardi et al., Efficient Training of Sparse Autoencoders for Large
    Language Models via Layer Groups, 2024, arXiv:2410.21508.
  """

  def __init__(self, batches: Batches, layers: Sequence[int], *, seed: int):
    if not layers or min(layers) < 0:
      raise InputError(
        "layers",
        tuple(layers),
        "must be indices of layers",
        "give at least one",
      )
    self.fields = ("x", "cond")
    self._batches, self._layers = batches, np.asarray(layers)
    self._seed, self._done = seed, 0

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._batches)
    x, row = batch["x"], batch["row"]
    if x.ndim != 3 or x.shape[1] <= self._layers.max():
      raise ValueError(
        f"x must be [B, more than {self._layers.max()}, d], got {x.shape}"
      )
    key = (shuffle.LAYERS, self._seed, self._done)
    self._done += 1
    return {**self._choose(x, key), "row": row}

  def _choose(self, x: np.ndarray, key: tuple[int, ...]):
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(len(x))
    cond = (bits % np.uint64(len(self._layers))).astype(np.int32)
    return {"x": x[np.arange(len(x)), self._layers[cond]], "cond": cond}

  def get_state(self) -> dict[str, Any]:
    """Returns the number of batches and the position of the stream inside."""
    return {"batches": self._done, "behind": self._batches.get_state()}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Moves to a position, see `Batches.set_state`."""
    self._batches.set_state(state["behind"])
    self._done = state["batches"]

  def sample(self, rows: int) -> dict[str, np.ndarray]:
    """Samples rows, each at one layer drawn with the seed."""
    x = np.asarray(self._batches.sample(rows)["x"])
    return self._choose(x, (shuffle.LAYERS, self._seed))


def one_layer(key: PRNGKeyArray, x: Float[Array, "B L d"]) -> dict[str, Array]:
  """Draws one layer of x for each row, inside a compiled program.

  Args:
    key: key of the draws.
    x: activations of L layers [B, L, d].

  Returns:
    {"x": [B, d], "cond": [B] index of the layer}, see `OneLayer`.
  """
  cond = jax.random.randint(key, x.shape[:1], 0, x.shape[1])
  return {"x": x[jnp.arange(len(x)), cond], "cond": cond}
