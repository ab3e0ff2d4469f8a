"""Reconstruction metrics of an SAE on held-out rows.

The metrics are computed from sums over one streaming pass. With x the rows, x_hat
their reconstruction, z the latents, m the training mean and x_bar the mean of the
evaluated rows, all in the frame of the SAE's prep or in that of the model:

  nmse    = sum |x - x_hat|^2 / sum |x - m|^2
  fvu     = sum |x - x_hat|^2 / sum |x - x_bar|^2
  L0      = mean over rows of the number of z_i != 0
  density = share of rows on which z_i != 0, for each latent
  dead    = share of latents that are 0 on every row
  cosine  = mean over rows of <x, x_hat> / (|x| |x_hat|)

Sums over a batch are float32 (counts int32) on the device; batches are added on
the host in float64 and int64, so that counts are exact beyond 2^24 rows. Padding
and non-finite rows have weight 0, so that batch-wide selections ignore them.

fvu is the main metric, because a few training rows of large norm can shift m and
with it nmse.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from saejax import errors
from saejax.data.store.reader import Store
from saejax.features import reading
from saejax.sae.context import Batch, as_batch
from saejax.sae.latents import Latents, SparseLatents
from saejax.sae.prep import Prep
from saejax.sae.sae import SAE
from saejax.training.state import Stats

# Bins of a quarter of a decade; the first one includes all rarer latents.
DENSITY_EDGES = np.linspace(-7.0, 0.0, 29)


Value = Array | np.ndarray | np.generic  # on the device, or on the host


class Sums(flax.struct.PyTreeNode):
  """Additive sums over rows from which the metrics are computed.

  Attributes:
    rows: number of finite rows.
    nonfinite: number of non-finite rows, which are in no other sum.
    error: sum |x - x_hat|^2.
    about_mean: sum |x - m|^2.
    offset: sum (x - m), [d].
    cosine: sum of the rows' cosines, 0 where x or x_hat is 0.
    fired: number of rows on which each latent is not 0, [n].
  """

  rows: Value
  nonfinite: Value
  error: Value
  about_mean: Value
  offset: Value
  cosine: Value
  fired: Value


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """The metrics of the module's docstring.

  Attributes:
    rows: number of evaluated rows.
    nonfinite_rows: number of non-finite rows, which were left out.
    nmse, fvu: normalised errors; NaN where the denominator is 0, and nmse also
      without a training mean.
    l0: active latents per row.
    dead: share of dead latents, in [0, 1].
    cosine: mean cosine, in [-1, 1].
    density: share of rows on which each latent is not 0.
  """

  rows: int
  nonfinite_rows: int
  nmse: float
  fvu: float
  l0: float
  dead: float
  cosine: float
  density: Float[np.ndarray, "n"]

  def histogram(
    self, edges: Float[np.ndarray, "e"] = DENSITY_EDGES
  ) -> dict[str, list]:
    """Counts live latents in bins of log10 density.

    Args:
      edges: edges of the bins; densities beyond them count in the outer bins.

    Returns:
      {"log10_edges": [e], "counts": [e - 1]}.
    """
    live = self.density[self.density > 0]
    logs = np.clip(np.log10(live), edges[0], edges[-1])
    counts, _ = np.histogram(logs, edges)
    return {"log10_edges": edges.tolist(), "counts": counts.tolist()}

  def without_nmse(self) -> "Reconstruction":
    """Returns the metrics with nmse NaN, for rows without a training mean."""
    return dataclasses.replace(self, nmse=float("nan"))

  def record(self) -> dict[str, float | int]:
    """Returns the scalars, for results.json."""
    values = dataclasses.asdict(self)
    del values["density"]
    return values


def init(n: int, d: int) -> Sums:
  """Returns sums over no rows.

  Args:
    n: number of latents.
    d: width.
  """
  zero = np.float64(0)
  return Sums(
    rows=np.int64(0),
    nonfinite=np.int64(0),
    error=zero,
    about_mean=zero,
    offset=np.zeros(d, np.float64),
    cosine=zero,
    fired=np.zeros(n, np.int64),
  )


@partial(jax.jit, static_argnames=("frame",))
def batch_sums(
  sae: SAE,
  x: Float[Array, "B d"] | Batch,
  real: Bool[Array, "B"],
  mean: Float[Array, "d"],
  frame: str = "prep",
  stats: Stats | None = None,
) -> Sums:
  """Computes the sums of a batch on the device.

  Args:
    sae: the SAE.
    x: rows.
    real: mask of the rows that are not padding.
    mean: training mean in the frame.
    frame: "prep", or "raw" for the frame of the model.
    stats: statistics that the selection of a training form reads.
  """
  batch = as_batch(x)
  finite = _finite(batch.x)
  if batch.target is not None:
    finite &= _finite(batch.target)
  use = real & finite
  if batch.weight is not None:
    use &= batch.weight != 0
  fill = lambda a: None if a is None else jnp.where(finite[:, None], a, 0)
  batch = batch.replace(
    x=fill(batch.x),
    target=fill(batch.target),
    weight=use.astype(jnp.float32),
  )
  out = sae.forward(batch, stats=stats)
  x, x_hat = out.target, out.x_hat
  if frame == "raw":
    prep = sae.prep if sae.target_prep is None else sae.target_prep
    x = batch.x if batch.target is None else batch.target
    x_hat = prep.undo(x_hat, out.statistics)
  x, x_hat = x.astype(jnp.float32), x_hat.astype(jnp.float32)
  total = lambda rows: jnp.sum(jnp.where(use, rows, 0.0))
  offset = x - mean.astype(jnp.float32)[None]
  norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(x_hat, axis=-1)
  inner = jnp.sum(x * x_hat, axis=-1)
  return Sums(
    rows=jnp.sum(use, dtype=jnp.int32),
    nonfinite=jnp.sum(real & ~finite, dtype=jnp.int32),
    error=total(jnp.sum((x - x_hat) ** 2, axis=-1)),
    about_mean=total(jnp.sum(offset**2, axis=-1)),
    offset=jnp.sum(jnp.where(use[:, None], offset, 0.0), axis=0),
    # Only exact zeros are replaced, so that a NaN in x_hat remains visible.
    cosine=total(inner / jnp.where(norms == 0, 1.0, norms)),
    fired=_fired(out.latents, use),
  )


def _finite(x: Float[Array, "B d"]) -> Bool[Array, "B"]:
  """Returns the mask of rows whose values are all finite."""
  return jnp.all(jnp.isfinite(x), axis=-1)


def update(
  sums: Sums,
  sae: SAE,
  x: Float[Array, "B d"],
  real: Bool[Array, "B"],
  mean: Float[Array, "d"],
) -> Sums:
  """Adds a batch to sums.

  Args:
    sums: the sums so far.
    sae, x, real, mean: as for `batch_sums`.
  """
  return merge(sums, batch_sums(sae, x, real, mean))


def merge(sums: Sums, other: Sums) -> Sums:
  """Adds sums on the host.

  Args:
    sums: sums on the host.
    other: sums of further rows, on the host or the device.
  """

  def add(a, b):
    wide = np.int64 if np.issubdtype(b.dtype, np.integer) else np.float64
    return np.asarray(a) + np.asarray(b).astype(wide)

  return jax.tree.map(add, sums, other)


def compute(sums: Sums) -> Reconstruction:
  """Computes the metrics from sums.

  Args:
    sums: the sums over all rows.

  Raises:
    InputError: there were no finite rows.
  """
  rows = int(sums.rows)
  if rows == 0:
    raise errors.InputError(
      "harvest.held_out_rows",
      rows,
      "must have at least one finite row",
      "harvest more held-out rows",
    )
  error, about_mean = float(sums.error), float(sums.about_mean)
  offset = np.asarray(sums.offset, np.float64)
  about_own_mean = about_mean - float(offset @ offset) / rows
  fired = np.asarray(sums.fired, np.int64)
  return Reconstruction(
    rows=rows,
    nonfinite_rows=int(sums.nonfinite),
    nmse=error / about_mean if about_mean > 0 else float("nan"),
    fvu=error / about_own_mean if about_own_mean > 0 else float("nan"),
    l0=int(fired.sum()) / rows,
    dead=float(np.mean(fired == 0)),
    cosine=float(sums.cosine) / rows,
    density=fired / rows,
  )


def evaluate_many(
  saes: Sequence[SAE],
  batches: Iterable[Float[np.ndarray, "B d"] | Batch],
  *,
  means: Sequence[Float[Array, "d"]],
  frame: str = "prep",
  stats: Sequence[Stats] | None = None,
  batch_rows: int | None = None,
) -> list[Reconstruction]:
  """Computes the metrics of several SAEs in one pass over the rows.

  Args:
    saes: SAEs of any shapes; each batch is copied to the device once.
    batches: rows in the frame of the model, padded or cut to `batch_rows`.
    means: training mean in each SAE's frame, see `frame_mean`.
    frame: "prep", or "raw" for errors in the units of the model. fvu and nmse
      are equal in both for a linear prep with one scale. For a prep that depends
      on the row or is trained, only "raw" is comparable with other SAEs.
    stats: statistics that selections in the training form read, per SAE.
    batch_rows: rows of the compiled batch, those of the first batch by default.
      Batch-wide selections depend on it.

  Returns:
    Metrics per SAE. Non-finite weights give NaN metrics; non-finite rows are left
    out and counted.

  Raises:
    InputError: there were no finite rows.
  """
  totals = [init(sae.n, sae.d) for sae in saes]
  means = [jnp.asarray(mean, jnp.float32) for mean in means]
  each = [None] * len(saes) if stats is None else stats
  pending: list[Sums] = []
  for x, real in _equal(batches, batch_rows):
    x, real = jax.device_put((x, real))
    sums = [
      batch_sums(sae, x, real, mean, frame, own)
      for sae, mean, own in zip(saes, means, each, strict=True)
    ]
    # The previous batch is added while this one is computed.
    totals = list(map(merge, totals, pending)) if pending else totals
    pending = sums
  totals = list(map(merge, totals, pending)) if pending else totals
  return [compute(total) for total in totals]


def form_warning(point: Mapping[str, Any], tolerance: float = 0.05) -> str:
  """Describes how the inference form differs from the training form.

  Args:
    point: "l0" and "fvu" of the inference form, and "training_l0" and
      "training_fvu" of the training form, on equal rows.
    tolerance: relative difference up to which a metric is left out.

  Returns:
    The differences; "" if there are none.

  >>> form_warning({"l0": 40.0, "training_l0": 32.0})
  'L0 40 in use, 32 in training'
  """
  differences = []
  for name, label in (("l0", "L0"), ("fvu", "FVU")):
    use, training = point.get(name), point.get(f"training_{name}")
    if use is None or training is None:
      continue
    if abs(use - training) > tolerance * abs(training):
      differences.append(
        f"{label} {use:.3g} in use, {training:.3g} in training"
      )
  return "; ".join(differences)


def frame_mean(
  prep: Prep, store: Store, *, max_rows: int = 1_000_000
) -> Float[np.ndarray, "d"]:
  """Computes the mean of a store's rows in the frame of a prep, float32.

  For a linear prep this is the prep applied to the store's mean. For a prep that
  depends on the row (layer norm) it is the mean of the prepared rows over the
  first finite ones, which are a sample because stores are shuffled.

  Args:
    prep: the prep.
    store: the store.
    max_rows: number of rows of the sample.
  """
  framed, statistics = prep.apply(jnp.asarray(store.stats["mean"], jnp.float32))
  if statistics is None:  # the prep does not depend on the row
    return np.asarray(framed, np.float32)
  total, rows = np.zeros(store.d, np.float64), 0
  for _, x in reading.batches(store, batch_rows=4096):
    x, real = reading.pad(x[: max_rows - rows], 4096)
    added, count = _prepared_sum(prep, x, real)
    total += np.asarray(added, np.float64)
    rows += int(count)
    if rows >= max_rows:
      break
  return (total / max(rows, 1)).astype(np.float32)


@jax.jit
def _prepared_sum(prep, x, real):
  use = real & jnp.all(jnp.isfinite(x), axis=-1)
  framed, _ = prep.apply(jnp.where(use[:, None], x, 0))
  return jnp.sum(jnp.where(use[:, None], framed, 0.0), axis=0), jnp.sum(use)


def _fired(latents: Latents, use: Bool[Array, "B"]) -> Array:
  """Counts the rows on which each latent is not 0, [n] int32."""
  if isinstance(latents, SparseLatents):
    hits = ((latents.values != 0) & use[:, None]).astype(jnp.int32)
    zeros = jnp.zeros((latents.n,), jnp.int32)
    return zeros.at[latents.indices.reshape(-1)].add(hits.reshape(-1))
  hits = (latents.dense() != 0) & use[:, None]
  return jnp.sum(hits, axis=0, dtype=jnp.int32)


def _equal(batches, size: int | None):
  """Yields batches (x, mask) of one size, by default that of the first one."""
  for batch in batches:
    batch = as_batch(batch)
    size = size or batch.rows
    for start in range(0, batch.rows, size):
      part = jax.tree.map(partial(_rows, start, size), batch)
      yield part, np.arange(size) < batch.rows - start


def _rows(start: int, size: int, a) -> np.ndarray:
  """Returns `size` rows from `start` on, with zeros beyond the last row."""
  return reading.pad(np.asarray(a[start : start + size]), size)[0]
