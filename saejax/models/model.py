"""The subject model: a frozen pytree of weights with one forward and taps."""

import collections.abc
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Bool, Float, Int

from saejax import errors
from saejax.models import bert, config_file, gpt2, hub, llama, ops, weights

FAMILIES = {"bert": bert, "gpt2": gpt2, "llama": llama}
Config: TypeAlias = bert.Config | gpt2.Config | llama.Config
Tap: TypeAlias = collections.abc.Callable[[str, Array], Array]


def untouched(name: str, h: Array) -> Array:
  """The tap that changes nothing."""
  del name
  return h


class Model(flax.struct.PyTreeNode):
  """A frozen model: calls go through one forward with taps.

  Attributes:
    params: weights by role, in the dtype they were loaded in.
    config: sizes and choices of the family.
    name: what it was loaded by.
  """

  params: Any
  config: Config = flax.struct.field(pytree_node=False)
  name: str = flax.struct.field(pytree_node=False)

  @property
  def family(self) -> str:
    """ "bert", "gpt2" or "llama"."""
    return self.config.family

  @property
  def d(self) -> int:
    """Width of the residual stream."""
    return self.config.d

  @property
  def layers(self) -> int:
    return self.config.layers

  @property
  def vocabulary(self) -> int:
    """Number of token ids."""
    return self.config.vocabulary

  @property
  def causal(self) -> bool:
    """Whether it is a language model, whose tokens see those before them."""
    return self.family != "bert"

  @property
  def max_positions(self) -> int:
    """Longest row the model was made for, in tokens."""
    return self.config.max_positions

  @property
  def head(self) -> Float[Array, "V d"]:
    """The language head; the token table where they are tied.

    Raises:
      InputError: an encoder, or a checkpoint without one.
    """
    if self.causal:
      tied = getattr(self.config, "tied", False)
      found = self.params.get("token" if tied else "head")
      if found is not None:
        return found
    lacks = f"lacks {FAMILIES[self.family].HEAD}" if self.causal else "has none"
    raise errors.InputError(
      hub.FIELD,
      self.name,
      f"must have a language head for its logits, and {lacks}",
      "load the checkpoint of the language model, or read activations only",
    )

  def __call__(
    self,
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    tap: Tap = untouched,
    view: ops.View | None = None,
  ) -> Float[Array, "B T o"]:
    """Logits of a causal model, the last hidden state of an encoder.

    Args, and what is raised, are those of `hidden`.

    Raises:
      InputError: a causal model from a checkpoint without a language head.
    """
    if not self.causal:
      return self.hidden(ids, mask, tap=tap, view=view)
    head = self.head
    return ops.matmul(self.hidden(ids, mask, tap=tap, view=view), head.T)

  def hidden(
    self,
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    tap: Tap = untouched,
    view: ops.View | None = None,
  ) -> Float[Array, "B T d"]:
    """The last hidden state, after the last norm.

    At each point of each layer the forward calls `tap(name, h)` and goes on
    with what that returns, so one mechanism reads and rewrites. Names are
    `layers.{l}.{point}`; per layer in the order resid_pre, attn_out,
    resid_mid, mlp_out, resid_post.

    Args:
      ids: token ids. Where they are traced they cannot be looked at, and one
        outside the vocabulary turns its row into NaN.
      mask: which of them are real. Padding may be on either side and of any
        id: positions count real tokens, so it changes nothing for them. What
        comes out at padding is finite and means nothing.
      tap: reads or replaces h [B, T, d].
      view: what tokens of a causal model see, and where they stand; all
        before them by default. Positions that a table of them lacks give NaN.

    Raises:
      ValueError: shapes or types other than these, or a view of an encoder.
      InputError: an id outside the vocabulary, or more tokens than a table of
        positions has.
    """
    self.check(ids, mask)
    if view is not None and not self.causal:
      raise ValueError(f"{self.name} is an encoder, which has no view")
    table = "position" in self.params and view is None
    if table and ids.shape[1] > self.max_positions:
      raise errors.InputError(
        "harvest.context",
        ids.shape[1],
        f"must be at most {self.max_positions}, the positions of {self.name}",
        "lower it",
      )
    family = FAMILIES[self.family]
    ids, mask = jnp.asarray(ids), jnp.asarray(mask)
    ids = jnp.where(mask, ids, 0)
    own = {} if view is None else {"view": view}
    return family.forward(self.params, self.config, ids, mask, tap, **own)

  def check(self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> None:
    """Refuses tokens that the forward cannot take; traced ids pass.

    Raises:
      ValueError: shapes or types other than `hidden` takes.
      InputError: an id outside the vocabulary.
    """
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
      raise ValueError(
        f"ids must be integers [B, T], got {ids.dtype} {ids.shape}"
      )
    if mask.shape != ids.shape or mask.dtype != jnp.bool_:
      raise ValueError(
        f"mask must be bool {ids.shape}, got {mask.dtype} {mask.shape}"
      )
    if _is_known(ids) and _is_known(mask):
      real = np.asarray(ids)[np.asarray(mask)]
      check_ids(real, self.vocabulary, self.name)


def _is_known(a: Array | np.ndarray) -> bool:
  if isinstance(a, core.Tracer):
    return False
  return not isinstance(a, jax.Array) or a.is_fully_addressable


def check_ids(
  ids: Int[np.ndarray, "n"],
  vocabulary: int,
  model: str,
  *,
  field: str = "ids",
  remedy: str = "use the tokenizer of this model",
) -> None:
  """Refuses ids outside a vocabulary, which would give NaN activations.

  Args:
    ids: token ids, without padding.
    vocabulary: number of ids of the model.
    model: its name.
    field: the setting that the ids came from.
    remedy: what to do.

  Raises:
    InputError: with the first id outside, and how many there are.
  """
  outside = ids[(ids < 0) | (ids >= vocabulary)]
  if len(outside):
    raise errors.InputError(
      field,
      outside[0],
      f"must be in [0, {vocabulary}), the vocabulary of {model}, and "
      f"{len(outside)} of {len(ids)} ids are not",
      remedy,
    )


def load(name: str, *, dtype: str | jnp.dtype = "float32") -> Model:
  """The model called `name` (see hub.resolve) on the default device.

  Args:
    name: path, `package:NAME/path` or Hugging Face name.
    dtype: of weights and matmuls, "float32" or "bfloat16" (for accelerators).

  Raises:
    InputError: not found, unreadable, or of a kind that is not implemented.
  """
  if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
    raise ValueError(f"dtype must be float32 or bfloat16, got {dtype}")
  folder = hub.resolve(name)
  file = config_file.read(folder)
  family = FAMILIES[file.choice("model_type", FAMILIES, "")]
  config = family.read_config(file)
  with weights.open_folder(folder, jnp.dtype(dtype)) as tensors:
    params = family.read_params(tensors, config)
  return Model(params=jax.block_until_ready(params), config=config, name=name)
