"""The Kronecker-factored encoder of KronSAE: a latent per pair of units.

Each of h heads has m base and q extension units; each pair of them is a latent
that is active where both are, so that n = h m q latents need h (m + q) encoder
rows. Head e, base i and extension j give latent (e m + i) q + j.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from saejax.kernels.topk import op as topk
from saejax.sae import decoders, encoders
from saejax.sae.activations import Activation
from saejax.sae.context import Batch, Context, Pre
from saejax.sae.prep import Identity, Prep
from saejax.sae.sae import SAE

SLOPE = 10.0  # largest partial derivative of mand


@jax.custom_jvp
def mand(p: Float[Array, "..."], s: Float[Array, "..."]) -> Float[Array, "..."]:
  """sqrt(p s), a differentiable AND of two non-negative numbers.

  It is 0 where either is 0, else positive, and p where p = s. The derivatives
  are 0 where it is 0, and bounded elsewhere:

      dz/dp = min(sqrt(s / p) / 2, 10),   dz/ds = min(sqrt(p / s) / 2, 10)

  The paper's listing uses sqrt(p s + 1e-5), which is never 0: inactive latents
  would be kept and count as alive.

  Args:
    p, s: non-negative arrays of broadcastable shapes.
  """
  return jnp.sqrt(p * s)


@mand.defjvp
def _mand_jvp(primals, tangents):
  p, s = primals
  z = mand(p, s)
  on = z > 0
  slope = lambda over, under: jnp.where(
    on, jnp.minimum(0.5 * jnp.sqrt(over / jnp.where(on, under, 1)), SLOPE), 0
  )
  return z, slope(s, p) * tangents[0] + slope(p, s) * tangents[1]


class Kron(encoders.Encoder):
  """Pre-activations of base and extension units, combined within heads.

      p = relu((x - b_pre) P^T + b_P),   s = relu((x - b_pre) Q^T + b_Q)
      a[e, i, j] = mand(p[e, i], s[e, j])

  It is not affine, so no SAE with one encoder row per latent equals it: it
  keeps its own encode and cannot be exported.

  Attributes:
    P: rows of the base units, per head.
    b_P: biases of the base units.
    Q, b_Q: those of the extension units; None where they are the base units.

  References:
    Kurochkin et al., Train Sparse Autoencoders Efficiently by Utilizing
    Features Correlation, 2025, arXiv:2505.22255.
  """

  P: Float[Array, "h m d"]
  b_P: Float[Array, "h m"]
  Q: Float[Array, "h q d"] | None
  b_Q: Float[Array, "h q"] | None

  def units(
    self, x: Float[Array, "*b d"], ctx: Context
  ) -> tuple[Float[Array, "*b h m"], Float[Array, "*b h q"]]:
    """The activations p of the base units and s of the extension units.

    Args:
      x: prepared activations.
      ctx: context of the pass.
    """

    def heads(W, b):
      W = W.reshape(-1, W.shape[-1])
      flat = encoders.centred_matmul(x, ctx.b_pre, W, ctx.dtype)
      return jax.nn.relu(flat.reshape(*x.shape[:-1], *b.shape) + b)

    p = heads(self.P, self.b_P)
    return p, p if self.Q is None else heads(self.Q, self.b_Q)

  def __call__(self, x: Float[Array, "*b d"], ctx: Context) -> Pre:
    """Maps prepared activations to all pre-activations."""
    p, s = self.units(x, ctx)
    z = mand(p[..., :, None], s[..., None, :])
    return Pre(a=z.reshape(*x.shape[:-1], -1))

  @property
  def has_largest(self) -> bool:
    return True

  def largest(
    self,
    x: Float[Array, "*b d"],
    ctx: Context,
    k: int,
    *,
    ordered: bool = True,
    magnitude: bool = False,
    among: Bool[Array, "n"] | None = None,
    most: Int[Array, ""] | None = None,
  ) -> tuple[Float[Array, "*b k"], Int[Array, "*b k"]]:
    """The k largest latents of each row, largest first.

    Other latents are not computed. With `among`, latents that are not among
    those given come after all others, with value -inf.
    """
    del ordered, magnitude, most  # nothing is negative
    if among is None:
      return corner_top_k(*self.units(x, ctx), k)
    return topk.top_k(jnp.where(among, self(x, ctx).a, -jnp.inf), k)


def corner_top_k(
  p: Float[Array, "*b h m"], s: Float[Array, "*b h q"], k: int
) -> tuple[Float[Array, "*b k"], Int[Array, "*b k"]]:
  """The k largest of mand(p, s) over all pairs, without computing all pairs.

  They lie in the k heads whose largest pair is largest, and in each of those
  among its k largest p and k largest s. Exact; equal values come lowest index
  first, unless rounding made them equal.

  Args:
    p, s: non-negative.
    k: number of pairs, at most h m q.

  Returns:
    Values, largest first, with their gradient, and the indices of the latents.
  """
  m, q = p.shape[-1], s.shape[-1]
  batch = p.shape[:-2]
  fixed_p, fixed_s = jax.lax.stop_gradient((p, s))
  best = mand(jnp.max(fixed_p, axis=-1), jnp.max(fixed_s, axis=-1))
  heads = _largest(best, k)
  # In index order on every level, so that ties fall to the lowest index.
  in_heads = lambda a: jnp.take_along_axis(a, heads[..., None], axis=-2)
  i, j = _largest(in_heads(fixed_p), k), _largest(in_heads(fixed_s), k)
  take = lambda a, at: jnp.take_along_axis(in_heads(a), at, axis=-1)
  pairs = mand(take(fixed_p, i)[..., :, None], take(fixed_s, j)[..., None, :])
  index = (heads[..., None] * m + i)[..., :, None] * q + j[..., None, :]
  _, at = topk.top_k(pairs.reshape(*batch, -1), k)
  indices = jnp.take_along_axis(index.reshape(*batch, -1), at, axis=-1)
  head, i, j = _parts(indices, m, q)
  flat = lambda a, at: jnp.take_along_axis(a.reshape(*batch, -1), at, axis=-1)
  return mand(flat(p, head * m + i), flat(s, head * q + j)), indices


def _largest(a: Float[Array, "*b l"], k: int) -> Int[Array, "*b c"]:
  """Positions of the min(k, l) largest, ascending."""
  if k >= a.shape[-1]:
    return jnp.broadcast_to(jnp.arange(a.shape[-1]), a.shape)
  return jnp.sort(topk.top_k(a, k)[1], axis=-1)


def _parts(index: Int[Array, "..."], m: int, q: int):
  """Head, base and extension of a latent."""
  return index // (m * q), index // q % m, index % q


class Cost(NamedTuple):
  """Encoder weights, and multiplications to encode and decode one row."""

  parameters: int
  multiplications: int


def cost(d: int, k: int, h: int, m: int, q: int) -> Cost:
  """Returns the cost of a KronSAE per row.

  It has h (m + q) (d + 1) weights and takes d h (m + q) + h m q + k d
  multiplications.

  Args:
    d: width.
    k: active latents per row.
    h: number of heads.
    m: base units per head.
    q: extension units per head.
  """
  units = h * (m + q)
  return Cost(units * (d + 1), d * units + h * m * q + k * d)


def affine_cost(d: int, k: int, n: int) -> Cost:
  """Cost of an SAE with one encoder row per latent: n (d + 1) and d n + k d.

  Args:
    d: width.
    k: active latents per row.
    n: number of latents.
  """
  return Cost(n * (d + 1), d * n + k * d)


def init(
  key: PRNGKeyArray,
  *,
  n: int,
  d: int,
  sizes: tuple[int, int, int],
  activation: Activation,
  shared: bool = False,
  prep: Prep = Identity(),
  sample: Array | Batch | None = None,
  dtype: str = "float32",
) -> SAE:
  """Encoder entries N(0, 1 / 2n); W_dec rows P_i + Q_j at unit norm; biases 0.

  Args:
    key: random key.
    n: latents, the product of the sizes.
    d: width of the activations.
    sizes: heads h, base units m and extension units q of each.
    activation: a -> z.
    shared: whether the extension units are the base units.
    prep: applied to the activations.
    sample: not used.
    dtype: dtype of matmul operands.
  """
  del sample
  h, m, q = sizes
  keys = jax.random.split(key)
  draw = lambda key, units: (
    jax.random.normal(key, (h, units, d)) / (2 * n) ** 0.5
  )
  P = draw(keys[0], m)
  Q = P if shared else draw(keys[1], q)
  W = (P[:, :, None, :] + Q[:, None, :, :]).reshape(n, d)
  return SAE(
    prep=prep,
    encoder=Kron(
      P=P,
      b_P=jnp.zeros((h, m)),
      Q=None if shared else Q,
      b_Q=None if shared else jnp.zeros((h, q)),
    ),
    activation=activation,
    decoder=decoders.Free(W=decoders.unit_rows(W), b=jnp.zeros((d,))),
    pre_bias=False,
    dtype=dtype,
  )
