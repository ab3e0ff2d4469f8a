"""Targeted probe perturbation (TPP) and spurious correlation removal (SCR).

Both ablate the latents that matter most to a probe of a class and run the same
probe again, on pooled rows. With x the mean activations of a document, z its mean
latents, d_f what a unit of latent f adds to x, w a probe and mu the means of z over
positive and negative training rows,

  E_f = (mu+_f - mu-_f) <w, d_f>                  effect of latent f
  x'  = x - sum_{f in S} z_f d_f                  the error is kept

which is the mean over tokens of activations with these latents set to 0, as pooling
is linear. S are the n latents with the largest effect that is not 0.

TPP: S_i from the effects for class i with max(mu+ - mu-, 0), positive ones only.
D_i(j) is the accuracy of the probe of class j on its own task before, less that
after the ablation of S_i:

  TPP = mean_i [D_i(i) - mean_{j != i} D_i(j)]

SCR: rows have two labels. The biased probe is trained where they agree. S are the
largest |E_f| for the probe of one label, trained without a correlation of the two;
the biased probe is then tested for the other one, on rows without a correlation:

  SCR = (acc_ablated - acc) / (acc_clean - acc)

with acc_clean of the probe trained for that label, and 0 where the denominator is
below 0.001. dir1 removes the second label and tests the first, dir2 the converse;
"metric" is the direction in which the biased probe is worse, and the mean of both
where it is equally good (SAEBench leaves that out).

Do not select models by these scores. A 2026 study of reliability
(arXiv:2605.18229) reports that at their usual settings both fail tests of reseed
noise, of correlation with a known truth and of discriminability. Each score
therefore is of several runs with other splits, negatives and probes; see
`reseeding` for its interval and the least difference of SAEs that it can tell.

References:
  Karvonen et al., Evaluating Sparse Autoencoders on Targeted Concept Erasure
  Tasks, 2024, arXiv:2411.18895; SAEBench, 2025, arXiv:2503.09532.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.probing import minibatch_probe, probe, probe_tasks, reseeding
from saejax.evals.probing.documents import Documents

COUNTS = (2, 5, 10, 20, 50, 100, 500)
TRAIN_ROWS, TEST_ROWS = 4000, 1000  # largest numbers of a task
_LEAST_ROOM = 1e-3  # acc_clean - acc below which SCR counts as 0

Fit = Callable[[np.ndarray, np.ndarray, int], probe.Linear]


@dataclasses.dataclass(frozen=True, eq=False)
class TPP:
  """Targeted probe perturbation, of R runs.

  Attributes:
    counts: numbers of ablated latents.
    change: D_i(j) of each run and count, [i, j].
    classes: the classes.
  """

  counts: Sequence[int]
  change: Float[np.ndarray, "R counts C C"]
  classes: Sequence[Any]

  @property
  def intended(self) -> Float[np.ndarray, "R counts"]:
    """Mean over classes of D_i(i)."""
    return np.trace(self.change, axis1=-2, axis2=-1) / len(self.classes)

  @property
  def unintended(self) -> Float[np.ndarray, "R counts"]:
    """Mean over pairs of different classes of D_i(j)."""
    C = len(self.classes)
    total = self.change.sum(axis=(-2, -1)) - C * self.intended
    return total / (C * (C - 1))

  @property
  def total(self) -> Float[np.ndarray, "R counts"]:
    """TPP."""
    return self.intended - self.unintended

  def noise(self) -> Mapping[int, reseeding.Repeated]:
    """TPP of each count, over runs."""
    runs = self.total.T
    return dict(zip(self.counts, map(reseeding.Repeated, runs), strict=True))

  def record(self) -> dict[str, float]:
    """Returns means over runs, under SAEBench's names."""
    return {
      f"tpp_threshold_{n}_{name}": float(values[:, i].mean())
      for i, n in enumerate(self.counts)
      for name, values in (
        ("total_metric", self.total),
        ("intended_diff_only", self.intended),
        ("unintended_diff_only", self.unintended),
      )
    }


