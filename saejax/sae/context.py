"""Inputs of a forward pass: the batch, pre-activations and the context.

`Batch` is the data, `Pre` an encoder's output, `Context` everything else that
a part may read. Each part reads only the fields it needs.
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


class Batch(flax.struct.PyTreeNode):
  """Rows and their metadata; fields that a method does not need are None.

  Attributes:
    x: activations [*b, d]. Pairs of rows are [R, 2, d].
    target: reconstruction target of a transcoder [*b, d_out]; None for x.
    cond: condition of each row [*b]: a timestep or the index of a layer.
    score: regression target of probes, per row [*b].
    weight: weight of each row in the loss [*b]; rows of weight 0 are excluded
      from statistics too.
  """

  x: Float[Array, "*b d"]
  target: Float[Array, "*b d_out"] | None = None
  cond: Array | None = None
  score: Float[Array, "*b"] | None = None
  weight: Float[Array, "*b"] | None = None

  @property
  def rows(self) -> int:
    """Number of rows, including those of weight 0."""
    count = 1
    for size in self.x.shape[:-1]:
      count *= size
    return count

  @property
  def flat(self) -> "Batch":
    """The batch with all its leading axes flattened into one."""
    outer = self.x.ndim - 1
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[outer:]), self)


FIELDS = ("x", "target", "cond", "score", "weight")


def as_batch(x: Array | Batch | Mapping[str, Array]) -> Batch:
  """Converts an array or a mapping to a batch; unknown names are ignored.

  Args:
    x: rows, a batch or arrays by field.
  """
  if isinstance(x, Mapping):
    return Batch(**{name: x[name] for name in FIELDS if name in x})
  return x if isinstance(x, Batch) else Batch(x=as_array(x))


def as_array(x: Any) -> Array:
  """Converts nested lists to an array; arrays and shapes are unchanged.

  Args:
    x: nested lists, an array or a `jax.ShapeDtypeStruct`.
  """
  return jnp.asarray(x) if isinstance(x, list | tuple) else x


class Pre(flax.struct.PyTreeNode):
  """Pre-activations; an encoder with several heads fills more than one.

  Attributes:
    a: pre-activations [*b, n].
    gate: output of a gate head [*b, n].
    mean, logvar: outputs of a Gaussian head [*b, n].
    l0: active latents per row [*b], where an op counts them as it encodes.
  """

  a: Float[Array, "*b n"]
  gate: Float[Array, "*b n"] | None = None
  mean: Float[Array, "*b n"] | None = None
  logvar: Float[Array, "*b n"] | None = None
  l0: Float[Array, "*b"] | None = None


class Context(flax.struct.PyTreeNode):
  """The context of one forward pass: all that a part may read beside `Pre`.

  Attributes:
    batch: the data, in the units of the model.
    x: the batch's rows after the prep, see `sae.prep` [*b, d].
    decoder: the SAE's decoder, for tied encoders.
    W_dec: the decoder's rows as used [n, d].
    b_pre: subtracted from x before encoding [d].
    stats: statistics before this batch; empty outside training.
    step: number of batches consumed before this one; None outside training.
    key: random key; None where nothing is sampled.
    part: number of the part of a batch that these rows are; None for a whole
      one. Parts of a batch share the key.
    k: traced k that overrides a part's static k, at most as large.
    coefficient: this member's coefficient, in a sweep over coefficients.
    dtype: dtype of matmul operands.
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
  part: Int[Array, ""] | None = None
  k: Int[Array, ""] | None = None
  coefficient: Float[Array, ""] | None = None
  dtype: str = flax.struct.field(pytree_node=False, default="float32")
  train: bool = flax.struct.field(pytree_node=False, default=False)

  @property
  def norms(self) -> Float[Array, "n"]:
    """|w_i| of the decoder's rows."""
    return jnp.linalg.norm(self.W_dec, axis=-1)

  def random_key(self) -> PRNGKeyArray:
    """Returns the random key of draws for all rows of a batch.

    Raises:
      ValueError: the pass has no key.
    """
    if self.key is None:
      raise ValueError(
        "this SAE samples in training: pass key=jax.random.key(...) to forward"
      )
    return self.key

  def rows_key(self) -> PRNGKeyArray:
    """Returns the random key of draws for each row, other ones in every part.

    Raises:
      ValueError: the pass has no key.
    """
    key = self.random_key()
    return key if self.part is None else jax.random.fold_in(key, self.part)
