"""Batches of several sites side by side, for runs whose members read one each."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from saejax.data.batches import Batches
from saejax.errors import InputError


class SiteBatches:
  """Batches {"x": [s, B, d], ...} of s streams; a `batches.Batches`.

  The streams are read in step: batch i has batch i of each.

  Args:
    batches: a stream of each site, by its name, of equal fields and widths.

  Attributes:
    sites: their names, in the order of the first axis.
    fields: names of the fields of a batch except "row".
    process_count: number of processes that a batch is split over.

  Raises:
    InputError: there is no site, or the fields differ.

  >>> from saejax.data import streams
  >>> of = lambda x: streams.array_batches({"x": x}, batch_rows=2, seed=0)
  >>> both = SiteBatches({"a": of(np.zeros((4, 3))), "b": of(np.ones((4, 3)))})
  >>> next(both)["x"].shape
  (2, 2, 3)
  """

  def __init__(self, batches: Mapping[str, Batches]):
    if not batches:
      raise InputError("sites", {}, "must be at least one", "name the rows")
    self.sites = tuple(batches)
    self._batches = tuple(batches.values())
    first, *others = self._batches
    self.fields = first.fields
    self.process_count: int = getattr(first, "process_count", 1)
    for name, other in zip(self.sites[1:], others, strict=True):
      if set(other.fields) != set(self.fields):
        raise InputError(
          "sites",
          name,
          f"has the fields {', '.join(other.fields)}, and {self.sites[0]} has "
          f"{', '.join(self.fields)}",
          "give all sites the same fields",
        )

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    each = [next(batches) for batches in self._batches]
    found = _stacked(
      {name: [one[name] for one in each] for name in self.fields}
    )
    rows = [one.get("row") for one in each]
    if all(r is not None and np.array_equal(r, rows[0]) for r in rows):
      found["row"] = rows[0]  # of all sites: stores of one harvest
    return found

  def get_state(self) -> dict[str, Any]:
    """Returns the position of each stream, by its site."""
    return {
      name: batches.get_state()
      for name, batches in zip(self.sites, self._batches, strict=True)
    }

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Moves every stream to a position.

    Args:
      state: a position returned by `get_state`.
    """
    for name, batches in zip(self.sites, self._batches, strict=True):
      batches.set_state(state[name])

  def sample(self, rows: int) -> dict[str, np.ndarray]:
    """Samples each site without changing the position.

    Args:
      rows: maximum number of rows of a site.
    """
    each = [batches.sample(rows) for batches in self._batches]
    least = min(len(one["x"]) for one in each)
    return _stacked(
      {name: [one[name][:least] for one in each] for name in self.fields}
    )

  def close(self) -> None:
    """Stops the threads of the streams, if they have any."""
    for batches in self._batches:
      getattr(batches, "close", lambda: None)()


def _stacked(fields: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
  """The fields of all sites, with a leading axis of sites.

  Raises:
    InputError: a field has another shape at another site.
  """
  for name, arrays in fields.items():
    shapes = {np.shape(array) for array in arrays}
    if len(shapes) > 1:
      raise InputError(
        "sites",
        ", ".join(map(str, sorted(shapes))),
        f"{name} must have one shape at all sites",
        "train sites of other widths in another run",
      )
  return {name: np.stack(arrays) for name, arrays in fields.items()}
