"""Description of a model family: how to read it, run it, and name its sites.

A point is a tensor of the forward pass. Every family has those of `POINTS` that
exist in it, in this order per layer; `taps` reads and rewrites them:

  point       shape           meaning
  resid_pre   [B, T, d]       residual stream before the layer
  q           [B, T, H, h]    queries as projected, before any norm of queries
                              and before rotary positions
  k           [B, T, K, h]    keys, as q
  v           [B, T, K, h]    values
  z           [B, T, H, h]    output of each head, before the map W_O
  attn_out    [B, T, d]       what attention adds to the residual stream: after
                              W_O, and in Gemma 2 and 3 after its norm
  resid_mid   [B, T, d]       residual stream after attention; absent where
                              attention and MLP are parallel (GPT-NeoX)
  mlp_in      [B, T, d]       input of the MLP, after its norm
  mlp_hidden  [B, T, d_mlp]   hidden layer of the MLP, after the activation and
                              the product with the gate
  mlp_out     [B, T, d]       what the MLP adds to the residual stream
  resid_post  [B, T, d]       residual stream after the layer
  embed       [B, T, d]       embeddings of tokens, scaled in Gemma; positions,
                              types and norms are not in it
  final_norm  [B, T, d]       last hidden state, after the last norm

with H query heads and K key heads of width h. The last two are outside layers.
A layer has one more tensor, `pattern` [B, H, T, S]: the share of each source token in
each head's output. It is no row per token, hence no point of a harvest, and computed
only for a tap that names it: `taps.patterns`.
BERT norms after each addition: its resid_mid and resid_post are after the norm,
attn_out and mlp_out before the addition, mlp_in is resid_mid, and it has no
final_norm.
"""

import collections.abc
import dataclasses
from typing import Any, NamedTuple

LAYER_POINTS = (
  "resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_in",
  "mlp_hidden", "mlp_out", "resid_post",
)  # fmt: skip
OUTER_POINTS = ("embed", "final_norm")
POINTS = (*LAYER_POINTS, *OUTER_POINTS)
PATTERN = "pattern"

# Layouts of modules' tensors in transformers: heads joined; all queries, then
# keys, then values; and per head its query, key and value.
PLAIN, HEADS, FUSED, INTERLEAVED = "BTD", "BT(HD)", "BT(QKV)", "BT(H3D)"

# Names in TransformerLens, of a model loaded without processing.
HOOKS = {
  "resid_pre": "blocks.{}.hook_resid_pre",
  "q": "blocks.{}.attn.hook_q",
  "k": "blocks.{}.attn.hook_k",
  "v": "blocks.{}.attn.hook_v",
  "z": "blocks.{}.attn.hook_z",
  "attn_out": "blocks.{}.hook_attn_out",
  "resid_mid": "blocks.{}.hook_resid_mid",
  "mlp_hidden": "blocks.{}.mlp.hook_post",
  "mlp_out": "blocks.{}.hook_mlp_out",
  "resid_post": "blocks.{}.hook_resid_post",
  "embed": "hook_embed",
}
# Its layer norms have a hook on their output, its RMS norms before the gain.
LAYER_NORM_HOOKS = HOOKS | {
  "mlp_in": "blocks.{}.ln2.hook_normalized",
  "final_norm": "ln_final.hook_normalized",
}


class Place(NamedTuple):
  """Where transformers has the tensor of a point.

  Attributes:
    module: path of the module, with {} for the number of the layer.
    port: "in" for the module's first input, "out" for its output.
    index: element of an output that is a tuple, or None.
    layout: layout of the module's tensor.
  """

  module: str
  port: str = "out"
  index: int | None = None
  layout: str = PLAIN


@dataclasses.dataclass(frozen=True)
class Family:
  """A model family.

  Attributes:
    read_config: config.json -> settings.
    read_params: tensors of a checkpoint, settings -> weights by role.
    forward: (params, config, ids, view, tap, cache) -> (last hidden state,
      cache), see `Model.hidden` and `ops.attend`.
    sites: place of each point.
    aliases: other modules with the same output, module -> point.
    prefix: name of the base model before the names of its modules.
    hooks: names in TransformerLens, point -> name.
    heads: names of the language head in checkpoints; none for an encoder.
    absent: settings -> points of `sites` that do not exist with them.
  """

  read_config: collections.abc.Callable[..., Any]
  read_params: collections.abc.Callable[..., dict[str, Any]]
  forward: collections.abc.Callable[..., tuple]
  sites: collections.abc.Mapping[str, Place]
  aliases: collections.abc.Mapping[str, str]
  prefix: str
  hooks: collections.abc.Mapping[str, str] = dataclasses.field(
    default_factory=lambda: HOOKS
  )
  heads: tuple[str, ...] = ("lm_head.weight",)
  absent: collections.abc.Callable[[Any], tuple[str, ...]] = lambda config: ()

  @property
  def causal(self) -> bool:
    """Whether it is a language model: a token sees only those before it."""
    return bool(self.heads)

  def points(self, config: Any) -> tuple[str, ...]:
    """Returns the points of a model, in the order of `POINTS`.

    Args:
      config: the settings.
    """
    absent = self.absent(config)
    return tuple(p for p in POINTS if p in self.sites and p not in absent)


def shape(config: Any, point: str) -> tuple[int, ...]:
  """Returns the shape of a point's tensor per token.

  Args:
    config: the settings of a family.
    point: one of `POINTS`.
  """
  heads = {"q": config.heads, "z": config.heads}
  heads |= dict.fromkeys(("k", "v"), config.key_heads)
  if point in heads:
    return heads[point], config.head
  return (config.d_mlp if point == "mlp_hidden" else config.d,)
