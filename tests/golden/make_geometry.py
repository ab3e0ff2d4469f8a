"""Writes geometry.safetensors: clusterings and projections of scikit-learn.

pip install scikit-learn==1.7.2 safetensors
python tests/golden/make_geometry.py
"""

import pathlib

import numpy as np
from safetensors.numpy import save_file
from sklearn.cluster import SpectralClustering
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import normalize

FILE = pathlib.Path(__file__).parent / "geometry.safetensors"


def discriminant(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Points of four labels, one with more points, and one column that is constant."""
  label = np.repeat(np.arange(4), [12, 8, 7, 6])
  x = rng.standard_normal((len(label), 6)) + rng.standard_normal((4, 6))[label]
  x[:, 5] = 2.0
  found = {"lda_x": x, "lda_label": label}
  for components in (2, 3):
    model = LinearDiscriminantAnalysis(n_components=components)
    scores = model.fit_transform(x, label)
    found[f"lda_{components}"] = scores
    silhouette = silhouette_score(scores, label)
    found[f"lda_{components}_silhouette"] = np.array(silhouette)
  return found


def spectral(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Three groups of items with a noisy affinity, and one item apart from all."""
  group = np.repeat(np.arange(3), [12, 9, 8])
  W = normalize(
    rng.standard_normal((3, 10))[group] + rng.normal(0, 0.5, (29, 10))
  )
  affinity = np.exp(3 * (W @ W.T - 1))
  affinity = np.pad(affinity, ((0, 1), (0, 1)))
  model = SpectralClustering(
    n_clusters=3,
    affinity="precomputed",
    assign_labels="kmeans",
    random_state=42,
  )
  return {"affinity": affinity, "spectral_3": model.fit_predict(affinity)}


def softmax(x: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
  """Softmax regressions of the points of `discriminant`."""
  found = {}
  for l2 in (1, 10):
    model = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10_000)
    scores = model.fit(x, label).decision_function(x)
    found[f"softmax_{l2}"] = scores - scores.mean(axis=1, keepdims=True)
  return found


def main() -> None:
  """Writes the file."""
  rng = np.random.default_rng(0)
  found = discriminant(rng) | spectral(rng)
  found |= softmax(found["lda_x"], found["lda_label"])
  save_file({k: np.ascontiguousarray(v) for k, v in found.items()}, FILE)


if __name__ == "__main__":
  main()
