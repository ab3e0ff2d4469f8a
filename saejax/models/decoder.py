"""Pre-norm decoders with RMS norms, rotary positions and gated MLPs.

The families Llama, Mistral, Qwen, Phi-3 and Gemma differ in values of `Config`,
in the names of their weights (`Names`), and in which norms they have:

h = s token; per layer
  q, k, v = W x with x = RMS(h), and q, k = RMS(q), RMS(k) where there are q and
  k norms;
  mid = h + N(W_O attn(rotated q, rotated k, v)),
  post = mid + N(W_down (act(W_gate y) * W_up y)),  y = RMS(mid),
  with N an RMS norm in Gemma 2 and 3, otherwise the identity;
out = RMS(h); logits = cap(out W_head^T).
"""

import collections.abc
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.models import config_file, family, ops, rotary, stack, weights
from saejax.models.family import Place

PREFIX = "model."


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings of config.json that the forward pass uses.

  Attributes:
    family: `model_type` of the config.json.
    head: width of a head.
    max_positions: the training length; longer rows are possible.
    tied: whether the head is the token table.
    has_head: whether the weights must have a head where it is untied; weights of
      a base model or a classifier may lack it.
    rope: rotary positions.
    scale: factor of the scores.
    qkv_bias, out_bias, mlp_bias: which maps have a bias.
    embed_scale: factor of the token embeddings.
    norm_offset: addend of the gains of norms.
    qk_norm: whether queries and keys have a norm.
    window: number of tokens that a token sees in windowed layers, or None.
    windowed: which layers are windowed; none where it is empty.
    local_rope: rotary positions of windowed layers, where they have others.
    score_cap, logit_cap: soft caps of attention scores and logits, or None.
  """

  family: str
  vocabulary: int
  d: int
  layers: int
  heads: int
  key_heads: int
  head: int
  d_mlp: int
  max_positions: int
  eps: float
  activation: str
  tied: bool
  has_head: bool
  rope: rotary.Rope
  scale: float
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  embed_scale: float = 1.0
  norm_offset: float = 0.0
  qk_norm: bool = False
  window: int | None = None
  windowed: tuple[bool, ...] = ()
  local_rope: rotary.Rope | None = None
  score_cap: float | None = None
  logit_cap: float | None = None


class Names(NamedTuple):
  """Names of the modules of a layer in a checkpoint; None for no such norm.

  Attributes:
    qkv, out: maps of attention; one name where queries, keys and values are one.
    up, down: maps of the MLP; one name where gate and up map are one.
    norm_pre, norm_mid: norms before attention and MLP.
    norm_attn, norm_mlp: norms of the outputs of attention and MLP.
    norm_q, norm_k: norms of queries and keys.
  """

  qkv: tuple[str, ...] = tuple(f"self_attn.{n}_proj" for n in "qkv")
  out: str = "self_attn.o_proj"
  up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
  down: str = "mlp.down_proj"
  norm_pre: str = "input_layernorm"
  norm_mid: str = "post_attention_layernorm"
  norm_attn: str | None = None
  norm_mlp: str | None = None
  norm_q: str | None = None
  norm_k: str | None = None


# --- settings ----------------------------------------------------------------


def read_config(
  file: config_file.ConfigFile,
  *,
  implemented: collections.abc.Sequence[str] = (),
  defaults: collections.abc.Mapping[str, Any] | None = None,
  activation: str = "hidden_act",
  rotated_share: float | None = None,
  layer_type: str | None = None,
) -> Config:
  """Reads the settings that all families have.

  Args:
    file: the config.json.
    implemented: settings beside them that the family reads itself.
    defaults: defaults of transformers' config, where they are not Llama's.
    activation: name of the setting that has the activation of the MLP.
    rotated_share: share of a head that is rotated by default, where the family
      has a setting for it.
    layer_type: kind of layer whose rotary positions are `rope`, where each may
      have its own.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  file.refuse_unknown(*implemented)
  default = {"act": "silu", "head_dim": None, "tied": False} | {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    **(defaults or {}),
  }
  size = lambda key: file.integer(key, default.get(key))
  d, heads = size("hidden_size"), size("num_attention_heads")
  head = file.integer("head_dim", default["head_dim"] or max(d // heads, 1))
  shared = default.get("num_key_value_heads", heads)
  key_heads = file.integer("num_key_value_heads", shared)
  max_positions = size("max_position_embeddings")
  if heads % key_heads:
    raise file.refusal("num_key_value_heads", f"must divide {heads}")
  rope = rotary.read(
    file,
    head,
    max_positions=max_positions,
    theta=default.get("rope_theta", 10000.0),
    share=rotated_share,
    layer_type=layer_type,
  )
  return Config(
    family=str(file.values.get("model_type")),
    vocabulary=size("vocab_size"),
    d=d,
    layers=size("num_hidden_layers"),
    heads=heads,
    key_heads=key_heads,
    head=head,
    d_mlp=size("intermediate_size"),
    max_positions=rope.reach(max_positions),
    eps=file.number("rms_norm_eps", default["rms_norm_eps"]),
    activation=file.choice(activation, ops.ACTIVATIONS, default["act"]),
    tied=file.flag("tie_word_embeddings", default["tied"]),
    has_head=file.has_head,
    rope=rope,
    scale=head**-0.5,
  )


# --- weights -----------------------------------------------------------------


def read_params(
  w: weights.Weights,
  config: Config,
  *,
  names: Names = Names(),
  prefixes: tuple[str, ...] = (PREFIX, ""),
) -> dict[str, Any]:
  """Reads the weights by role.

  Args:
    w: the tensors of the checkpoint.
    config: the settings.
    names: names of the modules of a layer.
    prefixes: possible prefixes of the names of the base model.

  Raises:
    InputError: a tensor is missing or has another shape or type.
  """
  w.strip_prefix("embed_tokens.weight", *prefixes)
  d, d_mlp, head = config.d, config.d_mlp, config.head
  inner, shared = config.heads * head, config.key_heads * head

  def joint(at: str, modules, widths, bias: bool) -> weights.Joint:
    if len(modules) == 1:  # the checkpoint has them joined
      (name,) = modules
      one = w.map(f"{at}.{name}", i=d, o=sum(widths), bias=bias)
      return w.joint(one.split(widths))
    pairs = zip(modules, widths, strict=True)
    return w.joint([w.map(f"{at}.{m}", i=d, o=o, bias=bias) for m, o in pairs])

  def norms(at: str) -> dict[str, Array]:
    each = names._asdict().items()
    return {
      role: w.take(
        f"{at}.{module}.weight", head if role in ("norm_q", "norm_k") else d
      )
      for role, module in each
      if role.startswith("norm_") and module is not None
    }

  def layer(at: str) -> dict[str, Any]:
    qkv = joint(at, names.qkv, (inner, shared, shared), config.qkv_bias)
    out = w.map(f"{at}.{names.out}", i=inner, o=d, bias=config.out_bias)
    up = joint(at, names.up, (d_mlp, d_mlp), config.mlp_bias)
    down = w.map(f"{at}.{names.down}", i=d_mlp, o=d, bias=config.mlp_bias)
    return norms(at) | {
      "qkv": qkv,
      "out": w.linear(out, split=0),
      "up": up,
      "down": w.linear(down, split=0),
    }

  params = {
    "token": w.take("embed_tokens.weight", config.vocabulary, d, split=0),
    "layers": tuple(layer(f"layers.{l}") for l in range(config.layers)),
    "norm": w.take("norm.weight", d),
  }
  return params | weights.head(w, config)


# --- forward pass ------------------------------------------------------------


def forward(
  params: dict[str, Any],
  config: Config,
  ids: Int[Array, "B T"],
  view: ops.View,
  tap: stack.Tap,
  cache: ops.Caches | None = None,
) -> tuple[Float[Array, "B T d"], ops.Caches | None]:
  """Computes the last hidden state, after the last norm.

  Args:
    params: the result of `read_params`.
    config: the settings.
    ids: token ids.
    view: positions, and which tokens each sees.
    tap: called with name and h at every point, returns h, see `Model.hidden`.
    cache: keys and values of the tokens before, or None.
  """
  act = ops.ACTIVATIONS[config.activation]
  windowed = config.windowed or (False,) * config.layers
  turns = lambda rope: rotary.cos_sin(rope, view.positions, view.lengths)
  everywhere = view, turns(config.rope)
  local = view.within(config.window), turns(config.local_rope or config.rope)

  widths = [n * config.head for n in (config.heads, *[config.key_heads] * 2)]

  def norm(x: Array, gain: Array | None) -> Array:
    if gain is None:
      return x
    return ops.rms_norm(x, gain, config.eps, config.norm_offset)

  def block(l, p, h, cache, tap):
    seen, turn = stack.choose(stack.pick(windowed, l), local, everywhere)
    h = tap("resid_pre", h)
    qkv = ops.joint(norm(h, p["norm_pre"]), p["qkv"], widths)
    q, k, v = (
      tap(name, ops.heads(x, config.head))
      for name, x in zip("qkv", qkv, strict=True)
    )
    q = rotary.rotate(norm(q, p.get("norm_q")), turn)
    k = rotary.rotate(norm(k, p.get("norm_k")), turn)
    z, cache = ops.attend(
      seen,
      q,
      k,
      v,
      cache,
      scale=config.scale,
      cap=config.score_cap,
      tap=stack.named(tap, family.PATTERN),
    )
    a = ops.linear(ops.joined(tap("z", z)), p["out"])
    h = tap("resid_mid", h + tap("attn_out", norm(a, p.get("norm_attn"))))
    m = tap("mlp_in", norm(h, p["norm_mid"]))
    gate, up = ops.joint(m, p["up"], (config.d_mlp, config.d_mlp))
    m = ops.linear(tap("mlp_hidden", act(gate) * up), p["down"])
    m = tap("mlp_out", norm(m, p.get("norm_mlp")))
    return tap("resid_post", h + m), cache

  h = ops.embed(params["token"], ids)
  h = tap("embed", h * jnp.asarray(config.embed_scale, h.dtype))
  h, cache = stack.run(block, params["layers"], h, tap, cache)
  return tap("final_norm", norm(h, params["norm"])), cache


# --- families ----------------------------------------------------------------

_LAYER = PREFIX + "layers.{}"
SITES = {
  "resid_pre": Place(_LAYER, "in"),
  "q": Place(f"{_LAYER}.self_attn.q_proj", layout=family.HEADS),
  "k": Place(f"{_LAYER}.self_attn.k_proj", layout=family.HEADS),
  "v": Place(f"{_LAYER}.self_attn.v_proj", layout=family.HEADS),
  "z": Place(f"{_LAYER}.self_attn.o_proj", "in", layout=family.HEADS),
  "attn_out": Place(f"{_LAYER}.self_attn", index=0),
  "resid_mid": Place(f"{_LAYER}.post_attention_layernorm", "in"),
  "mlp_in": Place(f"{_LAYER}.mlp", "in"),
  "mlp_hidden": Place(f"{_LAYER}.mlp.down_proj", "in"),
  "mlp_out": Place(f"{_LAYER}.mlp"),
  "resid_post": Place(_LAYER, index=0),
  "embed": Place(f"{PREFIX}embed_tokens"),
  "final_norm": Place(f"{PREFIX}norm"),
}
# Other modules with the same output.
ALIASES = {
  f"{_LAYER}.self_attn.o_proj": "attn_out",
  f"{_LAYER}.post_attention_layernorm": "mlp_in",
  f"{_LAYER}.mlp.down_proj": "mlp_out",
}


def make(
  read_config: collections.abc.Callable[..., Config], **differences: Any
) -> family.Family:
  """Returns a family of these decoders.

  Args:
    read_config: reads its settings.
    **differences: fields of `Family` that are not those of Llama.
  """
  common = {
    "read_params": read_params,
    "forward": forward,
    "sites": SITES,
    "aliases": ALIASES,
    "prefix": PREFIX,
  }
  return family.Family(read_config, **(common | differences))
