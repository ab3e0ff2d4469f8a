"""Makes tests/golden/sklearn.safetensors: probes and metrics of scikit-learn.

Needs an environment of its own, which the library and its tests do not:
  pip install scikit-learn==1.7.2 safetensors
  python tests/golden/make_sklearn.py

Keeps the rows and labels too, all in float64. Names of fits are those of
`CASES` in tests/evals/probe_test.py: `<case>/weight` [C, d], `<case>/bias` [C].
"""

import importlib.metadata
import pathlib

import numpy as np
import safetensors.numpy
from sklearn import linear_model, metrics

GOLDEN = pathlib.Path(__file__).parent
N, D = 80, 6


def draw() -> dict[str, np.ndarray]:
  """Correlated columns of several scales; one rare class and one frequent one."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((N, D)) @ rng.standard_normal((D, D))
  x = x * np.geomspace(0.3, 3, D) + rng.standard_normal(D)
  score = x @ rng.standard_normal((D, 2)) / 2 + rng.standard_normal((N, 2))
  return {
    "x": x,
    "wide": rng.standard_normal((30, 50)),
    "wide_y": (np.arange(30) % 3 == 0).astype(float),
    "y": (score > np.diag(np.quantile(score, [0.5, 0.8], axis=0))).astype(
      float
    ),
    "target": score,
    "score": np.round(score[:, 0], 1),  # with ties
    "a": rng.integers(0, 4, N).astype(float),
    "b": np.maximum(rng.integers(0, 6, N) - 1, 0).astype(float),
  }


def main() -> None:
  given = draw()
  found = dict(given)
  exact = {"tol": 1e-14, "max_iter": 1_000_000}

  def keep(case, model, x, y):
    fits = [model.fit(x, one) for one in [y] if y.ndim == 1] or [
      model.__class__(**model.get_params()).fit(x, one) for one in y.T
    ]
    found[f"{case}/weight"] = np.stack([fit.coef_.ravel() for fit in fits])
    found[f"{case}/bias"] = np.array(
      [np.ravel(fit.intercept_)[0] for fit in fits]
    )

  logistic = linear_model.LogisticRegression
  newton = {**exact, "solver": "newton-cholesky"}
  saga = {**exact, "solver": "saga", "random_state": 0}
  x, y = given["x"], given["y"]
  keep("l2", logistic(C=1 / 0.5, **newton), x, y)
  keep("balanced", logistic(class_weight="balanced", **newton), x, y)
  keep("l1", logistic(C=1 / 4.0, penalty="l1", **saga), x, y)
  keep(
    "elastic",
    logistic(C=1 / 6.0, penalty="elasticnet", l1_ratio=0.5, **saga),
    x,
    y,
  )
  lbfgs = {**exact, "solver": "lbfgs"}
  keep("wide", logistic(C=2.0, **lbfgs), given["wide"], given["wide_y"])
  keep("ridge", linear_model.Ridge(alpha=2.0), x, given["target"])
  keep("lasso", linear_model.Lasso(alpha=0.2, **exact), x, given["target"])
  numbers = {
    "auroc": metrics.roc_auc_score(y[:, 0], given["score"]),
    "ami": metrics.adjusted_mutual_info_score(given["a"], given["b"]),
    "silhouette": metrics.silhouette_score(x, given["b"]),
    "f1": metrics.f1_score(y[:, 1], y[:, 0]),
    "balanced_accuracy": metrics.balanced_accuracy_score(
      given["b"], given["a"]
    ),
  }
  for name, value in numbers.items():
    found[name] = np.array([value])
  arrays = {name: np.ascontiguousarray(value) for name, value in found.items()}
  version = importlib.metadata.version("scikit-learn")
  safetensors.numpy.save_file(
    arrays, GOLDEN / "sklearn.safetensors", {"scikit-learn": version}
  )


if __name__ == "__main__":
  main()
