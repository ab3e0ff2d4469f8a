"""Sparse probing: how well k latents predict the classes of documents.

Latents are pooled by document, see `documents.pooled`: both the choice of latents
and the penalty depend on their units. For each class against the rest, in balanced
tasks:

  1. the k latents with the largest |mean of positives - mean of negatives| of the
     training rows are chosen,
  2. a logistic regression on these k is fitted on the training rows,
  3. accuracy, AUROC and F1 are those on the test rows.

The full probe uses all columns. The same is done for each matrix that is given, of
equal rows: an SAE's latents, the activations themselves ("llm", the baseline), and
controls.

  SAEBENCH     L2 with C = 1, columns as they are; the full probe has the C of the
               best accuracy on validation rows
  SAE_PROBES   L1 on the k chosen latents, and L2 on all, of standardised columns
               with the C of the best AUROC on validation rows

SAEBench's full probes keep the epoch with the best accuracy on the test rows. Here
nothing is chosen by test rows, except with compat="saebench", where the full
probe has the C that is best on them. Its full probes are trained by AdamW and
stopped early; these are at the minimum. A 2026 study of reliability
(arXiv:2605.18229) reports that the variant with L1 is the most reliable metric of
SAEBench.

References:
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532.
  Kantamneni et al., Are Sparse Autoencoders Useful?, 2025, arXiv:2502.16681.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int, Shaped

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.probing import probe, probe_tasks
from saejax.evals.probing.probe_input import Rows

KS = (1, 2, 5, 10, 20, 50, 100)
CS = (1e-3, 1e-2, 1e-1, 1.0, 1e1)
FULL = "full"
TRAIN_ROWS, TEST_ROWS = 4000, 1000  # largest numbers of a task


class Protocol(NamedTuple):
  """A way to fit the probes.

  Attributes:
    penalty: of the probe on k latents, "l1" or "l2"; the full one has "l2".
    Cs: inverse penalties of the probe on k latents.
    full_Cs: those of the full probe; of several the best one on validation rows.
    standardise: whether columns are divided by their standard deviation.
    choose_by: "accuracy" or "auc".
  """

  penalty: str
  Cs: Sequence[float]
  full_Cs: Sequence[float]
  standardise: bool
  choose_by: str


SAEBENCH = Protocol("l2", (1.0,), CS, False, "accuracy")
SAE_PROBES = Protocol("l1", CS, CS, True, "auc")


class Score(NamedTuple):
  """Scores on test rows of the probe of each class.

  Attributes:
    accuracy, auc, f1: the scores.
    columns: the columns that it uses, the best first; None for all.
    C: inverse penalty of each.
  """

  accuracy: Float[np.ndarray, "C"]
  auc: Float[np.ndarray, "C"]
  f1: Float[np.ndarray, "C"]
  columns: Int[np.ndarray, "C k"] | None
  C: Float[np.ndarray, "C"]


@dataclasses.dataclass(frozen=True, eq=False)
class SparseProbing:
  """Scores of every matrix.

  Attributes:
    classes: the classes, in the order of the scores.
    scores: for each matrix by name, for each k, or "full".
  """

  classes: Sequence[Any]
  scores: Mapping[str, Mapping[int | str, Score]]

  def record(self) -> dict[str, float]:
    """Returns means over classes, under SAEBench's names.

    `sae_top_1_test_accuracy`, `sae_test_accuracy` for all columns, and so on for
    auc and f1 and for the other matrices.
    """
    found = {}
    for name, scores in self.scores.items():
      for k, score in scores.items():
        which = name if k == FULL else f"{name}_top_{k}"
        for metric in ("accuracy", "auc", "f1"):
          value = float(getattr(score, metric).mean())
          found[f"{which}_test_{metric}"] = value
    return found


def sparse_probing(
  features: Mapping[str, Rows],
  labels: Shaped[np.ndarray, "N"],
  *,
  groups: Shaped[np.ndarray, "N"] | None = None,
  ks: Sequence[int] = KS,
  full: bool = True,
  protocol: Protocol = SAEBENCH,
  test: float = 0.2,
  validation: float = 0.2,
  rows: tuple[int, int] = (TRAIN_ROWS, TEST_ROWS),
  seed: int = 0,
  compat: str | None = None,
) -> SparseProbing:
  """Probes latents for classes; see the module.

  Args:
    features: matrices of pooled rows by name, sparse or not, such as "sae" for
      latents and "llm" for activations.
    labels: class of each row, see `probe_tasks.tasks`.
    groups: document of each row; each row is one by default.
    ks: numbers of latents; those above the number of columns are left out.
    full: whether the probe of all columns is fitted too.
    protocol: how probes are fitted.
    test: share of the rows for testing.
    validation: share of the training rows by which penalties are chosen.
    rows: largest numbers of training and of test rows of a task.
    seed: seed of all draws.
    compat: "saebench" to choose the penalty of full probes by the test rows.

  Raises:
    InputError: matrices have other numbers of rows than labels, there are fewer
      than two classes, or compat is unknown; or as `probe_tasks.tasks`.
  """
  labels = np.asarray(labels)
  _check(features, labels, ks, compat)
  groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
  train = probe.split(groups, test=test, seed=seed)
  fitted, tested = (
    probe_tasks.tasks(labels, among=among, size=size, seed=seed)
    for among, size in zip((train, ~train), rows, strict=True)
  )
  if set(fitted) != set(tested):
    missing = sorted(map(str, set(fitted) ^ set(tested)))
    rule = "must have rows for training and for testing"
    raise InputError("labels", f"class {missing[0]}", rule, "add rows of it")
  sides = [
    _Side(own, tested[name], _fitted(groups[own.rows], validation, seed))
    for name, own in fitted.items()
  ]
  scores = {}
  for name, x in features.items():
    found = scores[name] = {}
    for k in ks:
      if k <= x.shape[1]:
        found[k] = _joined([_sparse(x, side, k, protocol) for side in sides])
    if full:
      found[FULL] = _joined(
        [_full(x, side, protocol, compat) for side in sides]
      )
  return SparseProbing(list(fitted), scores)


class _Side(NamedTuple):
  """Training and test rows of a task; `fit` are not for validation."""

  train: probe_tasks.Task
  test: probe_tasks.Task
  fit: Bool[np.ndarray, "m"]


def _fitted(groups, validation: float, seed: int) -> np.ndarray:
  return probe.split(groups, test=validation, seed=seed + 1)


def _sparse(x: Rows, side: _Side, k: int, protocol: Protocol):
  gap = probe.mean_gap(x[side.train.rows], side.train.y)
  columns = probe.top(gap, k)[0]
  train, test = (
    _dense(x[task.rows][:, columns]) for task in (side.train, side.test)
  )
  found, C = _best(train, test, side, protocol.penalty, protocol.Cs, protocol)
  return found, columns, C


def _full(x: Rows, side: _Side, protocol: Protocol, compat: str | None):
  train, test = (_dense(x[task.rows]) for task in (side.train, side.test))
  on_test = compat is not None
  found, C = _best(
    train, test, side, "l2", protocol.full_Cs, protocol, on_test=on_test
  )
  return found, None, C


def _best(
  train, test, side: _Side, penalty, Cs, protocol: Protocol, *, on_test=False
) -> tuple[dict[str, float], float]:
  """Scores with the C that is best on validation rows, the smallest of equal."""
  if protocol.standardise:
    mean, sd = train.mean(axis=0), train.std(axis=0)
    sd = np.where(sd > 0, sd, 1)
    train, test = (train - mean) / sd, (test - mean) / sd
  y, fit = side.train.y, side.fit
  last = _Fitted(penalty, *_reduced(penalty, train, test), y, side.test.y)
  held_out = last
  if len(Cs) > 1 and not on_test:
    rows = _reduced(penalty, train[fit], train[~fit])
    held_out = _Fitted(penalty, *rows, y[fit], y[~fit])
  C, by = Cs[0], protocol.choose_by
  if len(Cs) > 1:
    C = max(sorted(Cs), key=lambda C: held_out.scores(C)[by])
  return last.scores(C), C


def _reduced(penalty: str, train: np.ndarray, other: np.ndarray):
  """Rows in the span of the training rows, which weights with L2 are in.

  The scores are the same, and several penalties share the decomposition.
  """
  if penalty != "l2" or train.shape[1] <= train.shape[0]:
    return train, other
  mean = train.mean(axis=0)
  basis = np.linalg.qr((train - mean).T)[0]
  return (train - mean) @ basis, (other - mean) @ basis


class _Fitted(NamedTuple):
  """Rows to fit and to score, with their labels."""

  penalty: str
  train: Float[np.ndarray, "m d"]
  other: Float[np.ndarray, "r d"]
  y: Bool[np.ndarray, "m"]
  label: Bool[np.ndarray, "r"]

  def scores(self, C: float) -> dict[str, float]:
    """Scores of the other rows.

    Args:
      C: inverse penalty.
    """
    l1 = {"l1": 1 / C, "l2": 0.0}
    options = l1 if self.penalty == "l1" else {"l2": 1 / C}
    found = probe.logistic(self.train, self.y, **options).score(self.other)
    found, label = found[:, 0], self.label
    return {
      "accuracy": float(((found > 0) == label).mean()),
      # Few validation rows may be of one class.
      "auc": metrics.auroc(found, label) if 0 < label.mean() < 1 else 0.5,
      "f1": metrics.f1(found > 0, label),
    }


def _joined(found) -> Score:
  """Of each class: (scores, columns, C)."""
  scores, columns, C = zip(*found, strict=True)
  each = {
    name: np.array([one[name] for one in scores])
    for name in ("accuracy", "auc", "f1")
  }
  chosen = None if columns[0] is None else np.stack(columns)
  return Score(**each, columns=chosen, C=np.array(C))


def _dense(x: Rows) -> Float[np.ndarray, "N d"]:
  x = x.toarray() if scipy.sparse.issparse(x) else x
  return np.asarray(x, np.float64)


def _check(features, labels, ks, compat) -> None:
  if compat not in (None, "saebench"):
    rule = "must be saebench"
    raise InputError("compat", compat, rule, "leave it out")
  if min(ks, default=1) < 1:
    raise InputError("ks", list(ks), "must be at least 1", "leave out others")
  for name, x in features.items():
    if x.shape[0] != len(labels):
      raise InputError(
        f"features.{name}",
        f"{x.shape[0]} rows",
        f"must be the {len(labels)} rows of labels",
        "pool the same documents",
      )
  if labels.dtype != bool and len(np.unique(labels)) < 2:
    rule = "must be of at least two classes"
    raise InputError("labels", "one class", rule, "add rows of another")
