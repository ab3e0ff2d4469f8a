"""An activation gated by a bias that a rule sets, not the gradient."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.activations import Activation
from saejax.sae.context import Context, Pre

FORMS = ("jump", "relu")


class BiasGate(Activation):
  """Keeps latents whose gate y = a + b is positive; b gets no gradient.

      jump  z = a where y > 0, else 0: the bias moves the gate alone
      relu  z = max(y, 0)

  A jump gate is a threshold -b on a. At the edge of the gate z is continuous
  in b under relu only: a jump latent goes from 0 to a = -b.

  Attributes:
    b: added to the pre-activations; moved by
      `training.parts.bias_rule.BiasAdaptation`.
    form: "jump" or "relu".

  References:
    Chen et al., Taming Polysemanticity in LLMs: Provable Feature Recovery via
    Sparse Autoencoders, 2025, arXiv:2506.14002.
  """

  b: Float[Array, "n"]
  form: str = flax.struct.field(pytree_node=False, default="jump")

  def gate(self, pre: Pre) -> Float[Array, "*b n"]:
    """The gate y = a + b, with no gradient in b.

    Args:
      pre: pre-activations; only `a` is read.
    """
    return pre.a + jax.lax.stop_gradient(self.b)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    y = self.gate(pre)
    return jnp.where(y > 0, pre.a if self.form == "jump" else y, 0)