@dataclasses.dataclass(frozen=True, eq=False)
class SCR:
  """Spurious correlation removal, of R runs.

  Attributes:
    counts: numbers of ablated latents.
    dir1, dir2: scores of both directions.
    biased: accuracy of the biased probe for the first and the second label.
    clean: that of the probe of each label.
  """

  counts: Sequence[int]
  dir1: Float[np.ndarray, "R counts"]
  dir2: Float[np.ndarray, "R counts"]
  biased: Float[np.ndarray, "R 2"]
  clean: Float[np.ndarray, "R 2"]

  @property
  def metric(self) -> Float[np.ndarray, "R counts"]:
    """The direction in which the biased probe is worse."""
    first, second = self.biased.T[..., None]
    both = (self.dir1 + self.dir2) / 2
    one = np.where(first < second, self.dir1, self.dir2)
    return np.where(first == second, both, one)

  def noise(self) -> Mapping[int, reseeding.Repeated]:
    """The metric of each count, over runs."""
    runs = self.metric.T
    return dict(zip(self.counts, map(reseeding.Repeated, runs), strict=True))

  def record(self) -> dict[str, float]:
    """Returns means over runs, under SAEBench's names."""
    return {
      f"scr_{name}_threshold_{n}": float(getattr(self, name)[:, i].mean())
      for i, n in enumerate(self.counts)
      for name in ("dir1", "dir2", "metric")
    }


def effects(
  gap: Float[np.ndarray, "n"],
  weight: Float[np.ndarray, "d"],
  directions: Float[np.ndarray, "n d"],
) -> Float[np.ndarray, "n"]:
  """Computes E_f.

  Args:
    gap: mean of each latent over positives less that over negatives.
    weight: weights of a probe of x.
    directions: what a unit of each latent adds to x.
  """
  return gap * (directions @ weight)


def strongest(
  effect: Float[np.ndarray, "n"], count: int
) -> Int[np.ndarray, "m"]:
  """Returns the latents with the largest effects above 0, at most `count`.

  Args:
    effect: effects; their absolute values for both signs.
    count: number of latents.
  """
  order = np.argsort(-effect, kind="stable")[:count]
  return order[effect[order] > 0]


def tpp(
  documents: Documents,
  labels: Shaped[np.ndarray, "N *C"],
  *,
  counts: Sequence[int] = COUNTS,
  repeats: int = 5,
  test: float = 0.2,
  rows: tuple[int, int] = (TRAIN_ROWS, TEST_ROWS),
  seed: int = 0,
  fit: Fit = minibatch_probe.fit,
) -> TPP:
  """Computes TPP; see the module.

  Args:
    documents: pooled rows.
    labels: class of each row, or which classes it has; see `probe_tasks.tasks`.
    counts: numbers of ablated latents; 0 changes nothing.
    repeats: number of runs.
    test: share of the rows for testing.
    rows: largest numbers of training and of test rows of a task.
    seed: seed of the first run; the next one has the next seed.
    fit: trains a probe on (x, y, seed).

  Raises:
    InputError: there are more or fewer labels than documents, or fewer than two
      classes; or as `probe_tasks.tasks`.
  """
  labels = _each(labels, documents, "labels")
  runs = [
    _tpp_run(documents, labels, counts, test, rows, run, fit)
    for run in range(seed, seed + repeats)
  ]
  changes, classes = zip(*runs, strict=True)
  return TPP(tuple(counts), np.stack(changes), classes[0])


def _tpp_run(
  documents: Documents, labels, counts, test: float, rows, seed: int, fit: Fit
) -> tuple[Float[np.ndarray, "counts C C"], Sequence[Any]]:
  """D_i(j) of one run, and the classes."""
  train = documents.split(test, seed)
  fitted, tested = (
    probe_tasks.tasks(labels, among=among, size=size, seed=seed)
    for among, size in zip((train, ~train), rows, strict=True)
  )
  if set(fitted) != set(tested) or len(fitted) < 2:
    value = f"{len(fitted)} classes for training, {len(tested)} for testing"
    rule = "must be at least two, the same in both parts"
    raise InputError("labels", value, rule, "leave out rare classes")
  probes, effect, before = {}, {}, {}
  for name, task in fitted.items():
    probes[name] = fit(documents.x[task.rows], task.y, seed)
    gap = probe.mean_gap(documents.z[task.rows], task.y)[0]
    weight = probes[name].weight[0]
    effect[name] = effects(np.maximum(gap, 0), weight, documents.directions)
    at, y = tested[name]
    before[name] = _accuracy(probes[name], documents.x[at], y)

  def change(i, j, latents):
    at, y = tested[j]
    x = documents.without(latents, at)
    return before[j] - _accuracy(probes[j], x, y)

  found = [
    [[change(i, j, strongest(effect[i], n)) for j in fitted] for i in fitted]
    for n in counts
  ]
  return np.array(found), list(fitted)


