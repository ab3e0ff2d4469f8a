"""A dictionary inside, or near, the convex hull of points of the data."""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from saejax.errors import InputError
from saejax.sae import initial
from saejax.sae.activations import Activation
from saejax.sae.context import Batch, as_batch
from saejax.sae.part import Part
from saejax.sae.prep import Identity, Prep
from saejax.sae.sae import SAE


class Archetypal(Part):
  """W_dec = (A C + Lambda) exp(m): rows near convex combinations of points.

  Attributes:
    A: rows on the simplex, [n, p].
    relaxation: Lambda [n, d], rows of norm at most `delta`.
    log_multiplier: m, a scalar.
    b: decoder bias [d].
    points: C [p, d], frozen.
    delta: 0 keeps rows inside the hull, a large one leaves them free.
    multiplied: whether m is learned.

  `projected` restores the constraints on A and Lambda after each update.

  References:
    Fel et al., Archetypal SAE: Adaptive and Stable Dictionary Learning for
    Concept Extraction in Large Vision Models, 2025, arXiv:2502.12892.
  """

  A: Float[Array, "n p"]
  relaxation: Float[Array, "n d"]
  log_multiplier: Float[Array, ""]
  b: Float[Array, "d"]
  points: Float[Array, "p d"]
  delta: float = flax.struct.field(pytree_node=False)
  multiplied: bool = flax.struct.field(pytree_node=False, default=True)

  @property
  def n(self) -> int:
    return self.A.shape[-2]

  def rows(self) -> Float[Array, "n d"]:
    fixed = jax.lax.stop_gradient
    m = self.log_multiplier if self.multiplied else fixed(self.log_multiplier)
    hull = jnp.matmul(self.A, fixed(self.points), precision="highest")
    return (hull + self.relaxation) * jnp.exp(m)

  def projected(self) -> "Archetypal":
    """The decoder with A projected to the simplex and Lambda's rows clipped.

    Negative entries of A become 0 and its rows are divided by their sums;
    rows of Lambda longer than delta are scaled to that norm.

    A row of A without a positive entry would stay at 0 for ever: it is reset
    to the point of its largest entry.
    """
    positive = jax.nn.relu(self.A)
    total = jnp.sum(positive, axis=-1, keepdims=True)
    largest = jnp.argmax(self.A, axis=-1)
    anew = jax.nn.one_hot(largest, self.A.shape[-1], dtype=self.A.dtype)
    A = jnp.where(total > 0, positive / jnp.maximum(total, 1e-30), anew)
    norm = jnp.linalg.norm(self.relaxation, axis=-1, keepdims=True)
    shrink = jnp.minimum(1.0, self.delta / jnp.maximum(norm, 1e-12))
    return self.replace(A=A, relaxation=self.relaxation * shrink)


def project(sae: SAE) -> SAE:
  """Projects the decoder to its constraints, see `Archetypal.projected`.

  Args:
    sae: the SAE.
  """
  decoder: Archetypal = sae.decoder  # pyright: ignore[reportAssignmentType]
  return sae.replace(decoder=decoder.projected())


def check_points(
  points: Float[Array, "p d"] | int, d: int, n: int, delta: float
) -> None:
  """Raises an InputError for points or a delta that give no valid decoder.

  Args:
    points: the points [p, d], or their number.
    d: width.
    n: number of latents.
    delta: maximum norm of the relaxation.

  Raises:
    InputError: points of another width or fewer than n; delta below 0.
  """
  shape = (points, d) if isinstance(points, int) else tuple(points.shape)
  if len(shape) != 2 or shape[1] != d:
    raise InputError(
      "points", shape, f"must be [p, d={d}]", "take rows of the activations"
    )
  if shape[0] < n:
    raise InputError(
      "points",
      shape,
      f"must be at least n={n}: latent i starts at point i",
      "take more points, or lower n",
    )
  if not delta >= 0:
    raise InputError("delta", delta, "must be at least 0", "such as 1")


