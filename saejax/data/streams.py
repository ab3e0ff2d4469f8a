"""Batches of arrays in memory, with several fields and an exact position.

Every epoch is a separate permutation, keyed by the seed; the remainder of an
epoch goes into the next epoch's first batch, and the remainder at the end is
dropped. A position is a number of batches, so that any batch can be computed
without those before it, on the host (`array_batches`) or inside a compiled step
(`array_draw`), with equal rows.
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

  Attributes:
    fields: names of the arrays; "row" is not among them.
    rows: rows of an epoch.
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
    """Batches from the start to the end.

    Raises:
      TypeError: there is no end.
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
    found = {name: array[row] for name, array in self._arrays.items()}
    return {**found, "row": row}

  def order(self, batch: int) -> Int[np.ndarray, "b"]:
    """Row numbers of a batch, by its number from the start."""
    position = batch * self._batch_rows
    parts, wanted = [], self._batch_rows
    while wanted:
      epoch, first = divmod(position, self.rows)
      part = self._epoch(epoch)[first : first + wanted]
      parts.append(part)
      position += len(part)
      wanted -= len(part)
    return np.concatenate(parts)

  def get_state(self) -> dict[str, int]:
    """The position: {"batches": number of those given so far}."""
    return {"batches": self._done}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to a position.

    Raises:
      ValueError: it is not one of `get_state`.
    """
    done = state.get("batches") if isinstance(state, Mapping) else None
    if not isinstance(done, int) or done < 0:
      raise ValueError(f"state must be {{'batches': int}}, got {state}")
    self._done = done

  def sample(self, rows: int) -> dict[str, np.ndarray]:
    """Evenly spaced rows."""
    return evenly(self._arrays, rows)

  def _epoch(self, epoch: int) -> np.ndarray:
    if self._order[0] != epoch:
      self._order = (epoch, permutation(self.rows, self._seed, epoch))
    return self._order[1]


def evenly(arrays: Mapping[str, Any], rows: int) -> dict[str, np.ndarray]:
  """At most `rows` evenly spaced rows of arrays."""
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
  """Shuffled batches of arrays whose first axis is that of rows.

  Args:
    arrays: by field ("x", and where there are "target", "cond", "score",
      "weight" or names of one's own), equally many rows each; NumPy arrays,
      memory-mapped ones too. Pairs of rows are x [rows, 2, d].
    batch_rows: rows per batch.
    seed: seed of the order, which differs between epochs.
    epochs: passes over the rows; None for no end.

  Raises:
    InputError: "batch" where there is no x, "row" is taken or the numbers of
      rows differ; "train.batch_rows", "train.seed" or "train.epochs" out of
      range.
  """
  return ArrayBatches(arrays, batch_rows=batch_rows, seed=seed, epochs=epochs)


def array_draw(
  arrays: Mapping[str, np.ndarray | Array],
  *,
  batch_rows: int,
  seed: int,
  epochs: int = 1,
) -> Callable[[Int[Array, ""]], dict[str, Array]]:
  """The batches of `array_batches` from a step, inside a compiled program.

  Arrays and order lie on the device: 4 bytes a row and epoch beside the data.

  Args:
    arrays: as above.
    batch_rows: as above.
    seed: as above.
    epochs: passes over the rows, of which the order is kept; batches after
      them are those from the start again.

  Returns:
    draw(step) -> {name: [batch_rows, ...], ..., "row": [batch_rows] int32}.

  Raises:
    InputError: as above, and "train.epochs" where rows * epochs is beyond
      2^31.
  """
  rows = _check(arrays, batch_rows, seed, epochs)
  if rows * epochs > _LAST:
    raise InputError(
      "train.epochs",
      epochs,
      f"{rows} rows an epoch must be below 2^31 in all",
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
  found = {name: jnp.take(a, row, axis=0) for name, a in held.items()}
  return {**found, "row": row}


def permutation(rows: int, seed: int, epoch: int) -> Int[np.ndarray, "rows"]:
  """The order of an epoch."""
  return shuffle.permutation(rows, shuffle.ARRAYS, seed, epoch)


def _check(
  arrays: Mapping[str, Any], batch_rows: int, seed: int, epochs: int | None
) -> int:
  """Rows of an epoch, after refusing what cannot be batched."""
  if "x" not in arrays or "row" in arrays:
    raise InputError(
      "batch",
      ", ".join(arrays),
      "fields must hold x, and not row, which is the number of the row",
      "name the activations x and another field otherwise",
    )
  counts = {name: len(array) for name, array in arrays.items()}
  rows = counts["x"]
  if set(counts.values()) != {rows}:
    raise InputError(
      "batch",
      counts,
      "fields must have equally many rows",
      "give each one entry per row",
    )
  passes = 1 if epochs is None else epochs
  for name, value, least in (("seed", seed, 0), ("epochs", passes, 1)):
    if value < least:
      raise InputError(
        f"train.{name}",
        value,
        f"must be at least {least}",
        f"use at least {least}",
      )
  most = rows if epochs is None else rows * epochs
  if not 1 <= batch_rows <= most:
    raise InputError(
      "train.batch_rows",
      batch_rows,
      f"must be in [1, {most}], the rows there are",
      f"use at most {most}, or pass more rows",
    )
  return rows


# --- one layer of several ----------------------------------------------------


class Rows(Protocol):
  """The parts of a store that are compared."""

  columns: Mapping[str, Any]

  def whole(self, *names: str) -> dict[str, np.ndarray]: ...


class Stacked:
  """Streams of the same rows at several layers as one of x [B, layers, d].

  For stores of one harvest at each layer: with equal settings, and with
  harvest.outlier_multiple=0 so that each has all rows, the loader gives them in
  one order.

  Args:
    streams: one per layer, in order; their batches have equal "row".
    stores: what the rows come from; checked to say the same of each row.
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
    found = [next(stream) for stream in self._streams]
    row = found[0]["row"]
    for other in found[1:]:
      if not np.array_equal(other["row"], row):
        raise ValueError("streams must give the same rows in the same order")
    return {"x": np.stack([b["x"] for b in found], axis=1), "row": row}

  def get_state(self) -> list[Any]:
    """The positions of the streams."""
    return [stream.get_state() for stream in self._streams]

  def set_state(self, state: Sequence[Any]) -> None:
    """Goes to a position."""
    for stream, own in zip(self._streams, state, strict=True):
      stream.set_state(own)

  def sample(self, rows: int) -> dict[str, np.ndarray]:
    """Samples equal rows of every layer."""
    found = [stream.sample(rows)["x"] for stream in self._streams]
    return {"x": np.stack(found, axis=1)}


class OneLayer:
  """Draws one layer of a group for each row; "cond" is its index.

  Maps batches x [B, L, d] to x [B, d], cond [B] int32. A row occurs once per
  epoch, at a layer that is drawn in each epoch by seed and batch.

  Args:
    batches: such as `array_batches` of x [rows, L, d], or `Stacked`.
    layers: places in L of the group's layers; cond is the place in this list.
    seed: seed of the draws; use a different one for each group.

  References:
    Ghilardi et al., Efficient Training of Sparse Autoencoders for Large
    Language Models via Layer Groups, 2024, arXiv:2410.21508.
  """

  def __init__(self, batches: Batches, layers: Sequence[int], *, seed: int):
    if not layers or min(layers) < 0:
      raise InputError(
        "layers", tuple(layers), "must be places of layers", "name one or more"
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
    """Batches given so far, and the position of the stream behind."""
    return {"batches": self._done, "behind": self._batches.get_state()}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to a position."""
    self._batches.set_state(state["behind"])
    self._done = state["batches"]

  def sample(self, rows: int) -> dict[str, np.ndarray]:
    """Each row at one layer, drawn by the seed."""
    x = np.asarray(self._batches.sample(rows)["x"])
    return self._choose(x, (shuffle.LAYERS, self._seed))


def one_layer(key: PRNGKeyArray, x: Float[Array, "B L d"]) -> dict[str, Array]:
  """As `OneLayer`, inside a compiled program: {"x": [B, d], "cond": [B]}."""
  cond = jax.random.randint(key, x.shape[:1], 0, x.shape[1])
  return {"x": x[jnp.arange(len(x)), cond], "cond": cond}
