"""Classes of documents from pooled latents, with simple classifiers.

The features of a document are pooled latents, see `document_features`. The
classifier is a logistic regression (one versus rest for several classes) with its L2
penalty chosen by the macro F1 of 5 folds over documents, or a decision tree
(`trees.settings`). Documents are held out class by class.

All tokens are pooled, so that the mean of x is a baseline beside the last token of x
and TF-IDF of the tokens; sums of latents encode the length of a text, so that the
quality from length alone is reported beside them. A classifier that is fitted on one
source of documents is tested on another one by `Classifier.measure` (transfer).

References:
  Gallifant et al., Sparse Autoencoder Features for Classifications and
  Transferability, 2025, arXiv:2502.11367.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Shaped

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.probing import probe

L2_GRID = (1000.0, 100.0, 10.0, 1.0)  # 1 / C of the reference
FOLDS, TEST, SEED = 5, 0.2, 42


class Scorer(Protocol):
  """Something fitted that scores rows."""

  def score(self, x: Float[np.ndarray, "D n"]) -> Float[np.ndarray, "D C"]:
    """Returns a score per class; one column for two classes, positive above 0."""
    ...


Fit = Callable[[Float[np.ndarray, "D n"], Bool[np.ndarray, "D C"]], Scorer]


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """A fitted classifier of documents.

  Attributes:
    classes: labels, ascending.
    scorer: fitted on features divided by `scale`, of one column per class, or of
      one for the second of two.
    centre, scale: of the features; 0 and 1 where they are not standardised.
    setting: the setting that the folds chose.
    validation: macro F1 of the folds with it.
  """

  classes: Shaped[np.ndarray, "C"]
  scorer: Scorer
  centre: Float[np.ndarray, "n"]
  scale: Float[np.ndarray, "n"]
  setting: object
  validation: float

  def score(self, x: Float[np.ndarray, "D n"]) -> Float[np.ndarray, "D C"]:
    """Computes a score per class.

    Args:
      x: features.
    """
    found = self.scorer.score((np.asarray(x) - self.centre) / self.scale)
    return np.concatenate([-found, found], 1) if found.shape[1] == 1 else found

  def predict(self, x: Float[np.ndarray, "D n"]) -> Shaped[np.ndarray, "D"]:
    """Returns the class of largest score.

    Args:
      x: features.
    """
    return self.classes[self.score(x).argmax(axis=1)]

  def measure(
    self, x: Float[np.ndarray, "D n"], label: Shaped[np.ndarray, "D"]
  ) -> "Quality":
    """Tests the classifier, on documents of any source.

    Args:
      x: features.
      label: classes; each of the fitted ones has a document, for the AUC.
    """
    label, score = np.asarray(label), self.score(x)
    predicted = self.classes[score.argmax(axis=1)]
    areas = [
      metrics.auroc(score[:, c], label == name)
      for c, name in enumerate(self.classes)
      if 0 < np.mean(label == name) < 1
    ]
    return Quality(
      accuracy=float(np.mean(predicted == label)),
      macro_f1=macro_f1(predicted, label),
      auc=float(np.mean(areas)) if areas else float("nan"),
    )


@dataclasses.dataclass(frozen=True)
class Quality:
  """Quality of predictions.

  Attributes:
    accuracy: share of documents that are right.
    macro_f1: mean of F1 over the classes of the documents.
    auc: mean over classes of the area under the ROC curve, one versus rest; NaN
      for one class.
  """

  accuracy: float
  macro_f1: float
  auc: float

  def record(self) -> dict[str, float]:
    """Returns the numbers, for results.json."""
    return dataclasses.asdict(self)


def macro_f1(
  predicted: Shaped[np.ndarray, "D"], label: Shaped[np.ndarray, "D"]
) -> float:
  """Computes the mean of F1 over the classes of the documents.

  Args:
    predicted: predicted classes.
    label: classes.
  """
  return float(
    np.mean([metrics.f1(predicted == c, label == c) for c in np.unique(label)])
  )


def train_rows(
  label: Shaped[np.ndarray, "D"], *, test: float = TEST, seed: int = SEED
) -> Bool[np.ndarray, "D"]:
  """Divides documents class by class.

  Args:
    label: classes.
    test: share of each class that is held out, at least one document.
    seed: seed of the draw.

  Returns:
    Which documents are for training.

  Raises:
    InputError: a class has one document.
  """
  rng, train = np.random.default_rng(seed), np.ones(len(label), bool)
  for name in np.unique(label):
    own = rng.permutation(np.flatnonzero(label == name))
    if len(own) < 2:
      rule = "must have at least 2 documents of each class"
      raise InputError("label", name, rule, "add some, or leave it out")
    train[own[: min(max(1, round(test * len(own))), len(own) - 1)]] = False
  return train


def logistic(l2: float) -> Fit:
  """Returns the fit of logistic regressions.

  Args:
    l2: penalty, 1 / C.
  """
  return lambda x, y: probe.logistic(x, y, l2=l2)


def fit(
  x: Float[np.ndarray, "D n"],
  label: Shaped[np.ndarray, "D"],
  *,
  settings: Mapping[object, Fit] | None = None,
  folds: int = FOLDS,
  groups: Shaped[np.ndarray, "D"] | None = None,
  standardise: bool = False,
  seed: int = SEED,
) -> Classifier:
  """Fits a classifier, with the setting of best macro F1 in the folds.

  Args:
    x: features of training documents.
    label: their classes.
    settings: fits to choose from, by name; by default logistic regressions of
      `L2_GRID`, by their penalty. Of equal ones the first is taken.
    folds: number of folds.
    groups: folds do not divide a group, such as translations of one text; each
      document is one by default.
    standardise: whether features are centred and divided by their deviation.
    seed: seed of the folds.

  Raises:
    InputError: there is one class only, or a class is missing in a fold's
      training documents.
  """
  x, label = np.asarray(x, np.float64), np.asarray(label)
  classes, own = np.unique(label, return_inverse=True)
  if len(classes) < 2:
    rule = "must be of at least 2 classes"
    raise InputError("label", classes.tolist(), rule, "add documents")
  hot = np.eye(len(classes), dtype=bool)[own]
  hot = hot[:, 1:] if len(classes) == 2 else hot
  centre, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
  if standardise:
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 0, scale, 1)
  x = (x - centre) / scale
  settings = settings or {l2: logistic(l2) for l2 in L2_GRID}
  groups = np.arange(len(x)) if groups is None else groups
  fold = probe.folds(groups, folds, seed=seed)
  scores = {}
  for name, one in settings.items():
    predicted = np.zeros(len(x), np.int64)
    for held in (fold == f for f in range(folds)):
      score = one(x[~held], hot[~held]).score(x[held])
      two = score.shape[1] == 1
      predicted[held] = score[:, 0] > 0 if two else score.argmax(axis=1)
    scores[name] = macro_f1(predicted, own)
  best = max(scores, key=lambda name: scores[name])
  scorer = settings[best](x, hot)
  return Classifier(classes, scorer, centre, scale, best, scores[best])


def compare(
  features: Mapping[str, Float[np.ndarray, "D n"]],
  label: Shaped[np.ndarray, "D"],
  *,
  train: Bool[np.ndarray, "D"] | None = None,
  standardise: Sequence[str] = (),
  **options,
) -> dict[str, Quality]:
  """Fits a classifier on each kind of features and tests it on held-out documents.

  Args:
    features: features by name, such as pooled latents and baselines.
    label: classes.
    train: which documents are for training; `train_rows` by default.
    standardise: names of the features that are standardised, such as lengths.
    **options: arguments of `fit`.
  """
  label = np.asarray(label)
  groups = options.pop("groups", None)
  if train is None and groups is not None:  # a group is on one side
    train = probe.split(np.asarray(groups), test=TEST, seed=SEED)
  train = train_rows(label) if train is None else np.asarray(train)
  groups = np.arange(len(label)) if groups is None else np.asarray(groups)
  return {
    name: fit(
      x[train],
      label[train],
      groups=groups[train],
      standardise=name in standardise,
      **options,
    ).measure(x[~train], label[~train])
    for name, x in features.items()
  }
