"""Initialisation of an SAE's weights."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from saejax.sae import decoders, encoders
from saejax.sae.activations import Activation
from saejax.sae.context import Batch, as_batch
from saejax.sae.prep import Identity, Prep
from saejax.sae.sae import SAE


def affine(W: Float[Array, "n d"]) -> encoders.Affine:
  """An untied encoder with weights W and biases 0.

  Args:
    W: encoder rows.
  """
  return encoders.Affine(W=W, b=jnp.zeros(W.shape[:1]))


def init(
  key: PRNGKeyArray,
  *,
  d: int,
  n: int,
  activation: Activation,
  sample: Float[Array, "s d"] | Batch | None = None,
  prep: Prep = Identity(),
  encoder: Callable[[Array], encoders.Encoder] = affine,
  decoder: Callable[..., decoders.Decoder] = decoders.Free,
  row_norm: float = 1.0,
  pre_bias: bool = True,
  centre: bool = True,
  dtype: str = "float32",
  d_target: int | None = None,
  target_prep: Prep = Identity(),
) -> SAE:
  """Draws an untrained SAE: random rows of W_dec, W_enc = W_dec, b_enc = 0.

  Encoder and decoder are equal at the start only, unless the encoder is tied.
  b_dec is the geometric median of `sample`, or 0. A transcoder's W_enc has
  independent random rows, and it has no pre-bias.

  Args:
    key: random key.
    d: width of the activations.
    n: latents.
    activation: a -> z.
    sample: raw activations for b_dec.
    prep: applied to the activations.
    encoder: function of W_dec that gives the encoder.
    decoder: function of W= and b= that gives the decoder.
    row_norm: norm of each row of W_dec and W_enc.
    pre_bias: whether b_dec is subtracted before encoding.
    centre: whether b_dec starts at the sample's median instead of at 0.
    dtype: dtype of matmul operands.
    d_target: width of the target, for a transcoder.
    target_prep: prep of a transcoder's target.
  """
  transcodes = d_target is not None
  W = W_enc = row_norm * directions(key, n, d_target if transcodes else d)
  if transcodes:
    W_enc = row_norm * directions(jax.random.fold_in(key, 1), n, d)
  b_dec = jnp.zeros(W.shape[-1:])
  if centre and sample is not None:
    sample = as_batch(sample)
    raw, framed = (
      (sample.target, target_prep) if transcodes else (sample.x, prep)
    )
    y, _ = framed.apply(raw, sample.cond)
    b_dec = geometric_median(y.reshape(-1, y.shape[-1]))
  return SAE(
    prep=prep,
    encoder=encoder(W_enc),
    activation=activation,
    # A copy: donated states must not hold one buffer twice.
    decoder=decoder(W=jnp.array(W), b=b_dec),
    target_prep=target_prep if transcodes else None,
    pre_bias=pre_bias and not transcodes,
    dtype=dtype,
  )


def directions(key: PRNGKeyArray, n: int, d: int) -> Float[Array, "n d"]:
  """Random unit rows.

  Args:
    key: key of the draw.
    n: number of rows.
    d: width.
  """
  return decoders.unit_rows(jax.random.normal(key, (n, d)))


@partial(jax.jit, static_argnames=("steps",))
def geometric_median(
  x: Float[Array, "s d"], steps: int = 100, tolerance: float = 1e-5
) -> Float[Array, "d"]:
  """Computes the point with the least sum of distances to the rows.

      T(g) = sum_i x_i / |x_i - g|  /  sum_i 1 / |x_i - g|
      g <- T(g) + min(1, m / r) (g - T(g)),  r = |sum_i (x_i - g) / |x_i - g||

  over the rows other than g; m rows equal g. Plain Weiszfeld steps (m = 0)
  would divide by 0 at a row, or stay at one that is not the median.

  Args:
    x: rows.
    steps: maximum number of steps.
    tolerance: step length below which the iteration stops.

  References:
    Vardi and Zhang, The multivariate L1-median and associated data depth, 2000.
  """

  def step(carry):
    g, _, i = carry
    distance = jnp.linalg.norm(x - g, axis=-1)
    equal = distance <= 1e-6 * jnp.mean(distance)
    weight = jnp.where(equal, 0, 1 / jnp.where(equal, 1, distance))
    total = jnp.maximum(jnp.sum(weight), 1e-30)
    towards = (weight @ x) / total
    pull = total * jnp.linalg.norm(towards - g)
    m = jnp.sum(equal, dtype=jnp.float32)
    stay = jnp.minimum(1.0, m / jnp.maximum(pull, 1e-30))
    new = jnp.where(stay < 1, towards + stay * (g - towards), g)
    return new, jnp.linalg.norm(new - g), i + 1

  moving = lambda carry: (carry[1] >= tolerance) & (carry[2] < steps)
  start = (jnp.mean(x, axis=0), jnp.asarray(jnp.inf), 0)
  return jax.lax.while_loop(moving, step, start)[0]
