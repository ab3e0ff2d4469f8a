"""Groups layers whose activations are similar enough to share one SAE.

The distance of two layers is the angle between their activations of a token,
each less its layer's mean, over pi, averaged over tokens:

  D_ij = mean_b arccos(cos(x_bi - m_i, x_bj - m_j)) / pi

0 is the same direction, 1/2 a right angle, 1 the opposite one. Layers are
merged by complete linkage on D, only neighbours in depth ("contiguous"); AMD(G)
is the unweighted mean over the G groups of the largest distance inside each,
and the fewest groups are taken whose AMD is at most a threshold.

The official code hands scikit-learn the lower triangle of D as if its rows were
features, and does not ask for contiguity: "features" does the same, while
"precomputed" is complete linkage on D without contiguity. It leaves the last
layer out: so may the caller.

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
  """D over all rows; symmetric, 0 on the diagonal.

  Args:
    batches: rows of all layers.
    centre: subtracted from each layer; zeros leave rows as they are. By default
      a running mean of each layer, m <- (1 - alpha) m + alpha mean(batch), that
      begins at the mean of the first batch and takes each batch in before it
      is used.
    alpha: of the running mean.

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
    raise InputError("rows", 0, "distances need rows", "pass at least one")
  return np.asarray(total / rows, np.float64)


@jax.jit
def _angles(
  x: Float[Array, "B L d"], centre: Float[Array, "L d"]
) -> Float[Array, "L L"]:
  """Angles over pi, summed over rows."""
  x = x - centre[None]
  norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
  u = x / jnp.where(norm > 0, norm, 1.0)
  cosine = jnp.einsum("bid,bjd->bij", u, u, precision="highest")
  angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0)) / jnp.pi
  # Rounding makes an angle of 1e-4 of none.
  same = jnp.eye(x.shape[1], dtype=bool)
  return jnp.where(same, 0.0, jnp.sum(angle, axis=0))


def cluster(D: Distances, count: int, *, linkage: str = "contiguous") -> Groups:
  """The layers in `count` groups, ordered by their first layer.

  Raises:
    InputError: a count that L layers do not have, or an unknown linkage.
  """
  if not 1 <= count <= len(D):
    raise InputError(
      "groups", count, f"must be in [1, {len(D)}], the layers", "such as 1"
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
  """The largest distance inside a group; 0 of one layer."""
  return float(D[np.ix_(group, group)].max())


def amd(D: Distances, groups: Groups) -> float:
  """AMD, the mean over groups of their widths."""
  return float(np.mean([width(D, group) for group in groups]))


def choose(
  D: Distances, *, max_amd: float = 0.2, linkage: str = "contiguous"
) -> Groups:
  """The fewest groups whose AMD is at most `max_amd`.

  As many as there are layers have AMD 0, so that some number always does.
  """
  if not max_amd >= 0:
    raise InputError("max_amd", max_amd, "must be at least 0", "such as 0.1")
  counts = range(1, len(D) + 1)
  found = (cluster(D, count, linkage=linkage) for count in counts)
  return next(groups for groups in found if amd(D, groups) <= max_amd)