def _each(labels, documents: Documents, field: str) -> np.ndarray:
  """Labels, one per document."""
  labels = np.asarray(labels)
  if len(labels) != len(documents.x):
    rule = f"must be one for each of the {len(documents.x)} documents"
    raise InputError(field, f"{len(labels)} labels", rule, "label each once")
  return labels


def _accuracy(found: probe.Linear, x: np.ndarray, y: np.ndarray) -> float:
  return float(((found.score(x)[:, 0] > 0) == y).mean())


def scr(
  documents: Documents,
  first: Bool[np.ndarray, "N"],
  second: Bool[np.ndarray, "N"],
  *,
  counts: Sequence[int] = COUNTS,
  repeats: int = 5,
  test: float = 0.2,
  rows: tuple[int, int] = (TRAIN_ROWS, TEST_ROWS),
  seed: int = 0,
  fit: Fit = minibatch_probe.fit,
) -> SCR:
  """Computes SCR; see the module.

  Args:
    documents: pooled rows.
    first: the first label, such as a profession.
    second: the second label, such as a gender.
    counts, repeats, test, rows, seed, fit: as in `tpp`.

  Raises:
    InputError: there are more or fewer labels than documents, a label is not 0 or
      1, or one of the four combinations has no row for training or for testing.
  """
  labels = np.stack(
    [
      _each(metrics.binary(value, field), documents, field)
      for field, value in (("first", first), ("second", second))
    ],
    axis=1,
  )
  runs = [
    _scr_run(documents, labels, counts, test, rows, run, fit)
    for run in range(seed, seed + repeats)
  ]
  return SCR(tuple(counts), *map(np.array, zip(*runs, strict=True)))


def _scr_run(
  documents: Documents, labels, counts, test: float, rows, seed: int, fit: Fit
) -> tuple[list, list, list, list]:
  """dir1, dir2, and accuracies of the biased and the clean probes, of one run."""
  x, train = documents.x, documents.split(test, seed)
  fitted, tested = (
    _crossed(labels, among, size, seed)
    for among, size in zip((train, ~train), rows, strict=True)
  )
  agree = fitted[labels[fitted, 0] == labels[fitted, 1]]
  biased = fit(x[agree], labels[agree, 0], seed)
  probes = [fit(x[fitted], labels[fitted, i], seed) for i in (0, 1)]
  y = labels[tested].T
  acc = [_accuracy(biased, x[tested], y[i]) for i in (0, 1)]
  clean = [_accuracy(probes[i], x[tested], y[i]) for i in (0, 1)]
  directions = []
  for i in (0, 1):  # the label that is tested; the other one is removed
    gap = probe.mean_gap(documents.z[fitted], labels[fitted, 1 - i])[0]
    weight = probes[1 - i].weight[0]
    effect = np.abs(effects(gap, weight, documents.directions))
    room, found = clean[i] - acc[i], []
    for n in counts:
      ablated = documents.without(strongest(effect, n), tested)
      gained = _accuracy(biased, ablated, y[i]) - acc[i]
      found.append(gained / room if room >= _LEAST_ROOM else 0.0)
    directions.append(found)
  return *directions, acc, clean


def _crossed(
  labels: Bool[np.ndarray, "N 2"], among: np.ndarray, size: int, seed: int
) -> Int[np.ndarray, "m"]:
  """Rows with equally many of each combination of two labels."""
  rng, rows = np.random.default_rng(seed), np.flatnonzero(among)
  cell = labels[rows] @ [2, 1]
  parts = [rng.permutation(rows[cell == i]) for i in range(4)]
  least = min(map(len, parts))
  if not least:
    empty = int(np.argmin([len(part) for part in parts]))
    raise InputError(
      "labels",
      f"no row with first={bool(empty & 2)} and second={bool(empty & 1)}",
      "must have rows of all four combinations, for training and testing",
      "add rows, or use labels that both occur without the other",
    )
  each = max(1, min(least, size // 4))
  return np.sort(np.concatenate([part[:each] for part in parts]))
