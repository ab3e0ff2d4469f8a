"""Galaxy: the shape of the whole cloud of decoder rows.

  spectrum     eigenvalues of the covariance of the rows, a power law
               log lambda_r = const - alpha log r over some ranks r, with the 95 %
               interval of the slope; an isotropic Gaussian cloud of equal size for
               comparison
  clustering   negentropy H_gauss - H of the cloud after its columns are scaled to
               unit variance and projected to p principal components, where

    H_gauss = p/2 (1 + log 2 pi) + 1/2 sum log lambda
    H = p mean log rho_k + p/2 log pi - log Gamma(p/2 + 1) + psi(N) - psi(k)

with rho_k the distance to the k-th nearest other point: the estimate of Kozachenko and
Leonenko, in nats. It is repeated on samples without replacement, because repeated
points have distance 0. In many dimensions the estimate is too large for any N that is
at hand, so that the same number of a Gaussian cloud of equal covariance belongs beside
it (`Clustering.control`).

The paper replaces the logarithm of the volume of the unit ball by the mean log
eigenvalue, psi(N) - psi(k) by log(N - 1) - psi(k + 1), adds 0.01 to each distance,
and draws with replacement: `Clustering.compat`.

References:
  Li et al., The Geometry of Concepts: Sparse Autoencoder Feature Structure, 2024,
  arXiv:2410.19750, section 5. Kozachenko and Leonenko, Sample estimate of the entropy
  of a random vector, 1987; Kraskov et al., Estimating mutual information, 2004.
"""

import dataclasses

import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Float

from saejax.errors import InputError

FIRST, LAST = 10, 150  # ranks of the fit
COMPONENTS, POINTS, DRAWS = 100, 5000, 30
_ROWS = 1024
_ADDED = 0.01  # to distances, in the paper's estimate


@dataclasses.dataclass(frozen=True)
class PowerLaw:
  """log lambda_r = intercept - alpha log r, by least squares.

  Attributes:
    alpha: the exponent.
    low, high: ends of its 95 % interval, of Student's distribution.
    intercept: log lambda at rank 1.
    first, last: ranks of the fit, from 1, both included.
  """

  alpha: float
  low: float
  high: float
  intercept: float
  first: int
  last: int

  def record(self) -> dict[str, float | int]:
    """Returns the numbers, for results.json."""
    return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Clustering:
  """Negentropy of a cloud, in nats.

  Attributes:
    value: mean over samples.
    sd: standard deviation over samples.
    control: value of Gaussian clouds of equal covariance and size.
    control_sd: its standard deviation over samples.
    compat: the paper's estimate, of samples with replacement.
    components: principal components p.
    points: points per sample.
  """

  value: float
  sd: float
  control: float
  control_sd: float
  compat: float
  components: int
  points: int

  def record(self) -> dict[str, float | int]:
    """Returns the numbers, for results.json."""
    found = dataclasses.asdict(self)
    return {
      "clustering" if k == "value" else f"clustering_{k}": v
      for k, v in found.items()
    }


def spectrum(x: Float[np.ndarray, "N d"]) -> Float[np.ndarray, "d"]:
  """Computes the eigenvalues of the covariance of rows, the largest first.

  Args:
    x: at least two rows.

  Raises:
    InputError: there are fewer rows.
  """
  if len(x) < 2:
    raise InputError("x", np.shape(x), "must have 2 rows or more", "add rows")
  centred = np.asarray(x, np.float64) - np.mean(x, axis=0, dtype=np.float64)
  values = np.linalg.eigvalsh(centred.T @ centred / (len(x) - 1))[::-1]
  return np.maximum(values, 0)


def power_law(
  values: Float[np.ndarray, "d"], *, first: int = FIRST, last: int = LAST
) -> PowerLaw:
  """Fits a power law to eigenvalues.

  Args:
    values: eigenvalues, the largest first.
    first, last: ranks of the fit, from 1, both included.

  Raises:
    InputError: there are fewer than three ranks, or fewer positive eigenvalues
      than `last`.

  >>> round(power_law(np.arange(1, 151) ** -0.5).alpha, 6)
  0.5
  """
  positive = int((values > 1e-12 * values[0]).sum())
  if not 1 <= first <= last - 2:
    rule = f"must be in [1, {last - 2}]: at least three ranks"
    raise InputError("first", first, rule, "lower it, or raise last")
  if last > positive:
    rule = f"must be at most {positive}, the number of positive eigenvalues"
    raise InputError("last", last, rule, "lower it")
  rank = np.arange(first, last + 1)
  fit = scipy.stats.linregress(np.log(rank), np.log(values[first - 1 : last]))
  half = scipy.stats.t.ppf(0.975, len(rank) - 2) * float(fit.stderr)  # pyright: ignore[reportAttributeAccessIssue]
  alpha = -float(fit.slope)  # pyright: ignore[reportAttributeAccessIssue]
  intercept = float(fit.intercept)  # pyright: ignore[reportAttributeAccessIssue]
  return PowerLaw(alpha, alpha - half, alpha + half, intercept, first, last)


def gaussian(
  rows: int, d: int, *, seed: int = 0
) -> Float[np.ndarray, "rows d"]:
  """Draws an isotropic Gaussian cloud, the control of a spectrum.

  Args:
    rows, d: its size.
    seed: of the draw.
  """
  return np.random.default_rng(seed).standard_normal((rows, d))


