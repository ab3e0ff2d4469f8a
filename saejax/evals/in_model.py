"""What edits of a site cost a language model: cross-entropy and KL divergence.

With p the model's prediction of the next token, q its prediction with the
activations of a site replaced, and t a token where the edit acts,

  CE(q) = - log q(next token)          KL(q) = sum_v p(v) log p(v) / q(v)

averaged over tokens, in nats. With the ablation q0 (zeros at the site),

  recovered CE = (CE(q0) - CE(q)) / (CE(q0) - CE(p))
  recovered KL = (KL(q0) - KL(q)) / KL(q0)

Edits act on the tokens that are rows of a harvest, see `splices`, and only those
tokens are counted whose next token exists. Sums are kept by document and by position in float64, so that parts can be merged, and two
edits are compared on the same tokens by resampling documents (paired bootstrap).

References:
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532 (loss recovered, KL score).
  Gao et al., Scaling and evaluating sparse autoencoders, 2024, arXiv:2406.04093.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saejax.errors import InputError
from saejax.evals import comparison, splices
from saejax.evals.comparison import Difference
from saejax.models import edits as edits_lib
from saejax.models import mesh
from saejax.models.model import Model

ZERO = "zero"  # name of the edit that others are measured against
MEASURES = ("ce", "kl")


@dataclasses.dataclass(frozen=True, eq=False)
class InModel:
  """Sums over tokens for each edit; see the module's docstring.

  Attributes:
    names: names of the edits, E of them.
    documents: numbers of the documents [D], ascending.
    tokens: counted tokens by document [D].
    clean: sum of the model's own cross-entropy by document [D].
    ce, kl: sums for each edit by document [E, D].
    by_position: {"tokens": [T], "clean": [T], "ce": [E, T], "kl": [E, T]} by
      position in the window.
  """

  names: tuple[str, ...]
  documents: np.ndarray
  tokens: np.ndarray
  clean: np.ndarray
  ce: np.ndarray
  kl: np.ndarray
  by_position: Mapping[str, np.ndarray]

  def mean(self, name: str, measure: str = "ce") -> float:
    """The mean over tokens, in nats.

    Args:
      name: name of an edit; "clean" for the model itself.
      measure: "ce" or "kl".
    """
    total = self.tokens.sum()
    if name == "clean":
      return float(self.clean.sum() / total) if measure == "ce" else 0.0
    return float(self._sums(name, measure).sum() / total)

  def recovered(self, name: str, measure: str = "ce") -> float:
    """The recovered share of what the ablation "zero" costs; NaN without it.

    Args:
      name: name of an edit.
      measure: "ce" or "kl".
    """
    if ZERO not in self.names:
      return float("nan")
    worst, best = self.mean(ZERO, measure), self.mean("clean", measure)
    lost = worst - best
    return (worst - self.mean(name, measure)) / lost if lost else float("nan")

  def compare(
    self,
    a: str,
    b: str,
    measure: str = "ce",
    *,
    resamples: int = 2000,
    seed: int = 0,
  ) -> Difference:
    """The mean of a less that of b, with its 95 % interval over documents.

    Args:
      a, b: names of edits.
      measure: "ce" or "kl".
      resamples: resamples of the documents.
      seed: of the resampling.
    """
    difference = self._sums(a, measure) - self._sums(b, measure)
    return comparison.resampled(
      difference, self.tokens, resamples=resamples, seed=seed
    )

  def intervals(
    self, *, resamples: int = 2000, seed: int = 0
  ) -> dict[str, dict[str, tuple[float, float]]]:
    """95 % intervals of the recovered shares over resampled documents.

    Args:
      resamples: resamples of the documents.
      seed: of the resampling.

    Returns:
      (low, high) by name of the edit and measure; NaN without "zero" or with
      fewer than two documents.
    """
    none = (float("nan"), float("nan"))
    if len(self.documents) < 2 or ZERO not in self.names:
      return {name: dict.fromkeys(MEASURES, none) for name in self.names}
    lost, at = self._resampled(resamples, seed)[0], self.names.index(ZERO)
    with np.errstate(invalid="ignore", divide="ignore"):
      share = 1 - lost / lost[:, at : at + 1]
    ends = np.quantile(share, [0.025, 0.975], axis=-1)
    return {
      name: {m: tuple(ends[:, i, e].tolist()) for i, m in enumerate(MEASURES)}
      for e, name in enumerate(self.names)
    }

  def increases(
    self, *, resamples: int = 2000, seed: int = 0
  ) -> dict[str, tuple[float, float]]:
    """95 % intervals of CE(q) - CE(p) over resampled documents, in nats.

    Args:
      resamples: resamples of the documents.
      seed: of the resampling.

    Returns:
      (low, high) by name of the edit; NaN with fewer than two documents.
    """
    if len(self.documents) < 2:
      return dict.fromkeys(self.names, (float("nan"), float("nan")))
    lost, tokens = self._resampled(resamples, seed)
    ends = np.quantile(lost[0] / tokens, [0.025, 0.975], axis=-1).T.tolist()
    return dict(zip(self.names, map(tuple, ends), strict=True))

  def _resampled(
    self, resamples: int, seed: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """What edits cost [measure, E, resample], and tokens, of drawn documents."""
    D, rng = len(self.documents), np.random.default_rng(seed)
    every = np.stack([self.ce - self.clean, self.kl])
    chunk = max(1, 2**24 // D)
    lost, tokens = [], []
    for r in np.diff([*range(0, resamples, chunk), resamples]):
      drawn = rng.multinomial(D, np.full(D, 1 / D), r)
      lost.append(np.einsum("med,rd->mer", every, drawn))
      tokens.append(drawn @ self.tokens)
    return np.concatenate(lost, axis=-1), np.concatenate(tokens)

  def record(self) -> dict[str, Any]:
    """Means and recovered shares with intervals by edit, for results.json."""
    found: dict[str, Any] = {
      "tokens": int(self.tokens.sum()),
      "documents": len(self.documents),
      "clean": self.mean("clean"),
    }
    intervals, increases = self.intervals(), self.increases()
    for name in self.names:
      found[name] = {
        "ce": self.mean(name),
        "ce_increase": self.mean(name) - found["clean"],
        "kl": self.mean(name, "kl"),
        "ce_recovered": self.recovered(name),
        "kl_recovered": self.recovered(name, "kl"),
      }
      for measure, ends in intervals[name].items():
        if np.isfinite(ends).all():  # JSON has no NaN
          found[name][f"{measure}_recovered_interval"] = list(ends)
      if np.isfinite(increases[name]).all():
        found[name]["ce_increase_interval"] = list(increases[name])
    return found

  def merged(self, other: "InModel") -> "InModel":
    """The sums over both; a document may have tokens in each.

    Args:
      other: sums for the same edits, over other tokens.

    Raises:
      ValueError: it is of other edits.
    """
    if self.names != other.names:
      raise ValueError(f"edits must be {self.names}, got {other.names}")
    documents = np.union1d(self.documents, other.documents)
    sums = {}
    for name in ("tokens", "clean", "ce", "kl"):
      mine = getattr(self, name)
      total = np.zeros((*mine.shape[:-1], len(documents)), mine.dtype)
      for part in (self, other):
        at = np.searchsorted(documents, part.documents)
        total[..., at] += getattr(part, name)
      sums[name] = total
    longest = max(len(p.by_position["tokens"]) for p in (self, other))
    by_position = {
      name: sum(_padded(p.by_position[name], longest) for p in (self, other))
      for name in self.by_position
    }
    return InModel(self.names, documents, by_position=by_position, **sums)  # pyright: ignore[reportArgumentType]

  def _sums(self, name: str, measure: str) -> np.ndarray:
    if measure not in MEASURES:
      raise ValueError(f"measure must be ce or kl, got {measure!r}")
    if name not in self.names:
      raise ValueError(f"must be one of {self.names}, got {name!r}")
    return getattr(self, measure)[self.names.index(name)]


def evaluate(
  model: Model,
  site: str,
  edits: Mapping[str, edits_lib.AnyEdit],
  batches: Iterable[splices.Tokens],
  *,
  source: str = "",
  limit: float = np.inf,
) -> InModel:
  """Computes cross-entropy and KL divergence with edits of a site.

  The layers before the site run once a batch, those after it once without an
  edit and once for each. Logits are made for one window at a time,
  [T, vocabulary], and for as many as the model has data devices.

  Args:
    model: a causal language model.
    site: the site that is edited, in any of the forms of `models.taps`.
    edits: edits by name; one called "zero" is what shares are relative to.
    batches: the tokens.
    source: an earlier site that edits read, as transcoders do.
    limit: largest norm of a row; rows above it keep their activations, as those
      that a harvest drops as outliers.

  Raises:
    InputError: the model is not causal or has no head, there is no such site,
      or no token is counted.
  """
  check(model)
  site, names = splices.name(model, site), tuple(edits)
  prepared = [splices.prepared(model, edit) for edit in edits.values()]
  total = nothing(names)
  for batch in batches:
    read = splices.Reading(model, site, batch, source=source, limit=limit)
    changed = (read.edited(edit) for edit in prepared)
    total = total.merged(part(names, read, batch, changed))
  check_counted(total)
  return total


def check(model: Model) -> None:
  """Refuses a model that predicts no token.

  Args:
    model: the model.

  Raises:
    InputError: it is an encoder, or its checkpoint has no head.
  """
  if not model.causal:
    raise InputError(
      "model",
      model.name,
      "must predict the next token, and is an encoder",
      "evaluate its embeddings: evals.embeddings",
    )
  _ = model.head


def check_counted(found: InModel) -> None:
  """Refuses sums of no token.

  Args:
    found: the sums.

  Raises:
    InputError: there is none.
  """
  if not found.tokens.sum():
    raise InputError(
      "corpus",
      "no token",
      "must have tokens that are rows and are followed by another",
      "give more text, or a longer context",
    )


def nothing(names: tuple[str, ...]) -> InModel:
  """Returns the sums over no token.

  Args:
    names: names of the edits.
  """
  number, one = np.zeros(0, np.int64), np.zeros(0)
  each = np.zeros((len(names), 0))
  by_position = {"tokens": number, "clean": one, "ce": each, "kl": each}
  return InModel(names, number, number, one, each, each, by_position)


def part(
  names: tuple[str, ...],
  read: splices.Reading,
  batch: splices.Tokens,
  changed: Iterable[Array],
) -> InModel:
  """Computes the sums of one batch.

  Args:
    names: names of the edits.
    read: the batch at the site.
    batch: the tokens.
    changed: activations of the site with each edit.
  """
  model = read.model
  clean, hidden = read.hidden(), [read.hidden(h) for h in changed]
  changed_ = jnp.stack(hidden) if hidden else jnp.zeros((0, *clean.shape))
  found = _compared(model, read.ids, clean, changed_)
  found = mesh.settled(found, model.mesh)
  return _summed(names, batch, *(np.asarray(a, np.float64) for a in found))


@jax.jit
def _compared(
  model: Model,
  ids: Int[Array, "B T"],
  clean: Float[Array, "B T d"],
  changed: Float[Array, "E B T d"],
) -> tuple[Array, Array, Array]:
  """CE [B, T - 1], and CE and KL of edits [E, B, T - 1], a window at a time."""

  def window(at):
    ids, clean, changed = at
    log_p = _log_softmax(model, clean)
    of_next = lambda logs: jnp.take_along_axis(logs, ids[1:, None], 1)[:, 0]

    def one(hidden):
      log_q = _log_softmax(model, hidden)
      kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
      return -of_next(log_q), kl

    ce, kl = jax.lax.map(one, changed)
    return -of_next(log_p), ce, kl

  by_row = ids, clean, jnp.swapaxes(changed, 0, 1)
  found = mesh.by_row(window, by_row, model.mesh)
  return found[0], jnp.swapaxes(found[1], 0, 1), jnp.swapaxes(found[2], 0, 1)


def _log_softmax(model: Model, h: Float[Array, "T d"]) -> Array:
  logits = model.logits(h[None, :-1]).astype(jnp.float32)[0]
  return jax.nn.log_softmax(logits, axis=-1)


def _summed(
  names: tuple[str, ...],
  batch: splices.Tokens,
  clean: np.ndarray,
  ce: np.ndarray,
  kl: np.ndarray,
) -> InModel:
  """Sums over the counted tokens of a batch, by document and by position."""
  counted = batch.keep[:, :-1] & batch.mask[:, 1:]
  clean, ce, kl = (np.where(counted, a, 0.0) for a in (clean, ce, kl))
  used = counted.any(axis=1)
  documents, of_row = np.unique(batch.doc[used, 0], return_inverse=True)

  def by_document(array: np.ndarray) -> np.ndarray:
    rows = array.sum(axis=-1)[..., used]
    total = np.zeros((*rows.shape[:-1], len(documents)), rows.dtype)
    np.add.at(total, (..., of_row), rows)
    return total

  arrays = {"tokens": counted.astype(np.int64), "clean": clean}
  arrays |= {"ce": ce, "kl": kl}
  return InModel(
    names,
    documents,
    **{name: by_document(array) for name, array in arrays.items()},
    by_position={name: a.sum(axis=-2) for name, a in arrays.items()},
  )


def _padded(array: np.ndarray, length: int) -> np.ndarray:
  short = length - array.shape[-1]
  return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, short)])
