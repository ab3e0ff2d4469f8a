"""Metrics of one SAE on held-out rows; `saejax.evaluate`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.evals import reconstruction
from saejax.evals.reconstruction import Reconstruction
from saejax.features import reading
from saejax.sae.context import FIELDS, Batch, as_batch
from saejax.sae.sae import SAE

BATCH_ROWS = 4096
UNITS = ("model", "prep")


def evaluate(
  sae: SAE,
  rows: Any,
  *,
  mean: Float[Array, "d"] | Store | None = None,
  units: str = "model",
) -> Reconstruction:
  """Computes reconstruction metrics of an SAE on held-out rows.

  Args:
    sae: the SAE, in the inference form.
    rows: an array [rows, d], a `Batch`, a `Store`, or an iterable of arrays or
      batches. Non-finite rows are left out and counted.
    mean: mean of the training rows in units of x (of the target, for a
      transcoder), or the training store. Without a mean nmse is NaN.
    units: units of the errors: "model" for the units of x, or "prep" for the
      frame of the prep, in which the SAE was trained. fvu and nmse are equal in
      both if the prep is linear with one scale.

  Returns:
    rows, nonfinite_rows, fvu, nmse, l0, dead, cosine and density; see
    `evals.reconstruction` for the equations.

  Raises:
    InputError: there are no finite rows, the units are unknown, or the prep
      depends on the row and cannot be applied to a mean.
    ValueError: rows or mean have another width.

  >>> import jax, saejax
  >>> from saejax.sae import activations
  >>> sae = saejax.init(
  ...   jax.random.key(0), d=8, n=16, activation=activations.TopK(4))
  >>> x = jax.random.normal(jax.random.key(1), (100, 8))
  >>> metrics = saejax.evaluate(sae, x, mean=x.mean(axis=0))
  >>> metrics.rows, metrics.l0 <= 4, abs(metrics.fvu - metrics.nmse) < 1e-4
  (100, True, True)
  """
  if units not in UNITS:
    raise InputError("units", units, "must be model or prep", "choose one")
  batches = _batches(rows)
  width = sae.d
  about = (
    np.zeros(width, np.float32) if mean is None else _mean(sae, mean, units)
  )
  if about.shape != (width,):
    raise ValueError(f"mean must be [{width}], got {list(about.shape)}")
  metrics = reconstruction.evaluate_many(
    [sae],
    batches,
    means=[about],
    frame="raw" if units == "model" else "prep",
  )[0]
  return metrics if mean is not None else metrics.without_nmse()


def _mean(sae: SAE, mean: Any, units: str) -> np.ndarray:
  """Returns the mean of the training rows in the units of the errors."""
  prep = sae.prep if sae.target_prep is None else sae.target_prep
  if isinstance(mean, Store):
    if sae.target_prep is None and units == "prep":
      return np.asarray(reconstruction.frame_mean(prep, mean))
    about = mean.stats if sae.target_prep is None else mean.moments["target"]
    mean = about["mean"]
  raw = np.asarray(mean, np.float32)
  if units == "model":
    return raw
  framed, statistics = prep.apply(jnp.asarray(raw))
  if statistics is not None:
    raise InputError(
      "mean",
      f"an array of shape {list(raw.shape)}",
      f"cannot be converted to the frame of {type(prep).__name__}, which "
      "depends on the row",
      "give the training store, or units='model'",
    )
  return np.asarray(framed, np.float32)


def _batches(rows: Any) -> Iterable[Any]:
  """Returns batches of an array, a batch, a store or an iterable."""
  if isinstance(rows, Store):
    return _of_store(rows)
  if isinstance(rows, list | tuple) and rows and np.ndim(rows[0]) < 2:
    rows = np.asarray(rows)
  if isinstance(rows, Batch | Mapping) or hasattr(rows, "shape"):
    return _cut(as_batch(rows))
  return rows


def _of_store(store: Store) -> Iterator[Batch]:
  """Yields every row in order, with the columns that SAEs read."""
  names = [name for name in store.trained if name in FIELDS]
  for numbers, x in reading.batches(store, batch_rows=BATCH_ROWS):
    first, last = int(numbers[0]), int(numbers[-1]) + 1
    more = {n: store.read(first, last, n) for n in names if n != "x"}
    yield Batch(x=x, **more)


def _cut(batch: Batch) -> Iterator[Batch]:
  """Yields parts of at most `BATCH_ROWS` rows, on the host."""
  fields = {n: getattr(batch, n) for n in FIELDS}
  fields = {n: np.asarray(v) for n, v in fields.items() if v is not None}
  for start in range(0, len(fields["x"]), BATCH_ROWS):
    stop = start + BATCH_ROWS
    yield Batch(**{n: v[start:stop] for n, v in fields.items()})