def entropy(x: Float[np.ndarray, "N p"], *, k: int = 1) -> float:
  """Estimates the entropy of a distribution from a sample, in nats.

  Args:
    x: distinct points.
    k: which nearest other point is used.

  Raises:
    InputError: k is not in [1, N - 1], or more than k points are equal.
  """
  rho = neighbour_distance(x, k)
  if not rho.all():
    rule = f"must have no more than {k} equal points"
    raise InputError(
      "x", f"{int((rho == 0).sum())} of them", rule, "remove some"
    )
  N, p = x.shape
  ball = p / 2 * np.log(np.pi) - scipy.special.gammaln(p / 2 + 1)
  count = scipy.special.digamma(N) - scipy.special.digamma(k)
  return float(p * np.log(rho).mean() + ball + count)


def entropy_compat(x: Float[np.ndarray, "N p"], *, k: int = 1) -> float:
  """Computes the paper's estimate of an entropy; see the module.

  Args:
    x: points.
    k: which nearest other point is used.

  Raises:
    InputError: k is not in [1, N - 1].
  """
  rho = neighbour_distance(x, k) + _ADDED
  N, p = x.shape
  ball = np.log(np.maximum(spectrum(x), 1e-10)).mean()
  count = np.log(N - 1) - scipy.special.digamma(k + 1)
  return float(p * np.log(rho).mean() + ball + count)


def gaussian_entropy(values: Float[np.ndarray, "p"]) -> float:
  """Computes the entropy of a Gaussian distribution, in nats.

  Args:
    values: eigenvalues of its covariance, positive.
  """
  p = len(values)
  return float(p / 2 * (1 + np.log(2 * np.pi)) + np.log(values).sum() / 2)


def neighbour_distance(
  x: Float[np.ndarray, "N p"], k: int
) -> Float[np.ndarray, "N"]:
  """Computes the distance of each point to its k-th nearest other point.

  Args:
    x: points.
    k: the rank of the other point, from 1.

  Raises:
    InputError: k is not in [1, N - 1].

  >>> neighbour_distance(np.array([[0.0], [1.0], [3.0]]), 1).tolist()
  [1.0, 1.0, 2.0]
  """
  x = np.asarray(x, np.float64)
  x = x - x.mean(axis=0)  # differences of squares keep more digits
  if not 1 <= k < len(x):
    rule = f"must be in [1, {len(x) - 1}]: other points"
    raise InputError("k", k, rule, "lower it, or add points")
  squares = np.sum(x * x, axis=1)
  found = np.empty(len(x))
  for start in range(0, len(x), _ROWS):
    part = x[start : start + _ROWS]
    far = squares - 2 * part @ x.T  # up to a constant of each row
    own = np.arange(len(part))
    far[own, start + own] = np.inf
    nearest = np.argpartition(far, k - 1, axis=1)[:, k - 1]
    # Exact where the differences of squares are below their rounding.
    found[start : start + _ROWS] = np.linalg.norm(part - x[nearest], axis=1)
  return found


def clustering(
  x: Float[np.ndarray, "N d"],
  *,
  components: int = COMPONENTS,
  points: int = POINTS,
  draws: int = DRAWS,
  k: int = 1,
  seed: int = 0,
) -> Clustering:
  """Computes the negentropy of a cloud, with its control; see the module.

  Args:
    x: the cloud, such as decoder rows; columns that do not vary are left out.
    components: principal components p that are kept.
    points: points per sample, at most 4/5 of all: samples must differ.
    draws: samples.
    k: which nearest other point is used.
    seed: of the samples.

  Raises:
    InputError: the cloud varies in fewer directions than `components`, or as
      `entropy`.
  """
  rng = np.random.default_rng(seed)
  whole = principal(x, components)
  values = spectrum(whole)
  top = gaussian_entropy(values)
  size = min(points, 4 * len(whole) // 5)
  found, control, compat = np.empty(draws), np.empty(draws), np.empty(draws)
  for i in range(draws):
    chosen = rng.choice(len(whole), size, replace=False)
    cloud = rng.standard_normal((size, components)) * np.sqrt(values)
    again = whole[rng.choice(len(whole), size, replace=True)]
    found[i] = top - entropy(whole[chosen], k=k)
    control[i] = top - entropy(cloud, k=k)
    compat[i] = top - entropy_compat(again, k=k)
  return Clustering(
    value=float(found.mean()),
    sd=_sd(found),
    control=float(control.mean()),
    control_sd=_sd(control),
    compat=float(compat.mean()),
    components=components,
    points=size,
  )


def principal(
  x: Float[np.ndarray, "N d"], components: int
) -> Float[np.ndarray, "N p"]:
  """Projects columns of unit variance to their principal components.

  Args:
    x: rows; columns that do not vary are left out.
    components: number of components.

  Raises:
    InputError: x varies in fewer directions.
  """
  centred = np.asarray(x, np.float64) - np.mean(x, axis=0, dtype=np.float64)
  spread = centred.std(axis=0)
  scaled = centred[:, spread > 0] / spread[spread > 0]
  values, W = np.linalg.eigh(scaled.T @ scaled / max(len(x) - 1, 1))
  rank = (
    int((values > 1e-10 * values.max(initial=0)).sum()) if len(values) else 0
  )
  if not 1 <= components <= rank:
    rule = f"must be in [1, {rank}]: directions in which the cloud varies"
    raise InputError("components", components, rule, "lower it")
  return scaled @ W[:, ::-1][:, :components]


def _sd(values: np.ndarray) -> float:
  return float(values.std(ddof=1)) if len(values) > 1 else float("nan")
