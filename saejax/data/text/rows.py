"""Text through a model as a row source: activations with document, position
and token of each row.

Forward batches are dispatched ahead of the host; rows that pass the rules are
given. The order of documents, windows and batches is that of `windows`, so that
a position is the place of a forward batch.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saejax.data import rows, shuffle, spec
from saejax.data.store import codes, quality, sums
from saejax.data.store.columns import CODES
from saejax.data.text import corpus as text
from saejax.data.text import feasibility, rules, subject, windows
from saejax.errors import InputError

_AHEAD = 1  # forward batches on the device beside the one on the host
_KEPT_IDS = 2**20  # ids of the latest documents, which are often read again


class _Forward(NamedTuple):
  """A forward pass under way.

  Attributes:
    batch: its tokens.
    first: number of its first row.
    span: place of the first span that it has rows of.
    values: columns that come from the model, [B, T, ...].
    norm: norms of x, [B, T] or [B, T, sites].
  """

  batch: windows.Batch
  first: int
  span: int
  values: dict[str, jax.Array]
  norm: jax.Array


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
      rules=rules.RowRules(
        special=source.special,
        first=about["drop_first"],
        drop_ids=config.drop_ids,
        one_row=source.one_row,
      ),
    )
    self.calibration: Mapping[str, Any] | None = None
    encode = source.encode
    if config.document_tokens and source.encode_first is not None:
      first, most = source.encode_first, config.document_tokens
      encode = lambda document: first(document, most)
    self._encode = _Encoded(corpus, encode)
    self._computed: dict[windows.Point, dict[str, jax.Array]] = {}
    self._limit = np.full(source.sites, np.inf)

  # --- calibration -----------------------------------------------------------

  def prepare(self, recorded: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The median norm of each site, from which limits of outliers follow."""
    found = recorded or self.calibration or self._calibrate()
    self._limit = self.limits(found)
    return found

  def limits(self, calibration: Mapping[str, Any]) -> np.ndarray:
    """The largest norm of a row at each site.

    Args:
      calibration: what `prepare` returned.
    """
    multiple = self.config.outlier_multiple
    return np.asarray(rules.limits(calibration["median_norm"], multiple))

  def _calibrate(self) -> dict[str, Any]:
    """Measures the first forward batches of the training part.

    Norms are of all tokens, means and deviations of those that rules keep. The
    activations are kept for the first rows of the store.

    Raises:
      InputError: none of them is finite.
    """
    documents = self.corpus.part(text.TRAIN, self.config.held_out_fraction)
    pool_batches = self.config.pool_batches
    plan = dataclasses.replace(self.plan, pool_batches=pool_batches)
    norms: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    count = 0
    for batch in windows.batches(plan, documents, self._encode):
      found = self._activations(batch)
      x = found["x"]
      if self.part == text.TRAIN:
        self._computed[batch.point] = found
      norm = np.asarray(_norm(x))[batch.mask].reshape(-1, self.source.sites)
      norms.append(norm[np.isfinite(norm).all(axis=-1)])
      rows_kept = np.asarray(x)[batch.keep]
      kept.append(rows_kept.reshape(len(rows_kept), -1))
      count += len(norms[-1])
      if count >= self.config.calibration_rows:
        break
    if not count:
      raise InputError(
        "harvest.model",
        self.config.model,
        "must give activations with a finite norm, and no token of the "
        f"training part has one at {self.config.point} of layer "
        f"{self.config.layers or self.config.layer}",
        "use another layer, or another checkpoint",
      )
    median = np.median(np.concatenate(norms), axis=0)
    found = sums.stats(sums.summed(np.concatenate(kept)), (-1,))
    ratio = found["mean_over_std_max"]
    lossy = self.config.dtype == "bfloat16" and ratio > quality.OFFSET
    lost = {}
    if self.config.dtype in CODES:
      x = np.concatenate(kept).reshape(-1, *self.columns["x"].shape)
      lost = {"codes": codes.error(x)}
    return lost | {
      "median_norm": median.tolist(),
      "rows": count,
      "mean_over_std_max": ratio,
      "warnings": [f"{quality.offset(ratio)}: harvest.dtype=float32 keeps it"]
      * lossy,
    }

  # --- rows ------------------------------------------------------------------

  @functools.cached_property
  def documents(self) -> np.ndarray:
    """The documents of this part, in order, see `feasibility.documents`."""
    return feasibility.documents(
      self.config, self.corpus, self.part, self.plan, self._encode
    )

  def count(self, most: int) -> int:
    total = 0
    for document in self.documents:
      if total >= most:
        break
      total += self.plan.rows(self._encode(document))
    return min(total, most)

  def blocks(
    self, spans: Sequence[rows.Span], resume: rows.Resume | None = None
  ) -> Iterator[rows.Block]:
    waiting: collections.deque[_Forward] = collections.deque()
    for batch, first, span in self._batches(spans, resume):
      waiting.append(self._forward(batch, first, span))
      if len(waiting) > _AHEAD:
        yield from self._blocks(waiting.popleft(), spans)
    for forward in waiting:
      yield from self._blocks(forward, spans)

  def _batches(
    self, spans: Sequence[rows.Span], resume: rows.Resume | None
  ) -> Iterator[tuple[windows.Batch, int, int]]:
    """Forward batches with rows of spans, the number of the first row of each,
    and the place of its first span.
    """
    if not spans:
      return
    start, first = windows.START, 0
    if resume is not None:
      start, first = windows.Point(**resume.at), resume.row
    number = 0
    for batch in windows.batches(
      self.plan, self.documents, self._encode, start
    ):
      while first >= spans[number].stop:
        number += 1
        if number == len(spans):
          return
      stop = first + max(int(batch.keep.sum()), 1)
      if stop > spans[number].start:
        yield batch, first, number
      first += int(batch.keep.sum())

  def batches(self) -> Iterator[windows.Batch]:
    """The forward batches in order; the model does not run."""
    return windows.batches(self.plan, self.documents, self._encode)

  def token_ids(self) -> Iterator[np.ndarray]:
    """Token ids of every document of the part, also of those that rows are not
    taken of, in order and without special tokens around them.
    """
    fraction = self.config.held_out_fraction
    for document in self.corpus.part(self.part, fraction):
      yield rules.shown(self._encode(document))

  def _forward(self, batch: windows.Batch, first: int, span: int) -> "_Forward":
    """Starts the forward pass of a batch."""
    found = self._computed.pop(batch.point, None)
    if found is None:
      self._computed.clear()  # batches come in order: none is asked for later
      found = self._activations(batch)
    if self.config.cond == "layer" and self.source.sites > 1:
      found["x"] = _drawn(found["x"], self._layers(batch))
    values, norm = _stored(found, dtype=spec.row_dtype(self.config))
    if self.source.score is not None:
      values["score"] = self.source.score(batch.ids, batch.mask)
    for array in jax.tree.leaves((values, norm)):
      array.copy_to_host_async()
    return _Forward(batch, first, span, values, norm)

  def _activations(self, batch: windows.Batch) -> dict[str, jax.Array]:
    """Columns that come from the model, [B, T, ...]."""
    found = {"x": self.source.forward(batch.ids, batch.mask)}
    if self._target is not None:
      found["target"] = self._target.forward(batch.ids, batch.mask)
    return found

  def _layers(self, batch: windows.Batch) -> np.ndarray:
    """The place of the layer that is drawn for each token, [B, T] int32."""
    key = (shuffle.TOKEN_LAYERS, self.about["seed"], *batch.point)
    bits = np.random.Philox(np.random.SeedSequence(key))
    drawn = bits.random_raw(batch.ids.size) % np.uint64(self.source.sites)
    return drawn.astype(np.int32).reshape(batch.ids.shape)

  def _blocks(
    self, forward: "_Forward", spans: Sequence[rows.Span]
  ) -> Iterator[rows.Block]:
    """The rows of a batch that pass all rules, a block for each span."""
    batch = forward.batch
    values = {name: np.asarray(v) for name, v in forward.values.items()}
    values |= {"doc": batch.doc, "pos": batch.pos, "tok": batch.ids}
    cond = batch.pos
    limit = self._limit
    if self.config.cond == "layer":
      cond = self._layers(batch)
      limit = limit[cond]
    if self.config.cond:
      values["cond"] = cond
    norm = np.asarray(forward.norm)
    # Rows that are not finite are no outliers: they have been allowed.
    outlier = _any_site(norm > limit) & self._finite(batch, values, norm)
    row = forward.first + np.cumsum(batch.keep).reshape(batch.keep.shape) - 1
    last = forward.first + int(batch.keep.sum())
    for number in range(forward.span, len(spans)):
      span = spans[number]
      if span.start >= last and number > forward.span:
        break
      begins = span.start <= forward.first < span.stop
      keep = batch.keep & (span.start <= row) & (row < span.stop)
      dropped = {rules.OUTLIER: int((keep & outlier).sum())}
      keep &= ~outlier
      yield rows.Block(
        span=number,
        values={name: value[keep] for name, value in values.items()},
        resume=rows.Resume(batch.point._asdict(), forward.first),
        # A batch is counted where it begins.
        dropped=(batch.dropped if begins else {}) | dropped,
        read=batch.tokens if begins else 0,
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
    finite = ~_any_site(~finite)
    if "target" in values:
      finite &= _all_finite(values["target"])
    if "score" in values:
      finite &= np.isfinite(values["score"])
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


class _Encoded:
  """Token ids of a corpus' documents; those of the latest are kept."""

  def __init__(self, corpus: text.Corpus, encode: Callable[[str], np.ndarray]):
    self._corpus, self._encode = corpus, encode
    self._ids: dict[int, np.ndarray] = {}
    self._size = 0

  def __call__(self, document: int) -> np.ndarray:
    if document not in self._ids:
      ids = self._corpus.encode(document, self._encode)
      self._ids[document] = ids
      self._size += len(ids)
      while self._size > _KEPT_IDS and len(self._ids) > 1:
        self._size -= len(self._ids.pop(next(iter(self._ids))))
    return self._ids[document]


def _all_finite(x: np.ndarray) -> np.ndarray:
  return np.all(np.isfinite(x.astype(np.float32)), axis=-1)


def _any_site(found: np.ndarray) -> np.ndarray:
  """Whether it holds for any site of a token: [B, T] or [B, T, sites]."""
  return np.asarray(found.reshape(*found.shape[:2], -1).any(axis=-1))


@functools.partial(jax.jit, static_argnames="dtype")
def _stored(
  values: dict[str, jax.Array], dtype: str
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Rows rounded to the stored dtype, and norms of x before rounding."""
  norm = _norm(values["x"])
  return {name: value.astype(dtype) for name, value in values.items()}, norm


@jax.jit
def _norm(x: jax.Array) -> jax.Array:
  return jnp.linalg.norm(x.astype(jnp.float32), axis=-1)


@jax.jit
def _drawn(x: jax.Array, layer: jax.Array) -> jax.Array:
  """The rows of one site per token: x [B, T, sites, d] -> [B, T, d]."""
  return jnp.take_along_axis(x, layer[..., None, None], axis=2)[:, :, 0]