def init(
  key: PRNGKeyArray,
  *,
  n: int,
  d: int,
  points: Float[Array, "p d"] | int,
  activation: Activation,
  delta: float,
  multiplied: bool = True,
  prep: Prep = Identity(),
  sample: Batch | None = None,
  dtype: str = "float32",
) -> SAE:
  """Draws an SAE whose latent i starts at point i, in encoder and decoder.

      A = [I 0],  Lambda = 0,  m = 0,  W_enc_i = c_i / |c_i|^2,  b = 0

  Args:
    key: seeds the centroids; with given points all members start equal.
    n: latents, at most p.
    d: width of the activations.
    points: raw rows, the prep is applied to them as to the data; or p, for that
      many centroids of the sample.
    activation: a -> z.
    delta, multiplied: see `Archetypal`.
    prep: applied to the activations.
    sample: raw rows for the centroids. Without a sample they are random
      directions, which only serve to give the shapes.
    dtype: dtype of matmul operands.

  Raises:
    InputError: more centroids than the sample has rows.
  """
  if not isinstance(points, int):
    C, _ = prep.apply(jnp.asarray(points))
  elif sample is None:
    C = jax.random.normal(key, (points, d))
  else:
    x, _ = prep.apply(as_batch(sample).x)
    if len(x) < points:
      raise InputError(
        "points",
        points,
        f"must be at most the {len(x)} rows of the sample",
        "pass an array of points, or lower n",
      )
    C = kmeans(key, x, points)
  first = C[:n]
  square = jnp.sum(jnp.square(first), axis=-1, keepdims=True)
  encoder = initial.affine(first / jnp.maximum(square, 1e-12))

  def decoder(W: Array, b: Array) -> Archetypal:
    del W
    return Archetypal(
      A=jnp.eye(n, len(C)),
      relaxation=jnp.zeros((n, d)),
      log_multiplier=jnp.zeros(()),
      b=b,
      points=C,
      delta=delta,
      multiplied=multiplied,
    )

  return initial.init(
    key,
    n=n,
    d=d,
    activation=activation,
    prep=prep,
    centre=False,
    encoder=lambda W: encoder,
    decoder=decoder,
    dtype=dtype,
  )


@partial(jax.jit, static_argnames=("count", "steps"))
def kmeans(
  key: PRNGKeyArray, x: Float[Array, "s d"], count: int, steps: int = 20
) -> Float[Array, "count d"]:
  """Centroids of rows by k-means: k-means++ seeding, then Lloyd's algorithm.

  A centroid without rows stays where it is. With s rows a step costs
  count s d multiplications and s count numbers of memory: use a sample of
  about ten thousand rows.

  Args:
    key: seeds the initial centroids.
    x: at least `count` rows.
    count: number of centroids.
    steps: iterations of Lloyd's algorithm.

  References:
    Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding,
    2007.
  """
  x = x.astype(jnp.float32)
  keys = jax.random.split(key, count)
  first = x[jax.random.randint(keys[0], (), 0, len(x))]
  squares = lambda c: jnp.sum(jnp.square(x - c), axis=-1)

  def seed(i, carry):
    centres, least = carry
    # A row is drawn in proportion to its squared distance to the nearest seed.
    drawn = x[jax.random.categorical(keys[i], jnp.log(least))]
    return centres.at[i].set(drawn), jnp.minimum(least, squares(drawn))

  start = jnp.tile(first, (count, 1))
  centres, _ = jax.lax.fori_loop(1, count, seed, (start, squares(first)))

  def move(_, centres):
    far = jnp.sum(jnp.square(centres), axis=-1) - 2 * x @ centres.T
    own = jax.nn.one_hot(jnp.argmin(far, axis=-1), count)
    rows = jnp.sum(own, axis=0)[:, None]
    return jnp.where(rows > 0, own.T @ x / jnp.maximum(rows, 1), centres)

  return jax.lax.fori_loop(0, steps, move, centres)
