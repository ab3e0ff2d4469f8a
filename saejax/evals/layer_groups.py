"""Groups layers whose activations are similar enough to share one SAE.

The distance of two layers is the mean over tokens of the angle between their
activations, centred per layer and divided by pi:

  D_ij = mean_b arccos(cos(x_bi - m_i, x_bj - m_j)) / pi

It is 0 for equal directions, 1/2 for a right angle and 1 for opposite
directions. Layers are merged by complete linkage on D, restricted to neighbours
in depth ("contiguous"). AMD(G) is the unweighted mean over the G groups of the
largest distance within the group; `choose` returns the smallest number of groups
whose AMD is at most a threshold.

The official code passes the lower triangle of D to scikit-learn as features and
does not require contiguity, which is "features" here; "precomputed" is complete
linkage on D without contiguity. The official code excludes the last layer; here
the caller selects the layers.

References:
  Ghilardi et al., Efficient Training of Sparse Autoencoders for Large Language
  Models via Layer Groups, 2024, arXiv:2410.21508.
"""

import itertools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance
from jaxtyping import Array, Float

from saejax.errors import InputError

LINKAGES = ("contiguous", "precomputed", "features")
Distances = Float[np.ndarray, "L L"]
Groups = tuple[tuple[int, ...], ...]


def distances(
  batches: Iterable[Float[np.ndarray, "B L d"]],
  *,
  centre: Float[np.ndarray, "L d"] | None = None,
  alpha: float = 0.05,
) -> Distances:
  """Computes D over all rows; it is symmetric, with 0 on the diagonal.

  Args:
    batches: rows of all layers.
    centre: vector to subtract per layer. By default a running mean, m <- (1 -
      alpha) m + alpha mean(batch), that starts at the mean of the first batch
      and is updated with each batch before it is used.
    alpha: weight of a batch in the running mean.

  Raises:
    InputError: there are no rows.
  """
  total, rows, running = 0.0, 0, centre
  for x in batches:
    x = jnp.asarray(x, jnp.float32)
    if centre is None:
      mean = np.asarray(jnp.mean(x, axis=0))
      running = mean if running is None else running + alpha * (mean - running)
    total = total + np.asarray(_angles(x, jnp.asarray(running, jnp.float32)))
    rows += len(x)
  if not rows:
    raise InputError("rows", 0, "must be at least 1", "pass at least one row")
  return np.asarray(total / rows, np.float64)


@jax.jit
def _angles(
  x: Float[Array, "B L d"], centre: Float[Array, "L d"]
) -> Float[Array, "L L"]:
  """Computes angles / pi, summed over rows."""
  x = x - centre[None]
  norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
  u = x / jnp.where(norm > 0, norm, 1.0)
  cosine = jnp.einsum("bid,bjd->bij", u, u, precision="highest")
  angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0)) / jnp.pi
  # Rounding would turn an angle of 0 into 1e-4.
  same = jnp.eye(x.shape[1], dtype=bool)
  return jnp.where(same, 0.0, jnp.sum(angle, axis=0))


def cluster(D: Distances, count: int, *, linkage: str = "contiguous") -> Groups:
  """Groups the layers into `count` groups, ordered by their first layer.

  Args:
    D: distances of layers.
    count: number of groups.
    linkage: "contiguous", "precomputed" or "features", see the module.

  Raises:
    InputError: count is out of range, or the linkage is unknown.
  """
  if not 1 <= count <= len(D):
    raise InputError(
      "groups",
      count,
      f"must be in [1, {len(D)}], the number of layers",
      "choose a number in this range",
    )
  if linkage not in LINKAGES:
    raise InputError(
      "linkage", linkage, f"must be one of {', '.join(LINKAGES)}", "correct it"
    )
  if len(D) == 1:
    return ((0,),)
  if linkage == "contiguous":
    return _contiguous(D, count)
  if linkage == "precomputed":
    condensed = scipy.spatial.distance.squareform(D, checks=False)
    tree = scipy.cluster.hierarchy.linkage(condensed, "complete")
  else:
    tree = scipy.cluster.hierarchy.linkage(np.tril(D), "complete")
  labels = scipy.cluster.hierarchy.cut_tree(tree, count)[:, 0]
  groups = [np.flatnonzero(labels == g).tolist() for g in np.unique(labels)]
  return tuple(sorted(tuple(group) for group in groups))


def _contiguous(D: Distances, count: int) -> Groups:
  groups: list[tuple[int, ...]] = [(layer,) for layer in range(len(D))]
  while len(groups) > count:
    widths = [width(D, a + b) for a, b in itertools.pairwise(groups)]
    i = int(np.argmin(widths))
    groups[i : i + 2] = [groups[i] + groups[i + 1]]
  return tuple(groups)


def width(D: Distances, group: Sequence[int]) -> float:
  """Returns the largest distance within a group; 0 for a single layer.

  Args:
    D: distances of layers.
    group: layers of the group.
  """
  return float(D[np.ix_(group, group)].max())


def amd(D: Distances, groups: Groups) -> float:
  """Computes AMD, the mean over groups of their widths.

  Args:
    D: distances of layers.
    groups: the groups.
  """
  return float(np.mean([width(D, group) for group in groups]))


def choose(
  D: Distances, *, max_amd: float = 0.2, linkage: str = "contiguous"
) -> Groups:
  """Returns the smallest number of groups whose AMD is at most a threshold.

  One group per layer has AMD 0, so that such groups always exist.

  Args:
    D: distances of layers.
    max_amd: maximum AMD, at least 0.
    linkage: see `cluster`.

  Raises:
    InputError: max_amd is negative, or the linkage is unknown.

  >>> D = np.array([[0.0, 0.1, 0.5], [0.1, 0.0, 0.5], [0.5, 0.5, 0.0]])
  >>> choose(D, max_amd=0.2)
  ((0, 1), (2,))
  """
  if not max_amd >= 0:
    raise InputError("max_amd", max_amd, "must be at least 0", "raise it")
  counts = range(1, len(D) + 1)
  candidates = (cluster(D, count, linkage=linkage) for count in counts)
  return next(groups for groups in candidates if amd(D, groups) <= max_amd)
