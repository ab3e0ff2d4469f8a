"""An encoder whose pre-activations are drawn from a Gaussian posterior."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from saejax.sae import encoders, initial
from saejax.sae.context import Context, Pre
from saejax.sae.sae import SAE

POSTERIORS = ("none", "fixed", "learned")
LOGVAR_RANGE = (-6.0, 2.0)


class Gaussian(encoders.Encoder):
  """Predicts a mean, and in training draws a sample around it.

      mu = relu((x - b_pre) W^T + b)
      a  = mu                               posterior "none"
      a  = mu + eps                         "fixed", in training
      a  = mu + eps exp(logvar / 2)         "learned", in training
      logvar = clip((x - b_pre) W_var^T + b_var, -6, 2)

  with eps standard normal. Outside training a = mu.

  Attributes:
    W, b: weights and biases of the mean.
    W_var, b_var: those of the log variance, None unless it is learned.
    posterior: "none", "fixed" or "learned", see above.
  """

  W: Float[Array, "n d"]
  b: Float[Array, "n"]
  W_var: Float[Array, "n d"] | None
  b_var: Float[Array, "n"] | None
  posterior: str = flax.struct.field(pytree_node=False)

  def __call__(self, x: Float[Array, "*b d"], ctx: Context) -> Pre:
    """Samples in training. Raises ValueError where the pass then has no key."""
    product = lambda W: encoders.centred_matmul(x, ctx.b_pre, W, ctx.dtype)
    mean = jax.nn.relu(product(self.W) + self.b)
    logvar = None
    if self.W_var is not None and self.b_var is not None:
      logvar = product(self.W_var) + self.b_var
      logvar = jnp.clip(logvar, *LOGVAR_RANGE)
    a = mean
    if ctx.train and self.posterior != "none":
      a += scale(logvar) * jax.random.normal(ctx.rows_key(), mean.shape)
    return Pre(a=a, mean=mean, logvar=logvar)


def scale(logvar: Float[Array, "*b n"] | None) -> Float[Array, "*b n"] | float:
  """The standard deviation; 1 where the variance is not learned.

  Args:
    logvar: log of the variance, or None.
  """
  return 1.0 if logvar is None else jnp.exp(logvar / 2)


def init(key: PRNGKeyArray, *, posterior: str, **around: Any) -> SAE:
  """Draws an SAE as `initial.init` does, with a Gaussian head on its W_enc.

  W_var is uniform on +-sqrt(6 / ((1 + 0.01^2) d)), b_var is -2.

  Args:
    key: random key.
    posterior: see `Gaussian`.
    **around: arguments of `initial.init`.
  """
  rows_key, var_key = jax.random.split(key)
  head = partial(_head, var_key, posterior)
  return initial.init(rows_key, encoder=head, **around)


def _head(key: PRNGKeyArray, posterior: str, W: Array) -> Gaussian:
  n, d = W.shape
  W_var = b_var = None
  if posterior == "learned":
    bound = (6 / ((1 + 0.01**2) * d)) ** 0.5
    W_var = jax.random.uniform(key, (n, d), minval=-bound, maxval=bound)
    b_var = jnp.full((n,), -2.0, jnp.float32)
  return Gaussian(W, jnp.zeros((n,)), W_var, b_var, posterior)
