"""The subject model: a frozen pytree of weights, a forward pass and taps."""

from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from saejax import errors
from saejax.models import (
  bert,
  checkpoint,
  decoder,
  gemma,
  gpt2,
  gpt_neox,
  hub,
  llama,
  mistral,
  ops,
  phi3,
  qwen,
  stack,
  weights,
)
from saejax.models import mesh as mesh_lib
from saejax.models.family import Family

FAMILIES: dict[str, Family] = {  # by `model_type` in config.json
  "bert": bert.FAMILY,
  "gemma": gemma.GEMMA_FAMILY,
  "gemma2": gemma.GEMMA2_FAMILY,
  "gemma3": gemma.GEMMA3_FAMILY,
  "gemma3_text": gemma.GEMMA3_TEXT_FAMILY,
  "gpt2": gpt2.FAMILY,
  "gpt_neox": gpt_neox.FAMILY,
  "llama": llama.FAMILY,
  "mistral": mistral.FAMILY,
  "phi3": phi3.FAMILY,
  "qwen2": qwen.QWEN2_FAMILY,
  "qwen3": qwen.QWEN3_FAMILY,
}
Config: TypeAlias = bert.Config | decoder.Config | gpt2.Config | gpt_neox.Config


class Model(flax.struct.PyTreeNode):
  """A frozen model with taps in its forward pass.

  Attributes:
    params: weights by role.
    config: settings of the family.
    name: name that the model was loaded by.
    mesh: its devices, see `models.mesh`; None for the default device.
  """

  params: Any
  config: Config = flax.struct.field(pytree_node=False)
  name: str = flax.struct.field(pytree_node=False)
  mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)

  @property
  def family(self) -> str:
    """Name in `FAMILIES`."""
    return self.config.family

  @property
  def d(self) -> int:
    """Width of the residual stream."""
    return self.config.d

  @property
  def layers(self) -> int:
    """Number of layers."""
    return self.config.layers

  @property
  def vocabulary(self) -> int:
    """Number of token ids."""
    return self.config.vocabulary

  @property
  def causal(self) -> bool:
    """Whether it is a language model, where a token sees only those before it."""
    return FAMILIES[self.family].causal

  @property
  def max_positions(self) -> int:
    """Maximum number of tokens per row that the model was trained for."""
    return self.config.max_positions

  @property
  def head(self) -> Float[Array, "V d"]:
    """The language head, which is the token table where they are tied.

    Raises:
      InputError: the model is an encoder, or its checkpoint has no head.
    """
    if self.causal:
      tied = getattr(self.config, "tied", False)
      weights = self.params.get("token" if tied else "head")
      if weights is not None:
        return weights
    names = " or ".join(FAMILIES[self.family].heads)
    lacks = f"lacks {names}" if names else "has none"
    raise errors.InputError(
      hub.FIELD,
      self.name,
      f"must have a language head for its logits, but {lacks}",
      "load the checkpoint of the language model, or read activations only",
    )

  def __call__(
    self,
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    tap: stack.Tap = stack.untouched,
    view: ops.View | None = None,
  ) -> Float[Array, "B T o"]:
    """Computes logits of a causal model, the last hidden state of an encoder.

    Args:
      ids, mask, tap, view: as for `hidden`.

    Raises:
      InputError: as `hidden`, or the checkpoint has no language head.
    """
    if not self.causal:
      return self.hidden(ids, mask, tap=tap, view=view)
    _ = self.head  # refuses a model without one
    return self.logits(self.hidden(ids, mask, tap=tap, view=view))

  def logits(self, h: Float[Array, "B T d"]) -> Float[Array, "B T V"]:
    """Computes logits, with the soft cap of the family.

    Args:
      h: last hidden state.

    Raises:
      InputError: the model is an encoder, or its checkpoint has no head.
    """
    cap = getattr(self.config, "logit_cap", None)
    return ops.soft_cap(ops.matmul(h, self.head.T), cap)

  def hidden(
    self,
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    tap: stack.Tap = stack.untouched,
    view: ops.View | None = None,
  ) -> Float[Array, "B T d"]:
    """Computes the last hidden state, after the last norm.

    At each point the forward pass calls `tap(name, h)` and continues with the
    returned tensor, so that a tap can read and rewrite. Names are
    `layers.{l}.{point}`, `embed` and `final_norm`; `family` lists the points,
    their order and shapes.

    Args:
      ids: token ids. Traced ids cannot be checked; an id outside the vocabulary
        then turns its row into NaN.
      mask: which tokens are real. Padding may be on either side and have any
        id: positions count real tokens, so padding does not affect them. The
        output at padding is finite and meaningless.
      tap: reads or replaces h. Where layers are scanned, a tap that is not an
        `Edits` has all of them unrolled.
      view: positions and attention of a causal model; by default each token
        sees all before it. Positions outside a table of positions give NaN.

    Raises:
      ValueError: shapes or types are others, or an encoder gets a view.
      InputError: an id is outside the vocabulary, or there are more tokens than
        positions in the table.
    """
    self.check(ids, mask)
    if view is not None and not self.causal:
      raise ValueError(f"view must be None for an encoder ({self.name})")
    table = "position" in self.params and view is None
    if table and ids.shape[1] > self.max_positions:
      raise errors.InputError(
        "harvest.context",
        ids.shape[1],
        f"must be at most {self.max_positions}, the number of positions of "
        f"{self.name}",
        "lower it",
      )
    ids, mask = jnp.asarray(ids), jnp.asarray(mask)
    ids = jnp.where(mask, ids, 0)
    if view is None:
      view = ops.whole(mask) if self.causal else ops.both_ways(mask)
    return self.resume(ids, view, None, tap=tap)[0]

  def resume(
    self,
    ids: Int[Array, "B T"],
    view: ops.View,
    cache: ops.Caches | None,
    *,
    tap: stack.Tap = stack.untouched,
  ) -> tuple[Float[Array, "B T d"], Any]:
    """Computes the last hidden state of tokens that follow those of a cache.

    Args:
      ids: token ids, which are not checked.
      view: positions, and which tokens each sees.
      cache: keys and values of the tokens before, or None.
      tap: reads or replaces h, as for `hidden`.

    Returns:
      (last hidden state, the cache with the new keys and values).
    """
    forward = FAMILIES[self.family].forward
    ids = mesh_lib.rows(self.mesh, ids)
    return forward(self.params, self.config, ids, view, tap, cache)

  def scanned(self) -> "Model":
    """Returns the model with its layers' weights stacked, see `stack`.

    It compiles in a time that does not grow with the number of layers, and is
    the same function up to rounding.
    """
    layers = self.params["layers"]
    if not isinstance(layers, tuple):
      return self
    return self.replace(params=self.params | {"layers": stack.stacked(layers)})

  def check(self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> None:
    """Checks tokens; ids that are traced are not checked.

    Args:
      ids: token ids.
      mask: which tokens are real.

    Raises:
      ValueError: shapes or types differ from those of `hidden`.
      InputError: an id is outside the vocabulary.
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
  """Checks that ids are in the vocabulary; others would give NaN activations.

  Args:
    ids: token ids, without padding.
    vocabulary: number of ids of the model.
    model: name of the model, for the error.
    field: name of the setting that the ids came from, for the error.
    remedy: remedy, for the error.

  Raises:
    InputError: ids are outside the vocabulary; states the first and their
      number.
  """
  outside = ids[(ids < 0) | (ids >= vocabulary)]
  if len(outside):
    raise errors.InputError(
      field,
      outside[0],
      f"must be in [0, {vocabulary}), the vocabulary of {model}; "
      f"{len(outside)} of {len(ids)} ids are not",
      remedy,
    )


def load(
  name: str,
  *,
  dtype: str | jnp.dtype = "float32",
  mesh: Mesh | None = None,
) -> Model:
  """Loads a model onto a device or a mesh.

  Each device gets its part of a weight, which is read from the files by itself.

  Args:
    name: path, `package:NAME/path` or Hugging Face name, see `hub.resolve`.
    dtype: dtype of weights and matmuls: "float32", or "bfloat16" for
      accelerators.
    mesh: the devices, made by `models.mesh.make`; None for the default device.

  Raises:
    InputError: the model does not exist, is unreadable or not implemented, or
      the mesh does not divide its sizes.
    ValueError: the dtype is another.
  """
  if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
    raise ValueError(f"dtype must be float32 or bfloat16, got {dtype}")
  path = hub.resolve(name)
  file = checkpoint.at(path).config()
  family = FAMILIES[file.choice("model_type", FAMILIES, "")]
  config = family.read_config(file)
  if mesh is not None:
    mesh_lib.check(mesh, config)
  with weights.open_path(path, jnp.dtype(dtype), mesh) as tensors:
    params = family.read_params(tensors, config)
    tensors.refuse_unread()
  params = jax.block_until_ready(params)
  return Model(params=params, config=config, name=name, mesh=mesh)
