"""What goes into one pass of an SAE, and what surrounds it.

`Batch` is the data, `Pre` an encoder's output, `Context` everything else that
a part may read. Parts take what they need and ignore the rest.
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


class Batch(flax.struct.PyTreeNode):
  """Rows and what is known of each; fields that a method does not need are None.

  Attributes:
    x: activations [*b, d]. Pairs of rows are [R, 2, d].
    target: what is to be reconstructed instead of x [*b, d_out] (transcoders).
    cond: condition of each row [*b]: a timestep or the number of a layer.
    score: a number known of each row [*b], for probes.
    weight: of each row in the loss [*b]; rows of weight 0 do not count in
      statistics either.
  """

  x: Float[Array, "*b d"]
  target: Float[Array, "*b d_out"] | None = None
  cond: Array | None = None
  score: Float[Array, "*b"] | None = None
  weight: Float[Array, "*b"] | None = None

  @property
  def rows(self) -> int:
    """Number of rows, those of weight 0 included."""
    count = 1
    for size in self.x.shape[:-1]:
      count *= size
    return count

  @property
  def flat(self) -> "Batch":
    """The same rows along one axis."""
    outer = self.x.ndim - 1
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[outer:]), self)


FIELDS = ("x", "target", "cond", "score", "weight")


def as_batch(x: Array | Batch | Mapping[str, Array]) -> Batch:
  """Plain activations, or fields by name, as a batch; other names stay behind."""
  if isinstance(x, Mapping):
    return Batch(**{name: x[name] for name in FIELDS if name in x})
  return x if isinstance(x, Batch) else Batch(x=as_array(x))


def as_array(x: Any) -> Array:
  """Nested lists as an array; arrays and shapes as they are."""
  return jnp.asarray(x) if isinstance(x, list | tuple) else x


class Pre(flax.struct.PyTreeNode):
  """Pre-activations; an encoder with several heads fills more than one.

  Attributes:
    a: pre-activations [*b, n].
    gate: of a gate head [*b, n].
    mean, logvar: of a Gaussian head [*b, n].
  """

  a: Float[Array, "*b n"]
  gate: Float[Array, "*b n"] | None = None
  mean: Float[Array, "*b n"] | None = None
  logvar: Float[Array, "*b n"] | None = None


class Context(flax.struct.PyTreeNode):
  """What surrounds one pass.

  Attributes:
    batch: the data, in the units of the model.
    x: its rows prepared, see `sae.prep` [*b, d].
    decoder: the SAE's; tied encoders read it.
    W_dec: its rows as used [n, d].
    b_pre: subtracted from x before encoding [d].
    stats: statistics before this batch; empty outside training.
    step: batches consumed before this one; None outside training.
    key: of random numbers; None where nothing is sampled.
    k: overrides a part's k by a traced one, at most as large.
    coefficient: of this member, where a sweep has one.
    dtype: of the operands of matmuls.
    train: whether parts behave as in training (sampling, masks).
  """

  batch: Batch
  x: Float[Array, "*b d"]
  decoder: Any
  W_dec: Float[Array, "n d"]
  b_pre: Float[Array, "d"]
  stats: Mapping[str, Array] = flax.struct.field(default_factory=dict)
  step: Int[Array, ""] | None = None
  key: PRNGKeyArray | None = None
  k: Int[Array, ""] | None = None
  coefficient: Float[Array, ""] | None = None
  dtype: str = flax.struct.field(pytree_node=False, default="float32")
  train: bool = flax.struct.field(pytree_node=False, default=False)

  @property
  def norms(self) -> Float[Array, "n"]:
    """|w_i| of the decoder's rows."""
    return jnp.linalg.norm(self.W_dec, axis=-1)

  def random_key(self) -> PRNGKeyArray:
    """The key, for a part that samples.

    Raises:
      ValueError: none was given.
    """
    if self.key is None:
      raise ValueError(
        "this SAE samples in training: pass key=jax.random.key(...) to forward"
      )
    return self.key
