"""Text through a model as a row source: activations with document, position
and token of each row.

Forward batches are dispatched ahead of the host; rows that pass the rules are
given. The order of documents, windows and batches is that of `windows`, so that
a position is the place of a forward batch.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saejax.data import rows, spec
from saejax.data.text import corpus as text
from saejax.data.text import feasibility, subject, windows
from saejax.errors import InputError

OUTLIER = "outlier"
_AHEAD = 1  # forward batches on the device beside the one on the host


class TextRows:
  """Rows of one part of a corpus; a `rows.RowSource`.

  Args:
    config: what and how.
    source: the model.
    corpus: the documents.
    part: "train" or "held_out".
    about: metadata, as of `spec.meta`.
    target: the model at the site of the target column, where there is one.

  Attributes:
    calibration: of another part, whose threshold this one takes; None measures
      its own.
  """

  group = None

  def __init__(
    self,
    config: spec.HarvestConfig,
    source: subject.Subject,
    corpus: text.Corpus,
    part: str,
    about: Mapping[str, Any],
    target: subject.Subject | None = None,
  ):
    self.config, self.source, self.corpus = config, source, corpus
    self.part, self.about, self.files = part, about, source.files
    self.columns = spec.columns(config, source, target)
    self._target = target
    self.plan = windows.Plan(
      context=config.context,
      forward_batch=config.forward_batch,
      pool_batches=about["pool_batches"],
      document_tokens=config.document_tokens,
      prefix=source.prefix,
      suffix=source.suffix,
      special=source.special,
      drop_ids=config.drop_ids,
    )
    self.calibration: Mapping[str, Any] | None = None
    self._limit = math.inf

  # --- calibration -----------------------------------------------------------

  def prepare(self, recorded: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The median norm, from which the limit of outliers follows."""
    found = recorded or self.calibration or self._calibrate()
    limit = found["median_norm"] * self.config.outlier_multiple
    self._limit = limit or math.inf
    return found

  def _calibrate(self) -> dict[str, Any]:
    """Median norm of the first tokens of the training part, before any rule.

    Raises:
      InputError: none of them is finite.
    """
    documents = self.corpus.part(text.TRAIN, self.config.held_out_fraction)
    plan = dataclasses.replace(self.plan, pool_batches=1)
    norms, count = [np.zeros(0, np.float32)], 0
    for batch in windows.batches(plan, documents, self._encode):
      norm = np.asarray(self._forward(batch)[1])[batch.mask]
      norms.append(norm[np.isfinite(norm)])
      count += len(norms[-1])
      if count >= self.config.calibration_rows:
        break
    if not count:
      raise InputError(
        "harvest.model",
        self.config.model,
        "must give activations with a finite norm, and no token of the "
        f"training part has one at {self.config.point} of layer "
        f"{self.config.layer}",
        "use another layer, or another checkpoint",
      )
    median = float(np.median(np.concatenate(norms)))
    return {"median_norm": median, "rows": count}

  # --- rows ------------------------------------------------------------------

  @functools.cached_property
  def documents(self) -> np.ndarray:
    """The documents of this part, in order, see `feasibility.documents`."""
    return feasibility.documents(
      self.config, self.corpus, self.part, self.plan, self._encode
    )

  @property
  def end(self) -> dict[str, int]:
    return windows.Point(len(self.documents), 0, 0)._asdict()

  def blocks(
    self, position: Mapping[str, Any] | None, wanted: int
  ) -> Iterator[rows.Block]:
    start = windows.Point(**position) if position else windows.START
    batches = windows.batches(self.plan, self.documents, self._encode, start)
    waiting: collections.deque = collections.deque()
    coming = 0
    while wanted > 0:
      # No batch is begun whose rows would not be wanted.
      batch = next(batches, None) if coming < wanted else None
      if batch is not None:
        found = self._forward(batch)
        for array in jax.tree.leaves(found):
          array.copy_to_host_async()
        waiting.append((batch, found))
        coming += int(batch.keep.sum())
      if waiting and (batch is None or len(waiting) > _AHEAD):
        batch, (values, norm) = waiting.popleft()
        coming -= int(batch.keep.sum())
        values = {name: np.asarray(value) for name, value in values.items()}
        block = self._block(batch, values, np.asarray(norm))
        wanted -= len(block.values["x"])
        yield block
      elif not waiting:
        return

  def _encode(self, document: int) -> np.ndarray:
    return self.corpus.encode(document, self.source.encode)

  def _forward(
    self, batch: windows.Batch
  ) -> tuple[dict[str, jax.Array], jax.Array]:
    x = self.source.forward(batch.ids, batch.mask)
    found = {"x": x}
    if self._target is not None:
      found["target"] = self._target.forward(batch.ids, batch.mask)
    return _stored(found, dtype=self.config.dtype)

  def _block(
    self,
    batch: windows.Batch,
    values: Mapping[str, np.ndarray],
    norm: np.ndarray,
  ) -> rows.Block:
    """The rows of a batch that pass all rules, and how many each rule drops."""
    # Rows that are not finite are no outliers: they have been allowed.
    outlier = (norm > self._limit) & self._finite(batch, values, norm)
    keep = batch.keep & ~outlier
    found = {name: value[keep] for name, value in values.items()}
    found |= {
      "doc": batch.doc[keep],
      "pos": batch.pos[keep],
      "tok": batch.ids[keep],
    }
    if self.config.cond:
      found["cond"] = found["pos"]
    outliers = int(batch.keep.sum() - keep.sum())
    return rows.Block(
      position=batch.point._asdict(),
      values=found,
      dropped=batch.dropped | {OUTLIER: outliers},
      read=batch.tokens,
    )

  def _finite(
    self,
    batch: windows.Batch,
    values: Mapping[str, np.ndarray],
    norm: np.ndarray,
  ) -> np.ndarray:
    """Which rows are finite in all columns, [B, T].

    Raises:
      InputError: one is not, and that is not allowed; with its document and
        position.
    """
    finite = np.isfinite(norm)
    # A norm may overflow where x does not.
    finite[~finite] = _all_finite(values["x"][~finite])
    if "target" in values:
      finite &= _all_finite(values["target"])
    bad = batch.keep & ~finite
    if bad.any() and self.config.nonfinite == "refuse":
      first = tuple(np.argwhere(bad)[0])
      raise InputError(
        "harvest.nonfinite",
        self.config.nonfinite,
        f"activations must be finite, and {bad.sum()} of {batch.keep.sum()} "
        f"rows of a forward batch are not, the first in document "
        f"{batch.doc[first]} at position {batch.pos[first]}, token "
        f"{batch.ids[first]}",
        "use another layer or checkpoint, or keep such rows: "
        "harvest.nonfinite=keep",
      )
    return finite


def _all_finite(x: np.ndarray) -> np.ndarray:
  return np.all(np.isfinite(x.astype(np.float32)), axis=-1)


@functools.partial(jax.jit, static_argnames="dtype")
def _stored(
  values: dict[str, jax.Array], dtype: str
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Rows rounded to the stored dtype, and norms of x before rounding."""
  norm = jnp.linalg.norm(values["x"].astype(jnp.float32), axis=-1)
  return {name: value.astype(dtype) for name, value in values.items()}, norm
